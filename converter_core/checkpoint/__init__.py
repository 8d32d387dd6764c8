"""What lies in a source."""
