"""The ONLY module (with ``walk`` and ``copy``) that touches agents' trees from the host.

Everything goes by directory descriptor, follows no link, reads regular files only and is bounded in size and time.
All functions block: call them in a thread. Paths below a root are relative, ``/``-separated; roots and their parents
are ours. Errors of the file system pass as OSError unless said otherwise.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from oubliette.errors import RequestError
from oubliette.project.globs import Glob
from oubliette.project.walk import DIRECTORY_FLAGS, Bounds, Entered, Found, open_below, open_root, walk

MAX_PATH = 4096
MAX_DEPTH = 200
"""Of a path that a caller names. Trees may be deeper."""

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_BATCH = 10_000
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


@dataclass(frozen=True, slots=True)
class Content:
    """The first bytes of a regular file and its full size."""

    data: bytes
    size_bytes: int

    @property
    def truncated(self) -> bool:
        return len(self.data) < self.size_bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """``kind``: file, directory, symlink or other. ``path`` is safe to send: undecodable bytes are replaced."""

    path: str
    kind: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Sorted by path; ``truncated``: there may be more."""

    entries: list[Entry]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Size:
    """What a tree takes on disk. ``complete`` False: at least that."""

    size_bytes: int
    entries: int
    complete: bool


def parts_of(path: str) -> tuple[str, ...]:
    """The names of a relative path. Raises RequestError invalid_argument for anything that could lead out."""
    parts = tuple(part for part in path.split("/") if part not in {"", "."})
    bad = path.startswith("/") or "\0" in path or ".." in parts or not parts or len(parts) > MAX_DEPTH
    if bad or len(path.encode("utf-8", "replace")) > MAX_PATH or any("\ud800" <= char <= "\udfff" for char in path):
        raise RequestError(
            "invalid_argument", "This is not a path in the workspace.", field="path", hint="Relative, without “..”."
        )
    return parts


def read(root: Path, path: str, max_bytes: int) -> Content:
    """The beginning of a regular file.

    Raises RequestError invalid_argument (a path that leads out), not_found (nothing there, or not a regular file: a
    link looks like nothing, so that nothing can be learnt about where it leads).
    """
    *folders, name = parts_of(path)
    missing = RequestError("not_found", "There is no such file in the workspace.", field="path")
    try:
        with open_root(root) as top, open_below(top, folders) as folder:
            # The open of a device or FIFO is avoided by looking first, and harmless when it wins the race.
            if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise missing
            descriptor = os.open(name, _READ_FLAGS, dir_fd=folder)
    except OSError as error:
        raise missing from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise missing
        data = file.read(max_bytes)
        return Content(data, max(status.st_size, len(data)))


def list_files(root: Path, pattern: str = "**", *, max_entries: int = 1000, bounds: Bounds | None = None) -> Listing:
    """What matches a glob, directories included; ``.git`` only when the pattern names it.

    What lies too deep to be asked for (``MAX_DEPTH``, ``MAX_PATH``) is left out, and said to be: an agent chooses how
    long its names and paths are.

    Raises RequestError invalid_argument for a bad pattern, not_found when there is no tree.
    """
    glob = Glob(pattern)
    bounds = bounds or Bounds(entries=200_000, seconds=10)
    found: list[Entry] = []
    try:
        with open_root(root) as top:
            for entry in _matching(top, glob, bounds):
                if len(found) >= max_entries:
                    bounds.complete = False
                    break
                found.append(entry)
    except FileNotFoundError as error:
        raise RequestError("not_found", "The workspace has no files yet.") from error
    return Listing(sorted(found, key=lambda entry: entry.path), truncated=not bounds.complete)


def _matching(top: int, glob: Glob, bounds: Bounds) -> Iterator[Entry]:
    def enter(path: Sequence[str], name: str) -> bool:
        if not glob.may_match_below(path, name):
            return False
        near = len(path) + 1 < MAX_DEPTH
        bounds.complete = bounds.complete and near
        return near

    for event in walk(top, bounds, enter):
        entry: Entry | None = None
        if isinstance(event, Found):
            if glob.matches(event.path, event.name) and not (glob.hides_git and event.name == ".git"):
                kind = _KINDS.get(stat.S_IFMT(event.status.st_mode), "other")
                size = event.status.st_size if kind == "file" else 0
                entry = Entry(_shown([*event.path, event.name]), kind, size)
        elif isinstance(event, Entered) and event.path and glob.matches(event.path[:-1], event.path[-1]):
            entry = Entry(_shown(event.path), "directory", 0)
        if entry is None:
            continue
        if len(entry.path) > MAX_PATH:
            bounds.complete = False
        else:
            yield entry


