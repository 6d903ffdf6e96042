"""Records: schema, data sets, readers and named sources."""
