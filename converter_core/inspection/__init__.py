"""What a checkpoint is, told from its headers alone, and what to do with it."""

from .look import inspect
from .values import FileSummary, Inspection, QuantizedSummary, TensorSummary

__all__ = ["FileSummary", "Inspection", "QuantizedSummary", "TensorSummary", "inspect"]
