"""The page of ``verify --html``."""
