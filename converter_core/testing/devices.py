"""The kit for devices."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch

from ..api.devices import DeviceBackend, DeviceStream
from ..api.tensors import raw, same
from .options import check_class
from .samples import OneThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class DeviceConformance(OneThread):
    """Subclass it with ``device = MyDevice()``. Where there is none, only what it says of its absence is tested."""

    device: DeviceBackend

    def test_it_is_a_plugin(self) -> None:
        check_class(self.device, DeviceBackend)

    def test_absence_is_told(self) -> None:
        found = self.device.devices()
        told = self.device.absence()
        assert found or (isinstance(told, str) and told), "no device, and absence() does not say why"

    def test_devices_are_told_apart(self) -> None:
        found = self._devices()
        assert all(isinstance(device, torch.device) for device in found), f"not all are torch devices: {found}"
        assert len(set(map(str, found))) == len(found), f"one is there twice: {found}"
        assert list(found) == list(self.device.devices()), "another order when asked again"

    def test_sizes_are_positive(self) -> None:
        for device in self._devices():
            for what, size in (
                ("free_memory", self.device.free_memory(device)),
                ("slab_bytes", self.device.slab_bytes(device)),
            ):
                assert size > 0, f"{what} of {device} is {size!r}; must be bytes"

    def test_buffers_are_host_memory(self) -> None:
        for device in self._devices():
            with self.device.stream(device) as stream:
                for nbytes in (1, 4096, 100_003, 0, 64):
                    buffer = stream.buffer(nbytes)
                    made = (buffer.dtype, tuple(buffer.shape), buffer.device.type, buffer.is_contiguous())
                    expected = (torch.uint8, (nbytes,), "cpu", True)
                    assert made == expected, f"buffer({nbytes}) on {device} is {made}, must be {expected}"

    def test_bytes_come_through(self) -> None:
        for device in self._devices():
            with self.device.stream(device) as stream:
                for seed in range(5):
                    found = _through(stream, device, seed)
                    assert not found, f"{device}: {found}"

    def test_results_outlive_the_next_slab(self) -> None:
        """What ``download`` gave is written while the stream goes on; a copy, unless it was the host's all along."""
        for device in self._devices():
            with self.device.stream(device) as stream:
                host = stream.buffer(4096)
                host.fill_(1)
                first = stream.download({"weight": stream.upload(host) + 1})["weight"]
                expected = first.clone()
                second = stream.buffer(4096)
                second.fill_(7)
                stream.download({"weight": stream.upload(second) + 1})
                assert same(expected, first), f"{device}: the next slab writes over what was downloaded"

    def test_threads_have_lanes_of_their_own(self) -> None:
        for device in self._devices():
            filled = threading.Barrier(4)

            def work(seed: int, device: torch.device = device, filled: threading.Barrier = filled) -> str:
                with self.device.stream(device) as stream:
                    return _through(stream, device, seed, lambda: filled.wait(60))

            with ThreadPoolExecutor(4) as pool:
                for found in pool.map(work, range(4)):
                    assert not found, f"{device}, four streams at once: {found}"

    def test_a_lane_can_be_entered_again(self) -> None:
        for device in self._devices():
            for _ in range(3):
                with self.device.stream(device) as stream:
                    found = _through(stream, device, 1)
                    assert not found, f"{device}: {found}"

    def _devices(self) -> Sequence[torch.device]:
        found = self.device.devices()
        if not found:
            pytest.skip(self.device.absence())
        return found


def _through(stream: DeviceStream, device: torch.device, seed: int, pause: Callable[[], object] = bool) -> str:
    """What is wrong with bytes that went to the device and back; empty: nothing. pause: when the buffer is filled."""
    values = torch.randint(0, 256, (3000, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    host = stream.buffer(values.numel())
    raw(host)[:] = raw(values)
    pause()
    there = stream.upload(host)
    if there.device.type != device.type:
        return f"upload leaves it on {there.device}"
    turned = there.view(values.shape).t()
    back = stream.download({"weight": turned, "scale": there.sum().float()})
    if set(back) != {"weight", "scale"}:
        return f"download of weight and scale gives {sorted(back)}"
    if any(part.device.type != "cpu" or not part.is_contiguous() for part in back.values()):
        return "download must give contiguous tensors on the host"
    if not same(back["weight"], values.t().contiguous()):
        return "other bytes come back"
    if back["scale"].item() != values.sum().item():
        return "a result is downloaded before it is there"
    return ""
