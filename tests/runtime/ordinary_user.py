"""Runs a program as an ordinary user of this machine, for tests that root starts.

The user is a bare number: nothing of it has to be cleaned up. Python, its packages and this tree may lie below a
folder that is root's own (`/root/.pyenv`); the program is given a mount namespace in which they are reachable under
their usual names, and a /dev/net/tun as udev makes it, for everybody. On the host itself nothing changes.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

USER = 54321
ROOT = Path(__file__).resolve().parents[2]


def as_ordinary_user(argv: Sequence[str], *, own: Path, readable: Iterable[Path] = ()) -> list[str]:
    """The command that runs ``argv`` as USER (as whoever we are, when that is not root). ``own`` becomes USER's."""
    if os.geteuid() != 0:
        return [*argv]
    own.mkdir(parents=True, exist_ok=True)
    os.chown(own, USER, USER)
    needed = [ROOT, Path(sys.prefix), Path(sys.base_prefix), Path(pytest.__file__).parents[1], own, *readable]
    identity = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--"]
    script = "\n".join([*_reachable(needed), *_TUN, f"exec {shlex.join([*identity, *argv])}"])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script]


_TUN = (
    "mkdir -p /dev/net",
    "mount -t tmpfs -o mode=755 none /dev/net",
    "mknod -m 666 /dev/net/tun c 10 200",
)


def _reachable(paths: Iterable[Path]) -> list[str]:
    """Shell commands after which each path can be reached by everybody: a closed folder above it becomes an open, empty
    one with nothing but these in it."""
    below: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(path.resolve() for path in paths):
        closed = next((above for above in reversed(path.parents) if not above.stat().st_mode & stat.S_IXOTH), None)
        if closed is not None:
            below.setdefault(closed, []).append(path)
    # A mount of its own to keep them in meanwhile, on a folder that every system has and no test uses.
    lines = ["mount -t tmpfs none /mnt"]
    kept: dict[Path, str] = {}
    for path in (path for group in below.values() for path in group):
        kept[path] = f"/mnt/{len(kept)}"
        lines += [f"mkdir {kept[path]}", f"mount --bind {shlex.quote(str(path))} {kept[path]}"]
    for closed, group in below.items():
        lines.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(str(closed))}")
        for path in sorted(group, key=lambda path: len(path.parts)):
            place = shlex.quote(str(path))
            lines += [f"mkdir -p {place}", f"mount --bind {kept[path]} {place}"]
    return lines
