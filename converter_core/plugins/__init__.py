"""Finding plugins, judging whether they can serve, and telling whose fault an exception is."""