def _shown(names: Sequence[str]) -> str:
    return "/".join(names).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def measure(root: Path, bounds: Bounds | None = None) -> Size:
    """How much the tree takes on disk; files with several names count once. An absent tree takes nothing."""
    bounds = bounds or Bounds(entries=2_000_000, seconds=20)
    total = entries = 0
    linked: set[tuple[int, int]] = set()
    with suppress(FileNotFoundError), open_root(root) as top:
        for event in walk(top, bounds):
            if not isinstance(event, (Entered, Found)):
                continue
            entries += 1
            status = event.status
            if isinstance(event, Found) and status.st_nlink > 1:
                if (status.st_dev, status.st_ino) in linked:
                    continue
                linked.add((status.st_dev, status.st_ino))
            total += status.st_blocks * 512
    return Size(total, entries, bounds.complete)


def is_empty(root: Path) -> bool:
    """Whether nothing is in the directory; True when there is none."""
    with suppress(FileNotFoundError), open_root(root) as top, os.scandir(top) as entries:
        return next(entries, None) is None
    return True


def make_directory(path: Path, *, owner: int | None = None) -> None:
    """Make a directory (and its parents, which stay ours) with mode 0700; fine when it is there and is a directory.

    ``owner`` is the uid and gid to give it to; needs root.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    with open_root(path) as descriptor:
        if owner is not None:
            os.fchown(descriptor, owner, owner)


def give(root: Path, owner: int, bounds: Bounds | None = None) -> None:
    """Make ``owner`` (uid and gid) the owner of everything in the tree, links themselves included; needs root.

    Raises OSError when the bounds did not suffice.
    """
    bounds = bounds or Bounds(entries=20_000_000, seconds=1800)
    with open_root(root) as top:
        for event in walk(top, bounds):
            if isinstance(event, Found):
                os.chown(event.name, owner, owner, dir_fd=event.descriptor, follow_symlinks=False)
            elif isinstance(event, Entered):
                os.fchown(event.descriptor, owner, owner)
    if not bounds.complete:
        raise OSError(f"give {root} to {owner}: the tree is too large, or a part of it cannot be opened")


def write_file(root: Path, path: str, data: bytes, *, owner: int | None = None) -> None:
    """Write a file that is not there yet (0600) in a directory that is. Raises FileExistsError."""
    *folders, name = parts_of(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with (
        open_root(root) as top,
        open_below(top, folders) as folder,
        os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file,
    ):
        if owner is not None:
            os.fchown(file.fileno(), owner, owner)
        file.write(data)


def delete(root: Path, *, max_seconds: float = float("inf")) -> bool:
    """Delete a tree, or whatever lies in its place, however deep it is. True: it is gone; False: time is up.

    A directory that is not empty has its own directories moved up into the root, one level at a time: no recursion, no
    long paths, two descriptors, and what is done stays done. Raises OSError when something cannot be deleted.
    """
    until = time.monotonic() + max_seconds
    try:
        with open_root(root) as top:
            _unlock(top)
            prefix = f".deleting-{secrets.token_hex(6)}-"
            number = 0
            while names := _names(top):
                for name in names:
                    if time.monotonic() > until:
                        return False
                    number = _clear(top, name, prefix, number)
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        root.unlink(missing_ok=True)
        return True
    root.rmdir()
    return True


def _clear(top: int, name: str, prefix: str, number: int) -> int:
    """Delete one entry of the root, after moving its directories up. Returns the next free number."""
    try:
        status = os.stat(name, dir_fd=top, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=top)
            return number
        with _opened(top, name) as folder:
            while inner := _names(folder):
                for one in inner:
                    number = _lift(folder, one, top, f"{prefix}{number}", number)
        os.rmdir(name, dir_fd=top)
    except FileNotFoundError:
        pass
    return number


def _lift(folder: int, name: str, top: int, new_name: str, number: int) -> int:
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
            return number
        try:
            os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=top)
        except PermissionError:
            # Moving a directory rewrites its "..": it must be writable itself.
            with _opened(folder, name):
                os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=top)
    except FileNotFoundError:
        return number
    return number + 1


@contextmanager
def _opened(parent: int, name: str) -> Iterator[int]:
    """A directory that is going to be deleted, made accessible to us whatever its mode was."""
    try:
        descriptor = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
    except PermissionError:
        # No descriptor that reads can be had, and chmod by name would follow a link that replaced it.
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            Path(f"/proc/self/fd/{handle}").chmod(0o700)
        finally:
            os.close(handle)
        descriptor = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
    try:
        _unlock(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _unlock(descriptor: int) -> None:
    if os.fstat(descriptor).st_mode & 0o700 != 0o700:
        os.fchmod(descriptor, 0o700)


def _names(descriptor: int) -> list[str]:
    """Some names of a directory, from its beginning; empty when nothing is in it."""
    with os.scandir(descriptor) as entries:
        return [entry.name for entry in islice(entries, _BATCH)]
