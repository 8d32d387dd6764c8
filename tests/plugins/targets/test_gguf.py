"""A small Wan as GGUF: opened by gguf-py and diffusers, verified, read back as a source, refused where it must be."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import converter_core
from converter_core.api import ModelFacts, SyntheticCheckpoint
from converter_core.checkpoint.synthetic import write_synthetic
from converter_core.errors import PlanError
from converter_core.testing import TargetConformance
from converter_plugins.models.wan_dit import Structure
from converter_plugins.quantizers.fp8 import Fp8
from converter_plugins.quantizers.gguf_blocks import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from converter_plugins.quantizers.gguf_k import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from converter_plugins.quantizers.int8 import Int8
from converter_plugins.quantizers.mxfp4 import Mxfp4
from converter_plugins.targets.gguf import Gguf

STRUCTURE = Structure(dim=256, ffn_dim=320, num_layers=2, in_dim=16, text_dim=64, freq_dim=32)
CONFIG = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 64,
    "freq_dim": 32,
    "ffn_dim": 320,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}


class TestGguf(TargetConformance):
    target = Gguf()
    quantizers = (Q8_0(), Q5_1(), Q5_0(), Q4_1(), Q4_0())
    refused = (Int8(), Fp8(), Mxfp4())


class TestGgufOfLargeBlocks(TargetConformance):
    target = Gguf()
    quantizers = (Q6_K(), Q5_K(), Q4_K(), Q3_K(), Q2_K())
    shapes = ((7, 256), (1, 512))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    write_synthetic(folder, SyntheticCheckpoint(STRUCTURE.inventory("BF16")), shards=2)
    return folder


def recipe(source: Path, output: Path, method: str, **more: Any) -> dict[str, Any]:
    target = {"format": "gguf", **more.pop("target", {})}
    quantization = {"method": method, **more}
    return {
        "source": {"path": str(source)},
        "quantization": quantization,
        "target": target,
        "output": {"path": str(output), "name": "wan"},
        "performance": {"device": "cpu", "num_workers": 2},
    }


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}


def read(path: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """Name -> type and values, as gguf-py reads them."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(reversed(tensor.shape.tolist()))
        found[tensor.name] = (tensor.tensor_type.name, torch.from_numpy(values.astype(np.float32)).view(shape))
    return found


def field(path: Path, key: str) -> Any:
    return gguf.GGUFReader(path).fields[key].contents()


@pytest.mark.parametrize(
    ("method", "number", "most"), [("q8_0", 7, 0.006), ("q5_1", 9, 0.045), ("q4_0", 2, 0.1), ("q6_k", 18, 0.02)]
)
def test_gguf_py_reads_all_of_it(source: Path, tmp_path: Path, method: str, number: int, most: float) -> None:
    converter_core.convert(recipe(source, tmp_path, method))
    (path,) = tmp_path.glob("*.gguf")
    found, given = read(path), tensors_of(source)
    assert found.keys() == given.keys()
    assert field(path, "general.architecture") == "wan"
    assert field(path, "general.quantization_version") == 2
    fallback = method == "q6_k"  # ffn.2 has 320 columns
    assert field(path, "general.file_type") == number
    for name, (kind, values) in found.items():
        linear = name.startswith("blocks.") and name.endswith(".weight") and values.dim() == 2
        expected = "F32" if not linear else "Q8_0" if fallback and name.endswith("ffn.2.weight") else method.upper()
        assert kind == expected, name
        error = (values - given[name].float()).norm() / given[name].float().norm()
        assert error <= (most if linear else 0), name
    assert found["patch_embedding.weight"][1].dim() == 5


def test_a_k_quant_falls_back_and_the_plan_says_so(source: Path, tmp_path: Path) -> None:
    with converter_core.make_plan(recipe(source, tmp_path, "q4_k")) as plan:
        pass
    assert [note for note in plan.notes if "q4_k cannot take" in note] == [
        "q4_k cannot take weights of shape [256, 320]: blocks.0.ffn.2.weight and 1 more get q8_0"
    ]
    assert {group.method for group in plan.outputs[0].groups} == {"q4_k", "q8_0", "none"}


def test_a_mix_is_verified_against_the_source_and_read_back(source: Path, tmp_path: Path) -> None:
    rules = [{"match": "*.self_attn.v", "method": "q6_k"}, {"match": "blocks.0.ffn.*", "method": "q5_1"}]
    converter_core.convert(recipe(source, tmp_path / "mix", "q4_k", rules=rules))
    (path,) = (tmp_path / "mix").glob("*.gguf")
    kinds = {name: kind for name, (kind, _) in read(path).items()}
    assert kinds["blocks.0.self_attn.v.weight"] == "Q6_K"
    assert kinds["blocks.0.ffn.0.weight"] == "Q5_1"
    assert kinds["blocks.1.ffn.2.weight"] == "Q8_0"
    assert kinds["blocks.1.self_attn.q.weight"] == "Q4_K"
    assert field(path, "general.file_type") == 15
    report = converter_core.verify(tmp_path / "mix", source)
    assert report.ok, report.problems
    seen = converter_core.inspect(tmp_path / "mix")
    assert seen.quantized is not None
    assert seen.quantized.formats == {"q4_k": 13, "q8_0": 1, "q6_k": 2, "q5_1": 2} | dict(seen.quantized.formats)
    assert sum(seen.quantized.formats.values()) == 20
    # the same file again, as a source that only changes its layout
    again = recipe(path, tmp_path / "again", "none")
    converter_core.convert(again)
    (copy,) = (tmp_path / "again").glob("*.gguf")
    assert {name: kind for name, (kind, _) in read(copy).items()} == kinds
    for (_, one), (_, other) in zip(read(path).values(), read(copy).values(), strict=True):
        assert torch.equal(one, other)


