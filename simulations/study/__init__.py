"""Studies: TOML files of sweeps, methods and data sets, and the one runner of them."""
