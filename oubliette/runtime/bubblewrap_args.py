"""What bubblewrap is told: the walls of a sandbox as its options, and the programs that take root's rights away inside.

Pure but for a look at how the host lays out ``/usr``. bubblewrap does everything in the order of its options.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from oubliette.errors import EngineError
from oubliette.runtime.base import ContainerSpec, Mount

SETPRIV = "/usr/bin/setpriv"
PRLIMIT = "/usr/bin/prlimit"
ENV = "/usr/bin/env"
WRAPPERS = (SETPRIV, PRLIMIT, ENV)

SHARED_MEMORY_BYTES = 64 << 20
"""Of shared memory, as in Docker."""

_SHARED_MEMORY = "/dev/shm"  # noqa: S108  (places inside the sandbox)
_VAR_TMP = "/var/tmp"  # noqa: S108

HIDDEN_FILES = ("kcore", "keys", "interrupts", "latency_stats", "timer_list", "timer_stats", "sched_debug")
HIDDEN_FOLDERS = ("acpi", "asound", "scsi")
"""Of /proc: facts of the machine rather than of the sandbox, as Docker hides them."""


@dataclass(frozen=True, slots=True)
class Host:
    """How the host lays out what every sandbox sees of it."""

    links: Mapping[str, str]
    """``/bin`` and the like where they are links into /usr, with what they hold."""
    folders: Sequence[str]
    """And where they are directories of their own."""
    hidden_files: Sequence[str]
    hidden_folders: Sequence[str]
    python: Path | None = None
    """The installation to show, where /usr has none. Under its own path, which is built into its libraries."""


def read_host(python: Path | None = None) -> Host:
    """Look at the host. Blocks for a few stat calls."""
    places = [Path("/", name) for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")]
    return Host(
        links={str(path): os.readlink(path) for path in places if path.is_symlink()},  # noqa: PTH115
        folders=[str(path) for path in places if path.is_dir() and not path.is_symlink()],
        hidden_files=[f"/proc/{name}" for name in HIDDEN_FILES if Path("/proc", name).exists()],
        hidden_folders=[f"/proc/{name}" for name in HIDDEN_FOLDERS if Path("/proc", name).is_dir()],
        python=python,
    )


def options(spec: ContainerSpec, mounts: Sequence[Mount], *, root: bool, etc: Path, host: Host) -> list[str]:
    """All options but those with descriptors. ``mounts`` are the spec's with those that protect paths; ``root`` is the
    daemon's case: as root there is no user namespace, and ``command`` drops the rights inside."""
    words = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"]
    if spec.network == "none":
        words.append("--unshare-net")  # Else the shim has put bubblewrap into the sandbox's own network already.
    if not root:
        words += ["--unshare-user", "--disable-userns", "--uid", str(spec.uid), "--gid", str(spec.gid)]
        words += ["--cap-drop", "ALL"]
    # No reaper of bubblewrap's own: it would be the one process inside without the filter, and, being the same user, in
    # reach of /proc/1/mem. The sandbox's first process has to reap, as in Docker.
    words += ["--as-pid-1", "--new-session", "--hostname", spec.hostname, "--clearenv"]
    for name, value in _environment(spec, host).items():
        words += ["--setenv", name, value]
    words += _system(host)
    words += ["--proc", "/proc"]
    for path in host.hidden_files:
        words += ["--ro-bind", "/dev/null", path]
    for path in host.hidden_folders:
        words += ["--size", "4096", "--perms", "0555", "--tmpfs", path, "--remount-ro", path]
    words += ["--dev", "/dev", *_scratch(_SHARED_MEMORY, SHARED_MEMORY_BYTES), "--remount-ro", "/dev"]
    words += ["--ro-bind", str(etc), "/etc", "--perms", "0755", "--dir", "/var", "--symlink", "../tmp", _VAR_TMP]
    python = [Mount(host.python, str(host.python))] if host.python is not None else []
    words += _places(spec, [*mounts, *python])
    # Last, for what lies above was made in it: bubblewrap's own root has no size, and its owner is the user.
    words += ["--remount-ro", "/", "--chdir", spec.working_dir]
    return words


def command(spec: ContainerSpec, *, root: bool) -> list[str]:
    """The sandbox's first program behind the ones that take its rights away."""
    if "=" in spec.argv[0]:
        raise EngineError(f"start container {spec.name}: a program's name cannot hold '='", retryable=False)
    words: list[str] = []
    if root:
        identity = ["--reuid", str(spec.uid), "--regid", str(spec.gid), "--clear-groups"]
        words += [SETPRIV, *identity, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]
    else:
        # Counted for the user in this user namespace alone (since Linux 5.14).
        words += [PRLIMIT, f"--nproc={spec.resources.pids}:{spec.resources.pids}", "--"]
    if "PWD" not in spec.env:
        words += [ENV, "-u", "PWD", "--"]  # bubblewrap sets it.
    return [*words, *spec.argv]


def _environment(spec: ContainerSpec, host: Host) -> dict[str, str]:
    env = dict(spec.env)
    if host.python is not None and "PATH" in env:
        env["PATH"] = f"{env['PATH']}:{host.python}/bin"
    return env


def exec_environment(spec: ContainerSpec, extra: Mapping[str, str] | None, host: Host) -> dict[str, str]:
    """The environment of a further command: the container's own, and ``extra`` over it."""
    return {**_environment(spec, host), **(extra or {})}


def _system(host: Host) -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for path, aim in host.links.items():
        words += ["--symlink", aim, path]
    for path in host.folders:
        words += ["--ro-bind", path, path]
    return words


def _places(spec: ContainerSpec, mounts: Sequence[Mount]) -> list[str]:
    """Scratch space and mounts, outer ones first, so that none hides another one."""
    placed = [(PurePosixPath(target), _scratch(target, size)) for target, size in spec.tmpfs.items()]
    for mount in mounts:
        word = "--ro-bind" if mount.read_only else "--bind"
        placed.append((PurePosixPath(mount.target), [word, str(mount.source), mount.target]))
    placed.sort(key=lambda place: len(place[0].parts))
    bound = [PurePosixPath(mount.target) for mount in mounts]
    words: list[str] = []
    made: set[PurePosixPath] = set()
    for target, option in placed:
        for parent in reversed(target.parents[:-1]):
            # bubblewrap makes missing parents with mode 0700. Not below a mount: what is there is the host's.
            if parent not in made and not any(parent.is_relative_to(mount) for mount in bound):
                words += ["--perms", "0755", "--dir", str(parent)]
                made.add(parent)
        made.add(target)
        words += option
    return words


def _scratch(target: str, size: int) -> list[str]:
    return ["--size", str(size), "--perms", "1777", "--tmpfs", target]
