"""Merged weights against an independent merge in float64, in every style and form, and against the chain by hand."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import converter_core
from converter_core.lora import arithmetic

from .conftest import random

RANK = 4
STYLES = {
    # ending of the base key -> what stands before and after it
    "blocks.0.self_attn.q": ("", ".lora_up.weight", ".lora_down.weight"),
    "blocks.0.self_attn.k": ("diffusion_model.", ".lora_up.weight", ".lora_down.weight"),
    "blocks.0.self_attn.v": ("model.diffusion_model.", ".lora_B.weight", ".lora_A.weight"),
    "blocks.0.self_attn.o": ("transformer.", ".lora_B.default.weight", ".lora_A.default.weight"),
    "blocks.0.cross_attn.q": ("model.", ".lora_B", ".lora_A"),
    "blocks.0.cross_attn.k": ("unet.", ".lora.up.weight", ".lora.down.weight"),
    "blocks.0.cross_attn.v": ("base_model.model.", ".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    "lora_unet_blocks_0_cross_attn_k_img": ("", ".lora_up.weight", ".lora_down.weight"),
    "lora_transformer_blocks_1_attn2_add_v_proj": ("", ".lora_up.weight", ".lora_down.weight"),
    "blocks.1.attn1.to_out.0": ("transformer.", ".lora_B.weight", ".lora_A.weight"),
    "blocks.1.attn2.processor.to_q": ("", "_lora.up.weight", "_lora.down.weight"),
    "blocks.1.ffn.net.0.proj": ("base_model.model.", ".lora_B.mine.weight", ".lora_A.mine.weight"),
}
MEANT = {
    "lora_unet_blocks_0_cross_attn_k_img": "blocks.0.cross_attn.k_img",
    "lora_transformer_blocks_1_attn2_add_v_proj": "blocks.1.cross_attn.v_img",
    "blocks.1.attn1.to_out.0": "blocks.1.self_attn.o",
    "blocks.1.attn2.processor.to_q": "blocks.1.cross_attn.q",
    "blocks.1.ffn.net.0.proj": "blocks.1.ffn.0",
}
ALPHAS = (torch.tensor(8), torch.tensor(2.0), torch.tensor([3.0]).bfloat16(), torch.tensor(1.0, dtype=torch.float16))


def test_every_style_of_pairs(lora: Any, merged: Any, weights: Mapping[str, Tensor]) -> None:
    tensors, expected = {}, {}
    for number, (base, (before, up, down)) in enumerate(STYLES.items()):
        weight = weights[MEANT.get(base, base) + ".weight"]
        b, a = random(weight.shape[0], RANK, seed=number), random(RANK, weight.shape[1], seed=number + 99)
        tensors |= {before + base + up: b, before + base + down: a}
        scale = 1.0
        if number < len(ALPHAS):
            tensors[f"{before}{base}.alpha"] = ALPHAS[number]
            scale = float(ALPHAS[number]) / RANK
        expected[MEANT.get(base, base) + ".weight"] = weight.double() + 0.75 * scale * b.double() @ a.double()
    compare(merged([{"path": str(lora(tensors)), "strength": 0.75}]), weights, expected)


def compare(found: Mapping[str, Tensor], before: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """What was to change is the float64 result rounded to bf16, but for rare ties; all else is as it was."""
    assert found.keys() == before.keys()
    for key, tensor in found.items():
        if key not in expected:
            assert torch.equal(tensor, before[key]), key
            continue
        exact = expected[key].reshape(tensor.shape)
        assert not torch.equal(tensor, before[key]), key
        assert tensor.dtype == torch.bfloat16
        rounded = exact.bfloat16()
        assert (tensor != rounded).double().mean() < 0.002, key
        assert torch.allclose(tensor.double(), exact, rtol=2**-8, atol=1e-7), key


def test_other_forms(lora: Any, merged: Any, weights: Mapping[str, Tensor]) -> None:
    """Differences, convolutions, LoHa, LoKr, DoRA: the formulas of forms.py, restated."""
    made: dict[str, Tensor] = {}
    count = 0

    def add(key: str, *shape: int, scale: float = 0.2) -> Tensor:
        nonlocal count
        count += 1
        made[f"diffusion_model.{key}"] = random(*shape, seed=count, scale=scale)
        return made[f"diffusion_model.{key}"].double()

    def was(key: str) -> Tensor:
        return weights[key].double()

    expected = {}
    for ending, key in (
        ("norm3.diff", "norm3.weight"),
        ("norm3.diff_b", "norm3.bias"),
        ("diff_m", "modulation"),
        ("self_attn.norm_q.w_norm", "self_attn.norm_q.weight"),
        ("ffn.0.diff_b", "ffn.0.bias"),
        ("ffn.0.diff", "ffn.0.weight"),
    ):
        name = f"blocks.0.{key}"
        expected[name] = was(name) + 0.5 * add(f"blocks.0.{ending}", *weights[name].shape)

    conv = weights["patch_embedding.weight"]
    up, down = (
        add("patch_embedding.lora_up.weight", 128, RANK, 1, 1, 1),
        add("patch_embedding.lora_down.weight", RANK, *conv.shape[1:]),
    )
    expected["patch_embedding.weight"] = conv.double().reshape(128, -1) + 0.5 * up.reshape(128, -1) @ down.reshape(
        RANK, -1
    )

    def factors(base: str, names: str, *shapes: tuple[int, int]) -> list[Tensor]:
        return [add(f"{base}.{name}", *shape) for name, shape in zip(names.split(), shapes, strict=True)]

    base = "blocks.0.self_attn.q"
    a, b, c, d = factors(base, "hada_w1_a hada_w1_b hada_w2_a hada_w2_b", (128, 4), (4, 128), (128, 4), (4, 128))
    made[f"diffusion_model.{base}.alpha"] = torch.tensor(2.0)
    expected[f"{base}.weight"] = was(f"{base}.weight") + 0.5 * 2 / 4 * (a @ b) * (c @ d)

    base = "blocks.0.self_attn.k"
    a, b = factors(base, "lokr_w1 lokr_w2", (8, 4), (16, 32))
    made[f"diffusion_model.{base}.alpha"] = torch.tensor(7.0)  # means nothing where both are whole
    expected[f"{base}.weight"] = was(f"{base}.weight") + 0.5 * torch.kron(a, b)

    base = "blocks.0.ffn.2"
    a, b, c = factors(base, "lokr_w1 lokr_w2_a lokr_w2_b", (4, 8), (32, 2), (2, 24))
    made[f"diffusion_model.{base}.alpha"] = torch.tensor(3.0)
    expected[f"{base}.weight"] = was(f"{base}.weight") + 0.5 * 3 / 2 * torch.kron(a, b @ c)

    for base, magnitude, strength in (
        ("blocks.1.self_attn.q", "dora_scale", 0.5),
        ("blocks.1.ffn.0", "lora_magnitude_vector", 0.5),
    ):
        weight = was(f"{base}.weight")
        b, a = factors(base, "lora_up.weight lora_down.weight", (weight.shape[0], 4), (4, 128))
        shape = (weight.shape[0], 1) if magnitude == "dora_scale" else (weight.shape[0],)
        m = add(f"{base}.{magnitude}", *shape, scale=1.0).reshape(-1, 1)
        whole = weight + b @ a
        decomposed = m * whole / whole.norm(dim=1, keepdim=True)
        expected[f"{base}.weight"] = weight + strength * (decomposed - weight)

    compare(merged([{"path": str(lora(made)), "strength": 0.5}]), weights, expected)


def fma(factor: float, other: float, total: float) -> float:
    """Exact, and rounded once to float32: to an integer of 24 bits, ties to even."""
    exact = Fraction(factor) * Fraction(other) + Fraction(total)
    if not exact:
        return 0.0
    magnitude = exact.numerator.bit_length() - exact.denominator.bit_length()
    unit = Fraction(2) ** max(magnitude - 24, -149)
    while abs(exact) >= 2**24 * unit:
        unit *= 2
    return float(round(exact / unit) * unit)


def by_hand(begin: Tensor, left: Tensor, right: Tensor) -> Tensor:
    found = begin.float().clone()
    for i in range(begin.shape[0]):
        for j in range(begin.shape[1]):
            total = float(found[i, j])
            for r in range(left.shape[1]):
                total = fma(float(left[i, r]), float(right[r, j]), total)
            found[i, j] = total
    return found


def test_two_loras_are_one_chain_in_their_order(
    lora: Any, recipe: Any, registry: Any, tmp_path: Any, weights: Any
) -> None:
    """In float32, element by element: the scale multiplies B, ranks ascend, the LoRAs follow each other."""
    key = "blocks.1.cross_attn.o"
    pairs = [
        (random(128, 3, seed=n, dtype=torch.float32), random(3, 128, seed=n + 9, dtype=torch.float16)) for n in (1, 2)
    ]
    files = [
        lora({f"{key}.lora_up.weight": b, f"{key}.lora_down.weight": a, f"{key}.alpha": torch.tensor(7.0)}, str(number))
        for number, (b, a) in enumerate(pairs)
    ]
    strengths = (0.3, -1.1)
    loras = [{"path": str(file), "strength": strength} for file, strength in zip(files, strengths, strict=True)]
    asked = recipe(loras)
    asked["target"]["dtype"] = "float32"
    converter_core.convert(asked, registry=registry)
    found = load_file(tmp_path / "out" / "x.safetensors")[f"{key}.weight"]
    rows = slice(5, 7)
    expected = weights[f"{key}.weight"][rows]
    for (b, a), strength in zip(pairs, strengths, strict=True):
        scale = torch.tensor(7 / 3 * strength, dtype=torch.float32)
        expected = by_hand(expected, b[rows] * scale, a.float())
    assert torch.equal(found[rows], expected)


def test_torch_gives_the_bytes_of_the_compiled_loop(monkeypatch: Any) -> None:
    """Sizes beside the blocks of the loop, ties, numbers of very different size, subnormal ones; all by hand too."""
    cases = [
        (random(7, 51, seed=1), random(7, 2, seed=2, dtype=torch.float32), random(2, 51, seed=3, dtype=torch.float32))
    ]
    cases += [(random(2, 3, seed=4, dtype=torch.float16), random(2, 131, seed=5, scale=9), random(131, 3, seed=6))]
    tie = torch.tensor([[1.0, -1.0, 1 + 2**-22]])
    cases += [(tie, torch.tensor([[2.0**-12, 2.0**-30]]), torch.tensor([[2.0**-12] * 3, [2.0**-30] * 3]))]
    tiny = torch.tensor([[2.0**-127, 0.0, 3e38]])
    cases += [(tiny, torch.tensor([[2.0**-75, -1.0]]), torch.tensor([[2.0**-74] * 3, [2.0**-149] * 3]))]
    for begin, left, right in cases:
        left, right = left.float(), right.float()
        compiled = arithmetic.add_product(begin, left, right)
        factor, other = compiled[:, :1].contiguous(), torch.flip(compiled, [1])
        fused = arithmetic.multiply_add(factor, other, compiled)
        with monkeypatch.context() as patch:
            patch.setattr(arithmetic, "_library", None)
            assert torch.equal(arithmetic.add_product(begin, left, right), compiled)
            assert torch.equal(arithmetic.multiply_add(factor, other, compiled), fused)
        assert torch.equal(compiled, by_hand(begin, left, right))


def test_bytes_do_not_depend_on_slabs_and_workers(
    lora: Any, recipe: Any, registry: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    key = "blocks.{}.ffn.0"
    made = {}
    for block in range(2):
        made[f"{key.format(block)}.lora_up.weight"] = random(192, 5, seed=block)
        made[f"{key.format(block)}.lora_down.weight"] = random(5, 128, seed=block + 9)
        made[f"{key.format(block)}.dora_scale"] = random(192, 1, seed=block, scale=1)
        made[f"blocks.{block}.ffn.2.lokr_w1"] = random(8, 8, seed=block + 3)
        made[f"blocks.{block}.ffn.2.lokr_w2"] = random(16, 24, seed=block + 4)
        made[f"blocks.{block}.ffn.2.diff_b"] = random(128, seed=block + 5)
    loras = [lora(made), lora({k: v for k, v in made.items() if "dora" not in k}, "second")]
    written = []
    for number, performance in enumerate(
        ({}, {"max_memory": "96KiB"}, {"num_workers": 2, "max_memory": "256KiB"}, None)
    ):
        if performance is None:
            monkeypatch.setattr(arithmetic, "_library", None)
        asked = recipe(loras, "nvfp4", output=str(number))
        asked["performance"] |= performance or {}
        converter_core.convert(asked, registry=registry)
        written.append((tmp_path / str(number) / "x.safetensors").read_bytes())
    assert len(set(written)) == 1
