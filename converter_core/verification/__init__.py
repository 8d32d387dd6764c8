"""Check an output."""
