import torch
from converter_ternary.ternary import Ternary

from converter_core.testing import QuantizerConformance


class TestTernary(QuantizerConformance):
    quantizer = Ternary()
    most_error = 1.0  # three values to a row keep half of it, and less beside an outlier


class TestTernaryWithAnotherThreshold(QuantizerConformance):
    quantizer = Ternary(threshold=0.25)
    most_error = 1.0


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, -3.0, 0.5, 3.5], [0.0, 0.0, 0.0, 0.0]])
    # row 0: mean magnitude 2, so 1 and 0.5 fall below 1.4 and 3.25 is the mean of the rest; codes 1, 0, 1, 2
    parts = Ternary().quantize(weight)
    assert parts["weight"].tolist() == [[1 | 0 << 2 | 1 << 4 | 2 << 6], [1 | 1 << 2 | 1 << 4 | 1 << 6]]
    assert parts["scale"].tolist() == [[3.25], [0.0]]
    assert Ternary().dequantize(parts).tolist() == [[0.0, -3.25, 0.0, 3.25], [0.0, 0.0, 0.0, 0.0]]
