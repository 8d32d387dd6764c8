import torch
from converter_tinyrt import ROWS_OF_INT8, TinyRT

from converter_core.api import WeightContext, WeightInfo
from converter_core.testing import TargetConformance
from converter_plugins.quantizers.fp8 import Fp8
from converter_plugins.quantizers.int8 import Int8

NAME = "blocks.0.ffn.0.weight"
CONTEXT = WeightContext(WeightInfo(NAME, {}), NAME, None, ROWS_OF_INT8)


class TestTinyRT(TargetConformance):
    target = TinyRT()
    quantizers = (Int8(), Int8(per_channel=False))
    refused = (Int8(symmetric=False), Fp8())


def test_codes_by_hand() -> None:
    codes = torch.tensor([[-127, -1, 0, 1, 127]], dtype=torch.int8)
    stored = TinyRT().encode(CONTEXT, {"weight": codes, "scale": torch.ones(1, 1)})
    assert stored["weight"].dtype == torch.uint8
    assert stored["weight"].tolist() == [[1, 127, 128, 129, 255]]


def test_names() -> None:
    assert TinyRT().key(CONTEXT, "weight") == "tinyrt/blocks/0/ffn/0/weight#q"
    assert TinyRT().key(CONTEXT, "scale") == "tinyrt/blocks/0/ffn/0/weight#s"
