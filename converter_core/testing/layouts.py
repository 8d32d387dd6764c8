"""The kit for layouts."""

from __future__ import annotations

from ..api.formats import QuantFormat
from ..api.layouts import LayoutWriter
from ..api.values import OutputTensor, PlannedWeight, TensorSpec, WeightInfo
from .options import check_class, check_options


class LayoutWriterConformance:
    """Subclass it with ``layout = MyLayout()``; once more for options that take another path."""

    layout: LayoutWriter

    def test_it_is_a_plugin(self) -> None:
        check_class(self.layout, LayoutWriter)

    def test_options_survive_yaml_and_repr(self) -> None:
        check_options(self.layout)

    def test_every_weight_is_in_exactly_one_file(self) -> None:
        for count in (1, 2, 40):
            weights = planned(count)
            files = self.layout.files("model", weights)
            spread = sorted(weight.name for group in files.values() for weight in group)
            expected = sorted(weight.name for weight in weights)
            twice = sorted({name for name in spread if spread.count(name) > 1})
            assert spread == expected, f"lost: {sorted({*expected} - {*spread})}, more than once: {twice}"

    def test_weights_are_passed_on_as_they_are(self) -> None:
        """With all their parts: nobody loads a weight whose scale is in another file."""
        weights = planned(40)
        for name, group in self.layout.files("model", weights).items():
            for weight in group:
                assert weight in weights, f"{name}: {weight.name} is not the one that was given"

    def test_no_file_is_empty(self) -> None:
        for count in (1, 40):
            for name, group in self.layout.files("model", planned(count)).items():
                assert len(group), f"{name} would hold nothing"

    def test_names_of_files(self) -> None:
        """Without folder and suffix, told apart by the name of the output, and not hidden."""
        mine, other = (set(self.layout.files(name, planned(40))) for name in ("model", "another"))
        for name in mine:
            sound = isinstance(name, str) and name and not set(name) & {"/", "\\", "\0"} and not name.startswith(".")
            assert sound, f"{name!r} is no name of a file"
            assert not name.endswith(".json"), f"{name!r}: names have no suffix, the container adds it"
        folded = {name.lower() for name in mine}
        assert len(folded) == len(mine), (
            f"some names differ in case only, and meet on some file systems: {sorted(mine)}"
        )
        if not self.layout.indexed and len(mine) == 1:
            assert not mine & other, f"two outputs in one folder would both write {sorted(mine & other)}"

    def test_it_is_deterministic(self) -> None:
        def listing() -> list[tuple[str, list[str]]]:
            files = self.layout.files("model", planned(40))
            return [(name, [weight.name for weight in group]) for name, group in files.items()]

        first = listing()
        assert first == listing(), "other files when asked again"

    def test_the_input_is_not_modified(self) -> None:
        weights = planned(40)
        before = list(weights)
        self.layout.files("model", weights)
        assert weights == before, "files changes the list it is given"


def planned(count: int) -> list[PlannedWeight]:
    """Quantized weights with a scale, in blocks, then one outside of them that is larger than all others."""
    weights = []
    for number in range(count):
        block = str(number // 3) if number < count - 1 else ""
        name = f"blocks.{block}.ffn.{number}.weight" if block else f"head.{number}.weight"
        rows = 16 + number if block else 4096
        outputs = (
            OutputTensor(name, "weight", TensorSpec("I8", (rows, 64)), 64),
            OutputTensor(f"{name}_scale", "scale", TensorSpec("F32", (rows, 1)), 4),
        )
        info = WeightInfo(name, {}, "linear", "ffn" if block else "", block)
        weights.append(
            PlannedWeight(info, name, TensorSpec("BF16", (rows, 64)), QuantFormat("rows_of_codes", "codes"), outputs)
        )
    return weights
