"""The data sets of the catalogue: made from their originals, fetched, verified."""
