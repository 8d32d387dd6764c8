"""Calibration files: made by running a model, read, added up. Their format is described in docs/calibration-file.md."""
