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
    from .api import (
        UNQUANTIZED,
        CheckpointError,
        Container,
        ConversionError,
        ConverterError,
        DeviceBackend,
        DeviceStream,
        Extras,
        FileLayout,
        LayoutWriter,
        ModelAdapter,
        ModelFacts,
        OutputTensor,
        Parts,
        PlanError,
        PlannedWeight,
        PluginError,
        QuantFormat,
        Quantizer,
        RecipeError,
        Refused,
        SourceTensors,
        Stored,
        SyntheticCheckpoint,
        Target,
        TensorRef,
        TensorSpec,
        VerificationError,
        WeightContext,
        WeightInfo,
        hookimpl,
    )
    from .calibration.calibrate import calibrate, merge_calibrations
    from .calibration.models import CalibrationSettings
    from .engine.batch import BatchResult, JobResult, convert_batch
    from .engine.convert import convert
    from .engine.result import OutputResult, Result
    from .engine.worker_pool import Progress
    from .inspection import Inspection, inspect
    from .planning.components import make_plans
    from .planning.plan import Plan
    from .planning.planner import make_plan
    from .plugins.registry import Registry, load_plugins
    from .recipe.load import (
        OutputSection,
        PerformanceSection,
        QuantizationSection,
        Recipe,
        Rule,
        SourceSection,
        TargetSection,
        load_recipe,
    )
    from .verification.verify import Verification, verify

__all__ = [
    "UNQUANTIZED",
    "BatchResult",
    "CalibrationSettings",
    "CheckpointError",
    "Container",
    "ConversionError",
    "ConverterError",
    "DeviceBackend",
    "DeviceStream",
    "Extras",
    "FileLayout",
    "Inspection",
    "JobResult",
    "LayoutWriter",
    "ModelAdapter",
    "ModelFacts",
    "OutputResult",
    "OutputSection",
    "OutputTensor",
    "Parts",
    "PerformanceSection",
    "Plan",
    "PlanError",
    "PlannedWeight",
    "PluginError",
    "Progress",
    "QuantFormat",
    "QuantizationSection",
    "Quantizer",
    "Recipe",
    "RecipeError",
    "Refused",
    "Registry",
    "Result",
    "Rule",
    "SourceSection",
    "SourceTensors",
    "Stored",
    "SyntheticCheckpoint",
    "Target",
    "TargetSection",
    "TensorRef",
    "TensorSpec",
    "Verification",
    "VerificationError",
    "WeightContext",
    "WeightInfo",
    "__version__",
    "calibrate",
    "convert",
    "convert_batch",
    "hookimpl",
    "inspect",
    "load_plugins",
    "load_recipe",
    "make_plan",
    "make_plans",
    "merge_calibrations",
    "verify",
]

_HOME = {
    "api": (
        "UNQUANTIZED",
        "CheckpointError",
        "Container",
        "ConversionError",
        "ConverterError",
        "DeviceBackend",
        "DeviceStream",
        "Extras",
        "FileLayout",
        "LayoutWriter",
        "ModelAdapter",
        "ModelFacts",
        "OutputTensor",
        "Parts",
        "PlanError",
        "PlannedWeight",
        "PluginError",
        "QuantFormat",
        "Quantizer",
        "RecipeError",
        "Refused",
        "SourceTensors",
        "Stored",
        "SyntheticCheckpoint",
        "Target",
        "TensorRef",
        "TensorSpec",
        "VerificationError",
        "WeightContext",
        "WeightInfo",
        "hookimpl",
    ),
    "calibration.calibrate": ("calibrate", "merge_calibrations"),
    "calibration.models": ("CalibrationSettings",),
    "engine.batch": ("BatchResult", "JobResult", "convert_batch"),
    "engine.convert": ("convert",),
    "engine.result": ("OutputResult", "Result"),
    "engine.worker_pool": ("Progress",),
    "inspection": ("Inspection", "inspect"),
    "planning.components": ("make_plans",),
    "planning.plan": ("Plan",),
    "planning.planner": ("make_plan",),
    "plugins.registry": ("Registry", "load_plugins"),
    "recipe.load": (
        "OutputSection",
        "PerformanceSection",
        "QuantizationSection",
        "Recipe",
        "Rule",
        "SourceSection",
        "TargetSection",
        "load_recipe",
    ),
    "verification.verify": ("Verification", "verify"),
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
