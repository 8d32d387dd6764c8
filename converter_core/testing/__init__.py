"""Is a plugin what it promises to be? A test file for one is a subclass of four lines, run by pytest::

    from converter_core.testing import QuantizerConformance
    from my_plugin import Ternary

    class TestTernary(QuantizerConformance):
        quantizer = Ternary()

Every kind has its class. Each test is about one thing that goes wrong in practice and says what to do about it. What
the tests try (shapes, dtypes ...) are attributes of the class, to be overridden where a plugin takes less.
"""

from __future__ import annotations

from .containers import ContainerConformance
from .devices import DeviceConformance
from .layouts import LayoutWriterConformance
from .models import ModelConformance
from .quantizers import QuantizerConformance
from .storages import StorageConformance
from .targets import TargetConformance
from .writers import WriterConformance

__all__ = [
    "ContainerConformance",
    "DeviceConformance",
    "LayoutWriterConformance",
    "ModelConformance",
    "QuantizerConformance",
    "StorageConformance",
    "TargetConformance",
    "WriterConformance",
]
