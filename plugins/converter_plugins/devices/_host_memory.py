"""How much memory this process may still take: the machine's, or its container's where that is less."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

# A version-1 group without a limit has one of about 2^63 bytes; it is never the smaller one.
_FILES = {
    # cgroup version: (limit, usage, the line of memory.stat that counts the page cache not in use)
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_memory(root: Path = Path("/")) -> int:
    """Bytes. ``root``: where ``proc`` and ``sys`` are."""
    fields = _table(root / "proc/meminfo")
    return min([fields["MemAvailable:"] * 1024, *_cgroups(root)])


def _cgroups(root: Path) -> list[int]:
    """What each of our control groups, and each above it, still has to give."""
    left: list[int] = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return left
    for line in lines:  # hierarchy:controllers:path, e.g. "0::/user.slice" or "4:memory:/docker/ab12"
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version, mount = (1, root / "sys/fs/cgroup/memory") if controllers else (2, root / "sys/fs/cgroup")
        # in a container the path may be the host's: then only the mount itself, the last of these, is there
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            left += _left(mount / group.relative_to("/"), *_FILES[version])
    return left


def _left(group: Path, limit: str, usage: str, cache: str) -> list[int]:
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        reclaimable = _table(group / "memory.stat").get(cache, 0)
    except OSError:
        return []
    return [] if most == "max" else [max(0, int(most) - used + reclaimable)]


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
