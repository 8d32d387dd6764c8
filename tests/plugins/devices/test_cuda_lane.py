"""The order of copies and waits, on a made-up card: its memory is the host's, its stream and events keep a diary."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from converter_plugins.devices import _cuda_stream
from converter_plugins.devices.cuda import Cuda

DEVICE = torch.device("cpu")


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    entries: list[str] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            entries.append(f"stream on {device}")

        def synchronize(self) -> None:
            entries.append("wait for the stream")

    class Event:
        made = 0

        def __init__(self) -> None:
            Event.made += 1
            self.number = Event.made

        def record(self, stream: Stream) -> None:
            assert isinstance(stream, Stream)
            entries.append(f"copy {self.number}")

        def synchronize(self) -> None:
            entries.append(f"wait for copy {self.number}")

    def entered(what: object) -> AbstractContextManager[None]:
        entries.append(f"current: {type(what).__name__}")
        return nullcontext()

    def pinned(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        entries.append(f"pin {tuple(shape)}")
        return torch.empty(tuple(shape), dtype=dtype)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(_cuda_stream, "_pinned", pinned)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    return entries


def test_a_lane_computes_on_its_own_stream_and_waits_for_it_at_the_end(diary: list[str]) -> None:
    with Cuda().stream(DEVICE):
        assert diary == ["stream on cpu", "current: device", "current: Stream"]
        diary.clear()
    assert diary == ["wait for the stream"]


def test_a_staging_buffer_is_given_again_only_when_its_copy_is_done(diary: list[str]) -> None:
    with Cuda().stream(DEVICE) as stream:
        diary.clear()
        first = stream.buffer(8)
        stream.upload(first)
        second = stream.buffer(8)
        stream.upload(second)
        assert diary == ["pin (8,)", "copy 1", "pin (8,)", "copy 2"]
        assert first.data_ptr() != second.data_ptr()
        diary.clear()
        assert stream.buffer(4).data_ptr() == first.data_ptr()
        assert diary == ["wait for copy 1"]
        assert stream.buffer(8).data_ptr() == second.data_ptr()
        assert diary == ["wait for copy 1", "wait for copy 2"]
        stream.buffer(8)
        assert diary == ["wait for copy 1", "wait for copy 2"]


def test_the_last_of_several_copies_from_one_buffer_is_waited_for(diary: list[str]) -> None:
    with Cuda().stream(DEVICE) as stream:
        buffer = stream.buffer(8)
        stream.upload(buffer[:4])
        stream.upload(buffer[4:])
        stream.buffer(8)
        diary.clear()
        stream.buffer(8)
        assert diary == ["wait for copy 2"]


def test_a_larger_buffer_is_pinned_after_the_copy_from_the_smaller_one(diary: list[str]) -> None:
    with Cuda().stream(DEVICE) as stream:
        stream.upload(stream.buffer(8))
        stream.buffer(8)
        diary.clear()
        assert stream.buffer(16).shape == (16,)
        assert diary == ["wait for copy 1", "pin (16,)"]


def test_memory_that_is_not_pinned_is_copied_at_once(diary: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: False)
    with Cuda().stream(DEVICE) as stream:
        diary.clear()
        assert stream.upload(torch.tensor([2.5])).tolist() == [2.5]
        assert diary == []


def test_results_are_complete_on_return_and_stay(diary: list[str]) -> None:
    with Cuda().stream(DEVICE) as stream:
        first = stream.download({"weight": torch.tensor([[1, 2], [3, 4]]).T, "scale": torch.tensor(0.5)})
        assert diary[-3:] == ["pin (2, 2)", "pin ()", "wait for the stream"]
        stream.download({"weight": torch.tensor([[9, 9], [9, 9]]), "scale": torch.tensor(9.0)})
        assert first["weight"].tolist() == [[1, 3], [2, 4]]
        assert first["weight"].is_contiguous()
        assert first["scale"].item() == 0.5
