"""There is no DCU where these run: the build of torch, and what it says of cards, are made up."""

from __future__ import annotations

import pytest
import torch

from converter_core.plugins.registry import load_plugins
from converter_plugins.devices.cuda import Cuda
from converter_plugins.devices.hygon_dcu import HygonDcu


def fake(monkeypatch: pytest.MonkeyPatch, hip: str | None, cards: int) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 2**35))


def test_it_is_offered() -> None:
    assert load_plugins().devices["hygon_dcu"] is HygonDcu
    assert not HygonDcu.last_resort


def test_a_rocm_build_calls_its_cards_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "6.2.41133", cards=2)
    assert list(HygonDcu().devices()) == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert list(Cuda().devices()) == []
    assert HygonDcu().free_memory(torch.device("cuda:0")) == 3 * 2**30


def test_a_rocm_build_without_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "6.2.41133", cards=0)
    assert list(HygonDcu().devices()) == []
    assert "built for ROCm 6.2.41133 but finds no DCU; see what hy-smi says" in HygonDcu().absence()


def test_a_cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, None, cards=0)
    assert list(HygonDcu().devices()) == []
    assert "is a CPU build; use the one that comes with Hygon's DTK" in HygonDcu().absence()


def test_a_torch_that_has_never_heard_of_hip(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, None, cards=1)
    monkeypatch.setattr(torch.version, "cuda", "11.8")
    monkeypatch.delattr(torch.version, "hip")
    assert list(HygonDcu().devices()) == []
    assert len(Cuda().devices()) == 1
