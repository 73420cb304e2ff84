"""Control groups for one sandbox: memory, pids and cpus, version 1 and 2, where the kernel lets us.

Standard library only (``sandbox_shim`` uses it). What cannot be had is left out and said so: an ordinary user has
control groups only where systemd has delegated some. All of it is short reads and writes of /sys.
"""

# Without pathlib: see linux.py.
# ruff: noqa: PTH103, PTH106

from __future__ import annotations

import os

PARENT = "oubliette"
CPU_PERIOD_MICROSECONDS = 100_000


def open_groups(tag: str, memory_bytes: int, cpus: float, pids: int) -> tuple[list[str], list[str]]:
    """Make the groups of a sandbox: their directories, and which of ``memory``, ``cpus``, ``pids`` they enforce."""
    unified = _unified_parent()
    if unified is not None:
        return _open_unified(f"{unified}/{PARENT}", tag, memory_bytes, cpus, pids)
    directories: list[str] = []
    enforced: list[str] = []
    settings = {
        "memory": ("memory", {"memory.limit_in_bytes": memory_bytes}),
        "pids": ("pids", {"pids.max": pids}),
        "cpu": (
            "cpus",
            {
                "cpu.cfs_period_us": CPU_PERIOD_MICROSECONDS,
                "cpu.cfs_quota_us": int(cpus * CPU_PERIOD_MICROSECONDS),
            },
        ),
    }
    mounted = _mounted_controllers()
    for controller, (limit, values) in settings.items():
        if controller not in mounted:
            continue
        directory = f"{mounted[controller]}/{PARENT}/{tag}"
        if _make(directory) and all(_write(f"{directory}/{name}", value) for name, value in values.items()):
            # Memory and swap together, where swap is counted: else what does not fit is merely swapped out.
            _write(f"{directory}/memory.memsw.limit_in_bytes", memory_bytes)
            directories.append(directory)
            enforced.append(limit)
        else:
            remove_groups([directory])
    return directories, enforced


def join_groups(directories: list[str], pid: int) -> bool:
    """Move the process there; False when one of them does not take it."""
    return all(_write(f"{directory}/cgroup.procs", pid) for directory in directories)


def remove_groups(directories: list[str]) -> bool:
    """Remove them as far as they are empty. Absent ones are fine. False when one is left: somebody still dies in it."""
    gone = True
    for directory in directories:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            gone = False
    return gone


def usage(directories: list[str]) -> dict[str, int]:
    """``memory_bytes`` (without the page cache that the kernel would give back) and ``pids``, where counted."""
    found: dict[str, int] = {}
    for directory in directories:
        memory = _number(f"{directory}/memory.current")
        if memory is None:
            memory = _number(f"{directory}/memory.usage_in_bytes")
        if memory is not None:
            found["memory_bytes"] = max(0, memory - _reclaimable(f"{directory}/memory.stat"))
        pids = _number(f"{directory}/pids.current")
        if pids is not None:
            found["pids"] = pids
    return found


def _open_unified(parent: str, tag: str, memory_bytes: int, cpus: float, pids: int) -> tuple[list[str], list[str]]:
    directory = f"{parent}/{tag}"
    if not _make(parent):
        return [], []
    for controller in ("memory", "pids", "cpu"):
        _write(f"{parent}/cgroup.subtree_control", f"+{controller}")
    if not _make(directory):
        return [], []
    limits: dict[str, tuple[str, int | str]] = {
        "memory": ("memory.max", memory_bytes),
        "pids": ("pids.max", pids),
        "cpus": ("cpu.max", f"{int(cpus * CPU_PERIOD_MICROSECONDS)} {CPU_PERIOD_MICROSECONDS}"),
    }
    enforced = [limit for limit, (name, value) in limits.items() if _write(f"{directory}/{name}", value)]
    _write(f"{directory}/memory.swap.max", 0)
    if not enforced:
        remove_groups([directory])
        return [], []
    return [directory], enforced


def _unified_parent() -> str | None:
    """The version 2 directory below which we may make groups and move processes; None where there is none.

    A process may be moved only by who may write ``cgroup.procs`` of the nearest group above both places: so it has to
    be one above our own. The topmost of them, because a group with processes in it gives no controllers to others.
    """
    mount = next((line[1] for line in _mounts() if line[2] == "cgroup2"), None)
    if mount is None or not _read(f"{mount}/cgroup.controllers"):
        return None
    own = next((line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    parts = [part for part in own.split("/") if part]
    for depth in range(len(parts) + 1):
        directory = "/".join([mount, *parts[:depth]])
        if os.access(directory, os.W_OK) and os.access(f"{directory}/cgroup.procs", os.W_OK):
            for controller in ("memory", "pids", "cpu"):
                _write(f"{directory}/cgroup.subtree_control", f"+{controller}")
            if "memory" in _read(f"{directory}/cgroup.subtree_control"):
                return directory
    return None


def _mounted_controllers() -> dict[str, str]:
    """Version 1: controller to mount point."""
    return {option: line[1] for line in _mounts() if line[2] == "cgroup" for option in line[3].split(",")}


def _mounts() -> list[list[str]]:
    return [line.split() for line in _read("/proc/self/mounts").splitlines()]


def _make(directory: str) -> bool:
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError:
        return False
    return True


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _number(path: str) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _reclaimable(path: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _write(path: str, value: int | str) -> bool:
    """False when the kernel does not take it. Never creates the file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, str(value).encode())
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
