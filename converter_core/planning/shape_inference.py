"""Learn what a quantizer and a target make of a weight by running them on zeros.

Two descriptions of one thing drift, so there is only one: the code itself. What it makes of zeros has the roles,
shapes and dtypes of what it will make of data; how they grow with the rows is read off runs on one and more row blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..api.models import ModelAdapter
from ..api.quantizers import Quantizer
from ..errors import PluginError, Refused
from ..plugins.attribution import describe
from .dry_run import DryRun
from .encoding import Encoding
from .output_schema import OutputSchema, SourceSpec


class ShapeInference:
    """Dry runs for one adapter, remembered: a model has a handful of different shapes."""

    def __init__(self, adapter: ModelAdapter) -> None:
        self.adapter = adapter
        self._seen: dict[object, OutputSchema | Refused | PluginError] = {}

    def run(
        self,
        quantizer: Quantizer,
        encoding: Encoding,
        sources: Mapping[str, SourceSpec],
        inputs: Mapping[str, SourceSpec] | None = None,
        merged: bool = False,
    ) -> OutputSchema:
        """merged: the assembled weight gets LoRAs, and is float32 then.

        Raises Refused with the plugin's reason; PluginError if it raises something else or breaks its contract."""
        inputs = inputs or {}
        info = encoding.context.info
        case = (
            quantizer,
            encoding.target,
            encoding.passthrough,
            encoding.bias is None,
            (info.kind, info.module),
            tuple(sources.items()),
            tuple(inputs.items()),
            merged,
        )
        if case not in self._seen:
            try:
                self._seen[case] = DryRun(self.adapter, quantizer, encoding, sources, inputs, merged).schema()
            except (Refused, PluginError) as error:
                self._seen[case] = error
            except Exception as error:
                self._seen[case] = PluginError(
                    f"{describe(error)}; what a scheme cannot take, quantize refuses (Refused)"
                )
        result = self._seen[case]
        if isinstance(result, OutputSchema):
            return result
        raise type(result)(*result.problems)
