"""Turn checkpoints of diffusion transformers into quantized ones. See ``convert``; for plugins, ``hookimpl``.

What is public: the names in ``__all__`` here, ``converter_core.testing`` and its ``__all__``, the hooks, the entry
point group ``converter_core``, the schema of recipes and of manifests, and the command line. All else may change.

A public name that goes, or changes what it means, first warns (DeprecationWarning, and a line in the changelog) for
at least one minor version and half a year; then it goes with a major version, before 1.0 with a minor one.

Names are imported when they are first asked for: torch takes over a second, and an author's module needs few.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversion import Result, convert
    from .errors import (
        CheckpointError,
        ConversionError,
        ConverterError,
        PlanError,
        PluginError,
        RecipeError,
        Refused,
        VerificationError,
    )
    from .hookspecs import hookimpl
    from .inspection import Inspection, inspect
    from .interfaces import Container, DeviceBackend, Lane, LayoutWriter, ModelAdapter, Quantizer, Target
    from .plan import Plan
    from .planning import make_plan
    from .recipe import (
        OutputSection,
        PerformanceSection,
        QuantizationSection,
        Recipe,
        Rule,
        SourceSection,
        TargetSection,
        load_recipe,
    )
    from .registry import Registry, load_plugins
    from .specs import (
        Extras,
        OutputTensor,
        Parts,
        Placed,
        PlannedWeight,
        Sample,
        Source,
        Stored,
        TensorSpec,
        WeightInfo,
    )
    from .team import Progress
    from .verification import Verification, verify

__all__ = [
    "CheckpointError",
    "Container",
    "ConversionError",
    "ConverterError",
    "DeviceBackend",
    "Extras",
    "Inspection",
    "Lane",
    "LayoutWriter",
    "ModelAdapter",
    "OutputSection",
    "OutputTensor",
    "Parts",
    "PerformanceSection",
    "Placed",
    "Plan",
    "PlanError",
    "PlannedWeight",
    "PluginError",
    "Progress",
    "QuantizationSection",
    "Quantizer",
    "Recipe",
    "RecipeError",
    "Refused",
    "Registry",
    "Result",
    "Rule",
    "Sample",
    "Source",
    "SourceSection",
    "Stored",
    "Target",
    "TargetSection",
    "TensorSpec",
    "Verification",
    "VerificationError",
    "WeightInfo",
    "__version__",
    "convert",
    "hookimpl",
    "inspect",
    "load_plugins",
    "load_recipe",
    "make_plan",
    "verify",
]

_HOME = {
    "conversion": ("Result", "convert"),
    "team": ("Progress",),
    "errors": (
        "CheckpointError",
        "ConversionError",
        "ConverterError",
        "PlanError",
        "PluginError",
        "RecipeError",
        "Refused",
        "VerificationError",
    ),
    "hookspecs": ("hookimpl",),
    "inspection": ("Inspection", "inspect"),
    "interfaces": ("Container", "DeviceBackend", "Lane", "LayoutWriter", "ModelAdapter", "Quantizer", "Target"),
    "plan": ("Plan",),
    "planning": ("make_plan",),
    "recipe": (
        "OutputSection",
        "PerformanceSection",
        "QuantizationSection",
        "Recipe",
        "Rule",
        "SourceSection",
        "TargetSection",
        "load_recipe",
    ),
    "registry": ("Registry", "load_plugins"),
    "specs": (
        "Extras",
        "OutputTensor",
        "Parts",
        "Placed",
        "PlannedWeight",
        "Sample",
        "Source",
        "Stored",
        "TensorSpec",
        "WeightInfo",
    ),
    "verification": ("Verification", "verify"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("model-converter")
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
