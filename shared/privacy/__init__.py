"""The privacy mechanism: plan, accounting, noise, summaries."""