def test_without_manifest_a_file_of_strangers_is_read(source: Path, tmp_path: Path) -> None:
    converter_core.convert(recipe(source, tmp_path / "made", "q8_0"))
    (path,) = (tmp_path / "made").glob("*.gguf")
    other = tmp_path / "stranger.gguf"
    other.write_bytes(path.read_bytes())
    report = converter_core.verify(other, source)
    assert report.ok, report.problems


@pytest.mark.parametrize(
    ("method", "dtype", "linear", "others", "number"),
    [
        ("q8_0", "float16", "Q8_0", "F16", 7),
        ("q8_0", "keep", "Q8_0", "F32", 7),
        ("none", "keep", "BF16", "F32", 32),
        ("none", "float16", "F16", "F16", 1),
        ("none", "float32", "F32", "F32", 0),
    ],
)
def test_what_is_not_quantized(
    source: Path, tmp_path: Path, method: str, dtype: str, linear: str, others: str, number: int
) -> None:
    converter_core.convert(recipe(source, tmp_path, method, target={"dtype": dtype}))
    (path,) = tmp_path.glob("*.gguf")
    found = read(path)
    assert found["blocks.1.self_attn.q.weight"][0] == linear
    names = ("blocks.0.modulation", "patch_embedding.weight", "blocks.0.self_attn.q.bias", "text_embedding.0.weight")
    assert {found[name][0] for name in names} == {others}
    assert field(path, "general.file_type") == number


@pytest.mark.parametrize(
    ("method", "target", "words"),
    [
        ("int8", {}, "which no GGUF reader knows; choose one of q8_0, q6_k|beside the codes; choose one of q8_0"),
        ("mxfp4", {}, "beside the codes; choose one of q8_0, q6_k"),
        ("q8_0", {"layout": "by_block"}, "one file"),
    ],
)
def test_what_readers_do_not_read_is_refused(
    source: Path, tmp_path: Path, method: str, target: dict[str, str], words: str
) -> None:
    with (
        pytest.raises(PlanError, match=words),
        converter_core.make_plan(recipe(source, tmp_path, method, target=target)),
    ):
        pass


def test_a_model_without_a_known_architecture_needs_one() -> None:
    (reason,) = Gguf().refuse(ModelFacts("wan_t5"), [])
    assert "for wan_t5 none is known here; set target.options.architecture" in reason
    assert not list(Gguf(architecture="t5encoder").refuse(ModelFacts("wan_t5"), []))
    assert (
        Gguf(architecture="t5encoder").extras(ModelFacts("wan_t5"), []).metadata["general.architecture"] == "t5encoder"
    )


def test_another_target_refuses_blocks_of_gguf(source: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"'q8_0', which LightX2V does not read.*or target\.format: gguf"):
        converter_core.make_plan(recipe(source, tmp_path, "q8_0", target={"format": "lightx2v"}))


@pytest.fixture(scope="module")
def transformer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
        pytest.importorskip("accelerate")
        return diffusers


def forward(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out: torch.Tensor = model(
            hidden_states=torch.randn(1, 16, 2, 8, 8, generator=generator),
            timestep=torch.tensor([500]),
            encoder_hidden_states=torch.randn(1, 7, 64, generator=generator),
            return_dict=False,
        )[0]
    return out


@pytest.mark.parametrize(("method", "most"), [("q8_0", 0.02), ("q4_k", 0.2), ("q5_0", 0.2), ("none", 1e-3)])
def test_diffusers_runs_it(transformer: Any, source: Path, tmp_path: Path, method: str, most: float) -> None:
    """``from_single_file`` with its own blocks, against the values that gguf-py decodes and against the source."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    converter_core.convert(recipe(source, tmp_path / "out", method))
    (path,) = (tmp_path / "out").glob("*.gguf")
    config = tmp_path / "config"
    config.mkdir()
    (config / "config.json").write_text(json.dumps(CONFIG))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cls = transformer.WanTransformer3DModel
        packed = cls.from_single_file(
            str(path),
            config=str(config),
            quantization_config=transformer.GGUFQuantizationConfig(compute_dtype=torch.float32),
            torch_dtype=torch.float32,
        ).eval()
        plain = cls.from_config(CONFIG).eval()
    decoded = {name: values for name, (_, values) in read(path).items()}
    plain.load_state_dict(convert_wan_transformer_to_diffusers(decoded))
    made, expected = forward(packed), forward(plain)
    # diffusers decodes blocks in fp16 whatever compute_dtype says, hence the tolerance
    assert float((made - expected).norm() / expected.norm()) <= (3e-3 if method != "none" else 1e-5)
    plain.load_state_dict(
        convert_wan_transformer_to_diffusers({key: value.float() for key, value in tensors_of(source).items()})
    )
    exact = forward(plain)
    error = float((made - exact).norm() / exact.norm())
    assert error <= most
    assert (error > 0) == (method != "none")
