"""``rounding: gptq``: the rounding that its definition says, whatever the slab, and never worse on held-out tokens."""

import pytest
import torch

from converter_core.api import TensorSpec
from converter_core.errors import Refused
from converter_plugins.quantizers import _gptq_factor, _loops
from converter_plugins.quantizers._gptq import GROUP
from converter_plugins.quantizers._gptq_factor import prepared
from converter_plugins.quantizers.fp8 import Fp8
from converter_plugins.quantizers.int8 import Int8
from converter_plugins.quantizers.mxfp4 import Mxfp4
from converter_plugins.quantizers.nvfp4 import Nvfp4

COLUMNS = 160
SCHEMES = [scheme(rounding="gptq") for scheme in (Int8, Fp8, Mxfp4, Nvfp4)]


def tokens(count, seed=0):
    """Of few directions, some channels much larger than others."""
    mix = torch.randn(COLUMNS // 4, COLUMNS, generator=torch.Generator().manual_seed(9))
    draw = torch.Generator().manual_seed(seed)
    size = torch.randn(COLUMNS, generator=torch.Generator().manual_seed(8)).exp()
    inside = torch.randn(count, COLUMNS // 4, generator=draw) @ mix
    return ((inside + torch.randn(count, COLUMNS, generator=draw)) * size).bfloat16()


def weight_of(dtype, rows=70):
    return (torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(2)) * 0.02).to(dtype)


def output_error(quantizer, parts, weight, given):
    return ((quantizer.dequantize(parts) - weight.float()) @ given.float().t()).square().sum(1)


@pytest.mark.parametrize("quantizer", SCHEMES, ids=lambda one: one.name)
def test_outputs_for_other_tokens_are_much_closer(quantizer, dtype):
    weight, other = weight_of(dtype), tokens(500, seed=1)
    observed = quantizer.observe(weight)
    fit = quantizer.prepare({"tokens": tokens(400)})
    plain, fitted = quantizer.quantize(weight, **observed), quantizer.quantize(weight, **observed, **fit)
    before, after = (output_error(quantizer, parts, weight, other) for parts in (plain, fitted))
    assert after.sum() < 0.5 * before.sum()
    for role, part in plain.items():
        assert (part.dtype, part.shape) == (fitted[role].dtype, fitted[role].shape)


def restated(weight, seen, order, damping, scale):
    """By the textbook: columns in order, each error spread over the rest by the inverse of the remaining H."""
    hessian = (seen.t() @ seen / len(seen)).double()
    hessian += damping * hessian.diagonal().mean() * torch.eye(COLUMNS, dtype=torch.float64)
    left, rest = weight.double().clone(), list(order)
    codes = torch.zeros_like(left)
    while rest:
        column = rest.pop(0)
        codes[:, column] = (left[:, column] / scale).round().clamp(-127, 127)
        error = left[:, column] - codes[:, column] * scale
        if rest:
            remaining = torch.tensor([column, *rest])
            inverse = torch.linalg.inv(hessian[remaining][:, remaining])
            left[:, rest] -= error.unsqueeze(1) * inverse[0, 1:] / inverse[0, 0]
    return codes


def test_equals_the_textbook(monkeypatch):
    monkeypatch.setattr("converter_plugins.quantizers._gptq_factor.DAMPINGS", (0.1, 0.1))
    weight, sample = weight_of(torch.float32, rows=GROUP), tokens(400)
    quantizer = Int8(rounding="gptq")
    fit = quantizer.prepare({"tokens": sample})
    parts = quantizer.fitted(weight, quantizer.rounded(weight), fit)
    seen = sample[:300].float()
    order = seen.square().mean(0).argsort(descending=True).tolist()
    assert order == fit["order"].flip(0).tolist()
    codes = restated(weight, seen, order, 0.1, parts["scale"].view(-1).double())
    agree = (codes == parts["weight"].double()).float().mean()
    assert agree > 0.995  # a tie that float32 decides otherwise moves what comes after it in that row


@pytest.mark.parametrize("quantizer", SCHEMES, ids=lambda one: one.name)
def test_slabs_join_to_the_whole_and_torch_gives_the_same_bytes(quantizer, dtype, monkeypatch):
    weight = weight_of(dtype, rows=2 * GROUP + 11)
    given = {**quantizer.observe(weight), **quantizer.prepare({"tokens": tokens(256)})}
    whole = quantizer.quantize(weight, **given)
    with monkeypatch.context() as patch:
        patch.setattr(_loops, "_library", None)
        slabs = [quantizer.quantize(slab, **given) for slab in weight.split(37)]
    for name in quantizer.counted:
        assert whole.pop(name) == sum(slab[name] for slab in slabs)
    for role, part in whole.items():
        joined = torch.cat([slab[role] for slab in slabs]) if part.dim() else slabs[0][role]
        assert torch.equal(part.reshape(-1).view(torch.uint8), joined.reshape(-1).view(torch.uint8)), role


@pytest.mark.parametrize("quantizer", SCHEMES, ids=lambda one: one.name)
def test_no_row_is_worse_on_the_held_out_tokens(quantizer):
    """Where the tokens that were seen tell nothing of those that are held out."""
    weight, sample = weight_of(torch.float32), tokens(80)
    sample[60:] = torch.randn(20, COLUMNS, generator=torch.Generator().manual_seed(3))
    observed = quantizer.observe(weight)
    plain = quantizer.quantize(weight, **observed)
    fitted = quantizer.quantize(weight, **observed, **quantizer.prepare({"tokens": sample}))
    before, after = (output_error(quantizer, parts, weight, sample[60:]) for parts in (plain, fitted))
    assert (after <= before * (1 + 1e-5)).all()


def test_factors_of_full_rank_are_as_good_as_the_tokens_that_they_are_of(dtype):
    weight, sample, other = weight_of(dtype), tokens(400), tokens(500, seed=1)
    quantizer, held = Int8(rounding="gptq"), tokens(128, seed=2)
    seen = sample[:300].double()
    values, vectors = torch.linalg.eigh(seen.t() @ seen / 300)
    factors = (vectors * values.clamp(min=0).sqrt()).t().float()
    mean_square = seen.square().mean(0).float()
    fit = quantizer.prepare({"tokens": held, "factors": factors, "mean_square": mean_square})
    assert fit.keys() == {"order", "factor", "gains", "held"}
    assert fit["held"].shape == (COLUMNS, 128)  # all of them
    by_tokens = quantizer.prepare({"tokens": torch.cat([sample[:300], held[:100]])})
    assert torch.equal(fit["order"], by_tokens["order"])
    assert torch.allclose(fit["factor"], by_tokens["factor"], rtol=0.02, atol=0.02)
    low = (vectors[:, -8:] * values[-8:].sqrt()).t().float()
    of_low = quantizer.prepare({"tokens": held, "factors": low, "mean_square": mean_square})
    errors = [
        output_error(quantizer, quantizer.quantize(weight, **given), weight, other).sum() for given in ({}, of_low, fit)
    ]
    assert errors[2] < errors[1] < 0.9 * errors[0]


def test_tokens_that_are_all_zero_leave_plain_rounding():
    weight = weight_of(torch.float32)
    quantizer = Int8(rounding="gptq")
    assert prepared({"tokens": torch.zeros(64, COLUMNS)}, True) == {}
    fitted = quantizer.quantize(weight, **quantizer.prepare({"tokens": torch.zeros(64, COLUMNS)}))
    assert torch.equal(fitted["weight"], Int8().quantize(weight)["weight"])


def test_options_that_exclude_each_other():
    for scheme in (Int8, Fp8, Mxfp4, Nvfp4):
        with pytest.raises(Refused, match="rounding: gptq is not what LightX2V's converter does"):
            scheme(numerics="lightx2v", rounding="gptq")
    with pytest.raises(Refused, match="needs symmetric: true"):
        Int8(symmetric=False, rounding="gptq")


def test_a_plan_tells_how_many_tokens_each_width_has():
    def given(tokens, columns, rank=0):
        of_rank = {"factors": TensorSpec("F32", (rank, columns))} if rank else {}
        return {"tokens": TensorSpec("BF16", (tokens, columns)), **of_rank}

    (remark,) = Int8(rounding="gptq").remarks({"a": given(1024, 512), "b": given(400, 96), "c": given(1024, 512)})
    assert remark == "rounding: gptq of int8 knows 300 tokens for inputs of 96, 768 tokens for inputs of 512 channels"
    (remark,) = Nvfp4(rounding="gptq").remarks({"a": given(128, 512, rank=64)})
    assert remark == "rounding: gptq of nvfp4 knows 64 factors for inputs of 512 channels"
    assert list(Int8().remarks({"a": {}})) == []


@pytest.mark.parametrize("by_factors", [False, True])
def test_the_damping_of_a_wide_input_is_found_on_some_of_its_columns(by_factors, monkeypatch):
    given = {"tokens": tokens(400)}
    if by_factors:
        seen = tokens(300, seed=4).float()
        given |= {"factors": seen / 300**0.5, "mean_square": seen.square().mean(0)}
    looked_at = []
    decomposed = torch.linalg.cholesky_ex

    def seen_by(matrix):
        looked_at.append(matrix.clone())
        return decomposed(matrix)

    monkeypatch.setattr(_gptq_factor, "COLUMNS_TRIED", 40)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", seen_by)
    fit = prepared(given, True)
    *trials, whole = looked_at
    assert len(trials) >= 2
    assert {len(trial) for trial in trials} == {40}
    source = given["factors"] * 300**0.5 if by_factors else given["tokens"][:300].float()
    ordered = source[:, fit["order"]].double()
    hessian = ordered.t() @ ordered / 300
    apart = hessian - torch.diag(hessian.diagonal())
    assert torch.allclose(apart, (whole - torch.diag(whole.diagonal())).double(), rtol=1e-3, atol=1e-3)
    damping = float((whole.diagonal() - hessian.diagonal()).mean() / hessian.diagonal().mean())
    assert min(abs(damping - one) for one in _gptq_factor.DAMPINGS) < 1e-4
    some = ordered[:: 1 if by_factors else 4, ::4]
    of_some = some.t() @ some / len(some)
    apart = trials[0] - torch.diag(trials[0].diagonal())
    assert torch.allclose(of_some - torch.diag(of_some.diagonal()), apart.double(), rtol=1e-3, atol=1e-3)


def test_rows_that_stay_nearest_are_counted():
    weight, sample = weight_of(torch.float32), tokens(80)
    sample[60:] = torch.randn(20, COLUMNS, generator=torch.Generator().manual_seed(3))
    quantizer, plain = Int8(rounding="gptq"), Int8()
    parts = quantizer.quantize(weight, **quantizer.prepare({"tokens": sample}))
    same = (parts["weight"] == plain.quantize(weight)["weight"]).all(1)
    assert parts["rows"].item() == len(weight)
    assert parts["nearest_rows"].item() == same.sum() > 0
    told = quantizer.told({"rows": 1000, "nearest_rows": 25})
    assert told.startswith("rounding: gptq of int8: 25 of 1,000 rows (2.5%) were no better")
    assert plain.told({}) == ""
