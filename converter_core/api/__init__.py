"""What a plugin may import, and all that it needs."""
