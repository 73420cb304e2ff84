"""Protected paths as mounts: read-only, and with every ancestor up to the workspace a mount point.

A read-only bind alone is undone by renaming its parent; a mount point cannot be renamed (SECURITY.md). An engine
resolves the source of a bind on the host and follows links on the way, and the tree below a workspace is written by
agents: so each source is first walked component by component, following none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from oubliette.errors import ContainerError
from oubliette.runtime.base import Mount

WALK_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC if hasattr(os, "O_PATH") else os.O_RDONLY | os.O_NOFOLLOW


def with_protection(mounts: Sequence[Mount], protected_paths: Iterable[str]) -> list[Mount]:
    """``mounts`` and those that protect ``protected_paths`` (absolute paths inside), outer ones first.

    A path that does not exist is left out: there is nothing to protect, and its creation shows in the check at the end
    of a turn. Raises ContainerError when a path is in no writable mount, or is reached through a symbolic link.
    Nothing else may write in the tree meanwhile. Blocks for a few stat calls.
    """
    added: dict[str, Mount] = {}
    for path in protected_paths:
        inside = PurePosixPath(path)
        holder = _holder(mounts, inside)
        relative = inside.relative_to(holder.target)
        if ".." in relative.parts or not relative.parts:
            raise ContainerError(f"protect {path}: it is not below {holder.target}", retryable=False)
        if not check_no_links(holder.source, relative):
            continue
        for depth in range(1, len(relative.parts) + 1):
            part = PurePosixPath(*relative.parts[:depth])
            target = str(PurePosixPath(holder.target) / part)
            last = depth == len(relative.parts)
            earlier = added.get(target)
            added[target] = Mount(holder.source / part, target, read_only=last or bool(earlier and earlier.read_only))
    _keep_read_only_below(added)
    return [*mounts, *sorted(added.values(), key=lambda mount: mount.target.count("/"))]


def _keep_read_only_below(added: dict[str, Mount]) -> None:
    """An ancestor of one protected path may lie in another one: a writable mount point there would open it again."""
    closed = [PurePosixPath(target) for target, mount in added.items() if mount.read_only]
    for target, mount in added.items():
        if any(parent in closed for parent in PurePosixPath(target).parents):
            added[target] = Mount(mount.source, target, read_only=True)


def _holder(mounts: Sequence[Mount], inside: PurePosixPath) -> Mount:
    holders = [mount for mount in mounts if inside.is_relative_to(mount.target) and not mount.read_only]
    if not holders:
        raise ContainerError(f"protect {inside}: no writable mount holds it", retryable=False)
    return max(holders, key=lambda mount: len(mount.target))


def check_no_links(base: Path, relative: PurePosixPath) -> bool:
    """True when ``base/relative`` exists, False when it does not. Raises ContainerError when a component below ``base``
    is a symbolic link or is no directory where one is needed."""
    where = base
    descriptor = os.open(base, WALK_FLAGS & ~os.O_NOFOLLOW)
    try:
        for name in relative.parts:
            where = where / name
            try:
                inner = os.open(name, WALK_FLAGS, dir_fd=descriptor)
            except FileNotFoundError:
                return False
            except OSError as error:  # ELOOP without O_PATH, ENOTDIR
                raise ContainerError(f"protect {where}: {error.strerror}", retryable=False) from error
            os.close(descriptor)
            descriptor = inner
            mode = os.fstat(inner).st_mode
            if mode & 0o170000 == 0o120000:
                raise ContainerError(
                    f"protect {where}: it is a symbolic link, which may lead anywhere",
                    hint="Name the place it points to, or make it a real file or directory.",
                    retryable=False,
                )
    finally:
        os.close(descriptor)
    return True
