"""The kit for targets: keys, what stands beside the weights, what is found again, files."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ..api.contexts import ModelFacts, SourceTensors
from ..api.formats import UNQUANTIZED
from ..api.local_file import LocalFile
from ..api.targets import Target
from ..api.tensors import spec_of
from ..api.values import Stored, TensorSpec
from ..planning.file_layout import container_of
from ..plugins.registry import load_plugins
from .models import FOREIGN
from .samples import difference, later
from .target_trials import TargetTrials


class TargetFiles(TargetTrials):
    """What it writes can be told apart, read and found again."""

    def test_keys_are_unique(self) -> None:
        for quantizer in self._all():
            seen: dict[str, str] = {}
            for weight in self._planned(quantizer):
                for output in weight.outputs:
                    what = f"{output.role} of {weight.name}"
                    assert output.key, f"{what}: has an empty key"
                    assert output.key not in seen, f"{output.key!r} is {seen.get(output.key)} and {what}"
                    seen[output.key] = what

    def test_what_it_adds_is_sound(self) -> None:
        for quantizer in self._all():
            weights = self._planned(quantizer)
            reasons = list(self.target.refuse(ModelFacts(), weights))
            assert not reasons, f"all {quantizer.format}: refused: {reasons}"
            extras = self.target.extras(ModelFacts(), weights)
            for key, value in extras.metadata.items():
                assert isinstance(key, str), f"a key of the metadata must be text: {key!r} ({value!r})"
            for name, content in extras.side_files.items():
                plain = Path(name).name == name and not name.startswith(".")
                assert plain, f"{name!r} is no name of a side file"
                assert isinstance(content, bytes), f"side file {name} must be bytes, not {type(content).__name__}"
            taken = {output.key for weight in weights for output in weight.outputs}
            assert not taken & set(extras.tensors), (
                f"extra tensors under keys of weights: {taken & set(extras.tensors)}"
            )
            again = self.target.extras(ModelFacts(), weights)
            same_again = (extras.metadata, extras.side_files) == (again.metadata, again.side_files)
            assert same_again, "extras are others when asked for again"
            assert not difference(extras.tensors, again.tensors), "extra tensors are others when asked for again"

    def test_it_finds_its_own(self) -> None:
        if type(self.target).detect is Target.detect:
            return
        for quantizer in self._all():
            weights = self._planned(quantizer)
            extras = self.target.extras(ModelFacts(), weights)
            tensors = {output.key: output.spec for weight in weights for output in weight.outputs}
            tensors |= {key: spec_of(tensor) for key, tensor in extras.tensors.items()}
            found = self.target.detect(SourceTensors(tensors, extras.metadata))
            taken = {key: stored for stored in found.values() for key in stored.keys.values()}
            for weight in weights:
                expected = {output.role: output.key for output in weight.outputs}
                stored = next((taken[key] for key in expected.values() if key in taken), None)
                if weight.format == UNQUANTIZED:
                    assert stored is None, f"{weight.name} is not quantized, but detect says {stored}"
                    continue
                assert stored is not None, f"detect does not find {weight.name} ({weight.format})"
                right = stored.format.matches(weight.format) and dict(stored.keys) == expected
                assert right, f"detect finds {weight.name} ({weight.format}) as {stored}"

    def test_it_leaves_others_alone(self) -> None:
        """Weights that are not quantized, and those of other models, are none of its own."""
        bare = [TensorSpec("BF16", (64, 32)), TensorSpec("BF16", (64,))]
        tensors = {
            f"blocks.0.ffn.{n}.{leaf}": s for n in (0, 2) for leaf, s in zip(("weight", "bias"), bare, strict=True)
        }
        for others in (tensors, FOREIGN):
            found = self.target.detect(SourceTensors(others))
            assert not found, f"detect claims {sorted(found)} of {', '.join(others)}"

    def test_what_to_configure_is_json(self) -> None:
        for quantizer in self._all():
            stored = {
                weight.name: Stored(weight.format, {output.role: output.key for output in weight.outputs})
                for weight in self._planned(quantizer)
                if weight.format != UNQUANTIZED
            }
            config = self.target.runtime_config(ModelFacts(), stored, "/models/wan")
            assert json.loads(json.dumps(config)) == config, (
                f"{quantizer.format}: runtime_config is {config!r}, not JSON"
            )

    def test_its_files_can_be_read(self) -> None:
        for quantizer in self._all():
            weights = self._planned(quantizer)
            container = self.container or container_of(self.target, load_plugins())
            metadata = {**container.metadata, **self.target.extras(ModelFacts(), weights).metadata}
            placed = container.place(weights, metadata)
            with later():
                extras = self.target.extras(ModelFacts(), weights)
                again = container.place(weights, {**container.metadata, **extras.metadata})
            assert again == placed, f"{quantizer.format}: the header is another one at another time"
            for weight in weights:
                for output in weight.outputs:
                    end = placed.offsets[output.key] + output.spec.nbytes
                    assert end <= placed.size, f"{output.key} ends at {end}, the file at {placed.size}"
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"file{container.suffixes[0]}"
                with open(path, "wb") as file:
                    file.write(placed.header)
                    file.truncate(placed.size)
                source = LocalFile(path)
                found = container.read(source)
                source.close()
            expected = {out.key: out.spec for weight in weights for out in weight.outputs}
            assert dict(found.tensors) == expected, f"{quantizer.format}: the container reads other tensors"
            assert dict(found.offsets) == dict(placed.offsets), f"{quantizer.format}: read elsewhere than placed"
            for key, value in metadata.items():
                assert found.metadata.get(key) == value, f"{quantizer.format}: metadata {key!r} does not come back"
