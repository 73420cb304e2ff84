"""Copying a tree that an agent has written: for forks, templates and exports. Part of ``files``' promise.

Regular files (by reflink where the file system can), directories and links as links. FIFOs, sockets and devices are
skipped, setuid, setgid and sticky bits dropped, hard links become files of their own. Blocks: call it in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from oubliette.errors import RequestError
from oubliette.project.walk import DIRECTORY_FLAGS, Bounds, Entered, Found, Left, open_root, walk

_FICLONE = 0x40049409
"""linux/fs.h: share the blocks of another file."""

_CHUNK = 1 << 20
_ROOM_BYTES = 64 << 20
_ROOM_FILES = 1024
"""After so much it is asked again whether there is room."""
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Copied:
    """``size_bytes`` counts data that was written or shared; ``skipped`` what cannot or must not be copied."""

    files: int = 0
    size_bytes: int = 0
    skipped: int = 0


def copy_tree(
    source: Path,
    target: Path,
    *,
    max_bytes: int,
    owner: int | None = None,
    bounds: Bounds | None = None,
    leave_out: Callable[[Sequence[str], str], bool] = lambda _path, _name: False,
    room: Callable[[], None] = lambda: None,
) -> Copied:
    """Copy what is in ``source`` into the empty directory ``target`` (made when absent), which nobody else writes yet.

    ``owner`` is the uid and gid of everything made; needs root. ``leave_out(path, name)``: files that are not copied.
    ``room`` is asked first and now and then, and raises when the disk is too full to go on.

    Raises RequestError too_large when it is more than ``max_bytes`` or than the bounds allow, OSError, what ``room``
    raises; what was made so far is the caller's to delete.
    """
    bounds = bounds or Bounds(entries=5_000_000, seconds=900)
    copied = Copied()
    room()
    asked_at = (0, 0)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open_root(source) as root, open_root(target) as top:
        here = os.dup(top)
        try:
            for event in walk(root, bounds):
                if isinstance(event, Found) and leave_out(event.path, event.name):
                    copied.skipped += 1
                elif isinstance(event, Found):
                    _copy_entry(event, here, copied, max_bytes, owner, bounds, room)
                    at = (copied.files // _ROOM_FILES, copied.size_bytes // _ROOM_BYTES)
                    if at != asked_at:
                        room()
                        asked_at = at
                elif isinstance(event, Left):
                    os.fchmod(here, stat.S_IMODE(event.status.st_mode) & 0o777 | 0o700)
                    os.utime(here, ns=(event.status.st_atime_ns, event.status.st_mtime_ns))
                    here = _replaced(here, os.open("..", DIRECTORY_FLAGS, dir_fd=here))
                elif isinstance(event, Entered) and event.path:
                    name = event.path[-1]
                    os.mkdir(name, 0o700, dir_fd=here)
                    here = _replaced(here, os.open(name, DIRECTORY_FLAGS, dir_fd=here))
                    if owner is not None:
                        os.fchown(here, owner, owner)
                elif owner is not None:
                    os.fchown(here, owner, owner)
        finally:
            os.close(here)
    if bounds.exhausted:
        raise RequestError("too_large", "The workspace holds too many files to copy.")
    return copied


def is_git_lock(path: Sequence[str], name: str) -> bool:
    """What a git command that runs at the moment holds: copied, it would lock the copy for ever. (No ref may be called
    so.)"""
    return name.endswith(".lock") and ".git" in path


def _replaced(old: int, new: int) -> int:
    os.close(old)
    return new


def _copy_entry(
    found: Found,
    here: int,
    copied: Copied,
    max_bytes: int,
    owner: int | None,
    bounds: Bounds,
    room: Callable[[], None],
) -> None:
    name = found.name
    if stat.S_ISLNK(found.status.st_mode):
        try:
            leads_to = os.readlink(name, dir_fd=found.descriptor)
        except OSError:  # gone, or no link any more
            copied.skipped += 1
            return
        os.symlink(leads_to, name, dir_fd=here)
        if owner is not None:
            os.chown(name, owner, owner, dir_fd=here, follow_symlinks=False)
        return
    if not stat.S_ISREG(found.status.st_mode):
        copied.skipped += 1
        return
    try:
        source = os.open(name, _READ_FLAGS, dir_fd=found.descriptor)
    except OSError:
        copied.skipped += 1
        return
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            copied.skipped += 1
            return
        target = os.open(name, _WRITE_FLAGS, 0o600, dir_fd=here)
        try:
            if owner is not None:
                os.fchown(target, owner, owner)
            copied.size_bytes += _copy_data(source, target, max_bytes - copied.size_bytes, bounds, room)
            os.fchmod(target, stat.S_IMODE(status.st_mode) & 0o777)
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(target)
    finally:
        os.close(source)
    copied.files += 1


def _copy_data(source: int, target: int, max_bytes: int, bounds: Bounds, room: Callable[[], None]) -> int:
    """Returns how many bytes; holes stay holes."""
    too_large = RequestError("too_large", "The workspace is too large to copy.")
    if os.fstat(source).st_blocks * 512 > max_bytes + _CHUNK:
        raise too_large
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        pass  # another file system, or one that cannot share blocks: copy
    else:
        return os.fstat(target).st_blocks * 512
    size = os.fstat(source).st_size
    offset = written = 0
    while offset < size and not bounds.exhausted:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
            end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        os.lseek(target, start, os.SEEK_SET)
        offset = start
        while offset < end and not bounds.exhausted:
            data = os.pread(source, min(_CHUNK, end - offset), offset)
            if not data:  # it became shorter while it was read
                end = size = offset
                break
            offset += len(data)
            written += len(data)
            if written > max_bytes:
                raise too_large
            if written % _ROOM_BYTES < len(data):
                room()
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
    os.ftruncate(target, size)
    return written
