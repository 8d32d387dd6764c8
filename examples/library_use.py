"""The same engine without a terminal: plan, convert with progress, inspect.

python examples/library_use.py /path/to/Wan2.1-I2V-14B-480P /path/to/output
"""

import json
import sys

from converter_core import (
    ConverterError,
    OutputSection,
    Progress,
    QuantizationSection,
    Recipe,
    SourceSection,
    TargetSection,
    convert,
    inspect,
    make_plan,
)


def show(event: Progress) -> None:
    print(f"\r{event.done / max(event.total, 1):4.0%} {event.weight:60}", end="", file=sys.stderr)


def main(source: str, output: str) -> None:
    recipe = Recipe(
        source=SourceSection(source),
        quantization=QuantizationSection("int8", {"per_channel": True}),
        output=OutputSection(output, name="wan_int8"),
        target=TargetSection(layout="by_block"),
    )
    with make_plan(recipe) as plan:
        (planned,) = plan.outputs
        before, after = planned.bytes_before, planned.bytes_after
        print(f"{plan.model.variant}: {before:,} -> {after:,} bytes in {len(planned.files)} files")
    result = convert(recipe, progress=show)
    print(f"\n{result.status} in {result.seconds:.1f} s: {result.counts}")
    # a mapping in the schema of the YAML file, or the path of one, would do as well
    again = convert(
        {
            "source": {"path": source},
            "quantization": {"method": "int8", "options": {"per_channel": True}},
            "output": {"path": output, "name": "wan_int8"},
            "target": {"layout": "by_block"},
        }
    )
    print(again.status)
    print(json.dumps(inspect(output).runtime_config, indent=2))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3])
    except ConverterError as error:
        sys.exit(f"error: {error}")
