import torch
from converter_ternary.even_int8 import INNER, EvenInt8

from converter_core.testing import QuantizerConformance


class TestEvenInt8(QuantizerConformance):
    quantizer = EvenInt8()


def test_a_column_of_outliers_costs_the_others_nothing() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    weight[:, 5] *= 256
    even = EvenInt8()
    parts = even.quantize(weight, **even.observe(weight))
    assert parts["column_factor"][5] >= 256
    rest = torch.arange(64) != 5
    error = (even.dequantize(parts) - weight)[:, rest].norm()
    plain = (INNER.dequantize(INNER.quantize(weight)) - weight)[:, rest].norm()
    assert error < plain / 20
