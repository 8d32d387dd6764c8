"""From a recipe and headers to a plan."""
