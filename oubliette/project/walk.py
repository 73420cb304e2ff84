"""Walking a tree that an agent may change at the same time: one descriptor, no links followed, bounded.

The way down opens each directory by name beneath the one it was listed in, without following links; the way up opens
``..`` and compares what it finds with what was left. So a tree of any depth needs one descriptor and no long paths, and
an agent that moves a directory meanwhile ends the walk instead of leading it elsewhere.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TreeChangedError(OSError):
    """A directory was moved away while it was walked."""


@dataclass(slots=True)
class Bounds:
    """What a walk may cost. ``complete`` turns False when something was left out."""

    entries: int = 1_000_000
    seconds: float = 60.0
    complete: bool = True
    _until: float = field(init=False)

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.seconds

    def take(self, entries: int = 1) -> bool:
        """Whether that many more entries may be looked at."""
        self.entries -= entries
        if self.entries < 0 or time.monotonic() > self._until:
            self.complete = False
            return False
        return True


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory while it is visited. ``descriptor`` is good until the walk goes on.

    ``path`` are the names below the root. ``others`` is everything that is no directory; ``directories`` will be
    entered after this, unless they are taken out of the list.
    """

    descriptor: int
    path: tuple[str, ...]
    status: os.stat_result
    others: list[tuple[str, os.stat_result]]
    directories: list[str]


@dataclass(frozen=True, slots=True)
class Left:
    """Everything below the directory has been visited; ``descriptor`` is the directory's own again."""

    descriptor: int
    status: os.stat_result


@dataclass(slots=True)
class _Level:
    status: os.stat_result
    directories: list[str]


@contextmanager
def open_root(path: Path) -> Iterator[int]:
    """The descriptor of a tree's root. Its parents are ours; the root itself may have been replaced by a link.

    Raises FileNotFoundError, NotADirectoryError (also for a link).
    """
    descriptor = os.open(path, DIRECTORY_FLAGS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_below(root: int, names: tuple[str, ...]) -> Iterator[int]:
    """The descriptor of a directory below ``root``; ``names`` have been checked by ``parts_of``."""
    descriptor = os.dup(root)
    try:
        for name in names:
            below = os.open(name, DIRECTORY_FLAGS, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def walk(root: int, bounds: Bounds) -> Iterator[Directory | Left]:
    """Visit ``root`` and everything below, parents first; ``Left`` follows when a directory is done.

    Directories that cannot be opened are left out (``bounds.complete``). Raises TreeChangedError.
    """
    current = os.dup(root)
    levels: list[_Level] = []
    path: list[str] = []
    try:
        level = yield from _enter(current, path, bounds)
        levels.append(level)
        while True:
            level = levels[-1]
            if level.directories and bounds.complete_or_going():
                name = level.directories.pop()
                try:
                    below = os.open(name, DIRECTORY_FLAGS, dir_fd=current)
                except OSError:
                    bounds.complete = False
                    continue
                os.close(current)
                current = below
                path.append(name)
                levels.append((yield from _enter(current, path, bounds)))
                continue
            yield Left(current, level.status)
            levels.pop()
            if not levels:
                return
            above = os.open("..", DIRECTORY_FLAGS, dir_fd=current)
            os.close(current)
            current = above
            if not os.path.samestat(os.fstat(current), levels[-1].status):
                raise TreeChangedError("the tree was changed while it was walked")
            path.pop()
    finally:
        os.close(current)
