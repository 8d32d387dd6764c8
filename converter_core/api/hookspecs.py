"""The hooks. Each takes nothing, has no side effects and returns classes; behaviour lives in the interfaces.

A plugin is a module with any of these, marked ``@converter_core.hookimpl``, and one line in the entry-point group
``converter_core``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .containers import Container
    from .devices import DeviceBackend
    from .layouts import LayoutWriter
    from .models import ModelAdapter
    from .quantizers import Quantizer
    from .storages import Storage
    from .targets import Target

PROJECT = "converter_core"
DISTRIBUTION = "model-converter"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def converter_models() -> Sequence[type[ModelAdapter]]:  # type: ignore[empty-body]
    """Model families whose checkpoints can be read.

    .. versionadded:: 0.1
    """


@hookspec
def converter_quantizers() -> Sequence[type[Quantizer]]:  # type: ignore[empty-body]
    """Quantization schemes.

    .. versionadded:: 0.1
    """


@hookspec
def converter_targets() -> Sequence[type[Target]]:  # type: ignore[empty-body]
    """Runtimes whose files can be written.

    .. versionadded:: 0.1
    """


@hookspec
def converter_layouts() -> Sequence[type[LayoutWriter]]:  # type: ignore[empty-body]
    """Ways to spread weights over files.

    .. versionadded:: 0.1
    """


@hookspec
def converter_devices() -> Sequence[type[DeviceBackend]]:  # type: ignore[empty-body]
    """Kinds of device that can compute.

    .. versionadded:: 0.1
    """


@hookspec
def converter_containers() -> Sequence[type[Container]]:  # type: ignore[empty-body]
    """File formats that tensors are read from or written in.

    .. versionadded:: 0.2
    """


@hookspec
def converter_storages() -> Sequence[type[Storage]]:  # type: ignore[empty-body]
    """Places where files lie, by the scheme of a URL.

    .. versionadded:: 0.2
    """
