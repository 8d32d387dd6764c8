from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from converter_core.api.tensors import typed
from converter_core.api.values import TensorSpec
from converter_core.plugins.registry import load_plugins
from converter_plugins.devices.cpu import Cpu

CPU = torch.device("cpu")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_it_is_offered_as_the_last_resort() -> None:
    assert load_plugins().devices["cpu"] is Cpu
    backend = Cpu()
    assert backend.last_resort
    assert list(backend.devices()) == [CPU]
    assert backend.free_memory(CPU) > 2**20
    assert backend.slab_bytes(CPU) == 256 * 5120 * 2


def test_the_buffer_starts_at_a_page_and_is_reused() -> None:
    with Cpu().stream(CPU) as stream:
        small = stream.buffer(10)
        assert (small.dtype, small.shape) == (torch.uint8, (10,))
        large = stream.buffer(3 * mmap.PAGESIZE + 1)
        address = large.data_ptr()
        assert large.numel() == 3 * mmap.PAGESIZE + 1
        assert address % mmap.PAGESIZE == 0
        assert stream.buffer(100).data_ptr() == address
        assert stream.buffer(0).numel() == 0


def test_what_is_read_into_the_buffer_comes_through() -> None:
    with Cpu().stream(CPU) as stream:
        buffer = stream.buffer(8)
        buffer.copy_(torch.tensor([1, 0, 2, 0, 3, 0, 4, 0], dtype=torch.uint8))
        weight = stream.upload(typed(buffer, TensorSpec("I16", (2, 2))))
        assert weight.tolist() == [[1, 2], [3, 4]]
        down = stream.download({"weight": weight.T, "scale": torch.tensor(0.5)})
        assert down["weight"].is_contiguous()
        assert down["weight"].tolist() == [[1, 3], [2, 4]]
        assert down["scale"].item() == 0.5


def test_a_buffer_that_was_outgrown_can_still_be_read() -> None:
    with Cpu().stream(CPU) as stream:
        old = stream.buffer(4).fill_(7)
        stream.buffer(10 * mmap.PAGESIZE).fill_(1)
        assert old.tolist() == [7, 7, 7, 7]


@pytest.mark.usefixtures("three_threads")
def test_one_thread_in_a_lane_and_as_before_after_it() -> None:
    with Cpu().stream(CPU):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(KeyError, match="stop"), Cpu().stream(CPU):
        raise KeyError("stop")
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_lanes_that_overlap_leave_everything_as_it_was() -> None:
    second_is_in, first_is_out = threading.Event(), threading.Event()
    seen: list[int] = []

    def first() -> None:
        with Cpu().stream(CPU):
            assert second_is_in.wait(30)
            seen.append(torch.get_num_threads())
        first_is_out.set()

    def second() -> None:
        with Cpu().stream(CPU):
            second_is_in.set()
            assert first_is_out.wait(30)
            seen.append(torch.get_num_threads())

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result()
    assert seen == [1, 1]
    assert torch.get_num_threads() == 3
    assert threads_of_a_new_thread() == 3
