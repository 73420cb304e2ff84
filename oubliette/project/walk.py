"""Walking a tree that an agent may change at the same time: no links followed, bounded, any depth.

The way down opens each directory by name beneath the one it was listed in, without following links; the way up opens
``..`` and compares what it finds with what was left. So a tree of any depth needs two descriptors and no long paths,
and an agent that moves a directory meanwhile ends the walk instead of leading it elsewhere.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_LOOK_AT_CLOCK_EVERY = 64


class TreeChangedError(OSError):
    """A directory was moved away while it was walked."""


@dataclass(slots=True)
class Bounds:
    """What a walk may cost. ``complete`` turns False when anything was left out, ``exhausted`` True when for cost."""

    entries: int = 1_000_000
    seconds: float = 60.0
    complete: bool = True
    exhausted: bool = False
    _seen: int = field(init=False, default=0)
    _until: float = field(init=False)

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.seconds

    def stop(self) -> None:
        """End the walk at its next step; may be called from another thread."""
        self.entries = -1
        self.exhausted = True
        self.complete = False

    def spent(self) -> bool:
        """Whether one more entry is too many."""
        look = self._seen % _LOOK_AT_CLOCK_EVERY == 0
        self._seen += 1
        if self._seen <= self.entries and not (look and time.monotonic() > self._until):
            return False
        self.complete = False
        self.exhausted = True
        return True


@dataclass(frozen=True, slots=True)
class Entered:
    """A directory, before anything in it. ``descriptor`` is good until the walk goes on; ``path`` is below the root."""

    descriptor: int
    path: Sequence[str]
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class Found:
    """Something that is no directory, or one that is not entered; ``descriptor`` and ``path`` are of where it is."""

    descriptor: int
    path: Sequence[str]
    name: str
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class Left:
    """A directory, after everything in it."""

    descriptor: int
    status: os.stat_result


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
def open_below(root: int, names: Sequence[str]) -> Iterator[int]:
    """The descriptor of a directory below ``root``, no link followed; no name may be ``..`` or hold a slash."""
    descriptor = os.dup(root)
    try:
        for name in names:
            below = os.open(name, DIRECTORY_FLAGS, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def walk(
    root: int, bounds: Bounds, enter: Callable[[Sequence[str], str], bool] = lambda _path, _name: True
) -> Iterator[Entered | Found | Left]:
    """Visit ``root`` and everything below, parents first; ends early, without ``Left``, when ``bounds`` are spent.

    ``enter(path, name)`` decides whether a directory is gone into. One that cannot be opened is left out. Raises
    TreeChangedError. The generator holds descriptors until it ends or is closed.
    """
    walker = _Walker(os.dup(root), bounds, enter)
    try:
        yield from walker.run()
    finally:
        os.close(walker.here)


class _Walker:
    def __init__(self, here: int, bounds: Bounds, enter: Callable[[Sequence[str], str], bool]) -> None:
        self.here = here
        self._bounds = bounds
        self._enter = enter
        self._path: list[str] = []
        self._levels: list[tuple[os.stat_result, list[str]]] = []
        """For each directory from the root to here: what it was when entered, and which of its own are still to do."""

    def run(self) -> Iterator[Entered | Found | Left]:
        yield from self._arrive()
        while self._levels:
            if self._bounds.exhausted:
                return
            status, names = self._levels[-1]
            if names:
                if self._descend(names.pop()):
                    yield from self._arrive()
                continue
            yield Left(self.here, status)
            self._levels.pop()
            if self._levels:
                self._ascend(self._levels[-1][0])

    def _arrive(self) -> Iterator[Entered | Found]:
        status = os.fstat(self.here)
        names: list[str] = []
        self._levels.append((status, names))
        yield Entered(self.here, self._path, status)
        with os.scandir(self.here) as entries:
            for entry in entries:
                if self._bounds.spent():
                    return
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:
                    self._bounds.complete = False
                    continue
                if stat.S_ISDIR(found.st_mode) and self._enter(self._path, entry.name):
                    names.append(entry.name)
                else:
                    yield Found(self.here, self._path, entry.name, found)
        names.sort(reverse=True)

    def _descend(self, name: str) -> bool:
        try:
            below = os.open(name, DIRECTORY_FLAGS, dir_fd=self.here)
        except OSError:
            self._bounds.complete = False
            return False
        try:
            os.stat(".", dir_fd=below)  # readable but not searchable: there would be no way back up
        except OSError:
            os.close(below)
            self._bounds.complete = False
            return False
        self._move(below)
        self._path.append(name)
        return True

    def _ascend(self, expected: os.stat_result) -> None:
        self._move(os.open("..", DIRECTORY_FLAGS, dir_fd=self.here))
        self._path.pop()
        if not os.path.samestat(os.fstat(self.here), expected):
            raise TreeChangedError("the tree was changed while it was walked")

    def _move(self, to: int) -> None:
        os.close(self.here)
        self.here = to
