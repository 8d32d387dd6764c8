from __future__ import annotations

from pathlib import Path

import pytest

from converter_plugins.devices._host_memory import available_memory

MEMINFO = (
    "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n"
)
MACHINE = 8_000_000 * 1024


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(path: str, limit: object, used: int, cache: int = 0, version: int = 2) -> dict[str, str]:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    stat = "inactive_file" if version == 2 else "total_inactive_file"
    return {
        f"{path}/{names[0]}": f"{limit}\n",
        f"{path}/{names[1]}": f"{used}\n",
        f"{path}/memory.stat": f"anon 5\n{stat} {cache}\n",
    }


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert available_memory(tree(tmp_path, {})) == MACHINE


@pytest.mark.parametrize(
    ("limit", "used", "cache", "free"),
    [
        (10**9, 6 * 10**8, 0, 4 * 10**8),
        (10**9, 6 * 10**8, 10**8, 5 * 10**8),
        (10**9, 2 * 10**9, 0, 0),
        ("max", 5, 0, MACHINE),
    ],
)
def test_the_limit_of_a_container(tmp_path: Path, limit: object, used: int, cache: int, free: int) -> None:
    files = {"proc/self/cgroup": "0::/\n", **group("sys/fs/cgroup", limit, used, cache)}
    assert available_memory(tree(tmp_path, files)) == free


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/user.slice/job:1.scope\n",
        **group("sys/fs/cgroup/user.slice", 3000, 1000),
        **group("sys/fs/cgroup/user.slice/job:1.scope", "max", 900),
    }
    assert available_memory(tree(tmp_path, files)) == 2000


def test_version_one(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:devices:/job\n4:cpu,memory:/job\n0::/\n",
        **group("sys/fs/cgroup/memory/job", 10**9, 10**8, 5, version=1),
        **group("sys/fs/cgroup/memory", 2**63 - 4096, 10**8, version=1),
    }
    assert available_memory(tree(tmp_path, files)) == 9 * 10**8 + 5


def test_a_path_of_the_host_falls_back_to_the_mount(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker/ab12\n",
        **group("sys/fs/cgroup/memory", 10**9, 10**8, version=1),
    }
    assert available_memory(tree(tmp_path, files)) == 9 * 10**8


def test_here() -> None:
    assert 2**20 < available_memory() < 2**50
