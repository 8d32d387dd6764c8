"""Compiled kernels: the loader, and what the kernels share."""
