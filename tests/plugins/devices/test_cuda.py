"""There is no card where these run: the build of torch, and what it says of cards, are made up."""

from __future__ import annotations

import pytest
import torch

from converter_core.plugins.registry import load_plugins
from converter_plugins.devices.cuda import Cuda
from converter_plugins.devices.hygon_dcu import HygonDcu


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch):
    """``build(cuda="12.6", cards=2)``: a torch of that build that sees so many cards."""

    def fake(*, cuda: str | None = None, hip: str | None = None, cards: int = 0) -> None:
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((device.index + 1) * 2**30, 2**40))

    return fake


def test_it_is_offered() -> None:
    assert load_plugins().devices["cuda"] is Cuda
    assert not Cuda.last_resort


def test_a_cuda_build_with_cards(build) -> None:
    build(cuda="12.6", cards=2)
    assert list(Cuda().devices()) == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert list(HygonDcu().devices()) == []
    assert "is a CUDA build; use cuda" in HygonDcu().absence()
    assert Cuda().free_memory(torch.device("cuda:1")) == 2**31
    assert Cuda().slab_bytes(torch.device("cuda:0")) >= 5120 * 13824 * 2


def test_a_cuda_build_without_cards(build) -> None:
    build(cuda="12.6")
    assert list(Cuda().devices()) == []
    assert "built for CUDA 12.6 but finds no card; see what nvidia-smi says" in Cuda().absence()


def test_a_rocm_build_is_not_cuda(build) -> None:
    build(hip="6.2", cards=1)
    assert list(Cuda().devices()) == []
    assert "is a ROCm build; use hygon_dcu" in Cuda().absence()


def test_a_cpu_build(build) -> None:
    build()
    assert list(Cuda().devices()) == []
    assert "is a CPU build; install one for CUDA" in Cuda().absence()
