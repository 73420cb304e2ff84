"""The host's directories behind a container's mounts: made, owned and checked before an engine is told of them."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from oubliette.container.layout import Ground, Place, cache_dir, run_dir
from oubliette.core.model import ContainerRow
from oubliette.errors import ContainerError
from oubliette.runtime.base import Mount

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def prepare(ground: Ground, row: ContainerRow) -> Path:
    """Make what is missing; returns the run directory. Blocks. Raises ContainerError."""
    home, place = ground.home, Place(row.project_id, row.workspace_id)
    inside = run_dir(home, row.container_id)
    try:
        for folder in (home.state_dir(place.project_id, place.key), cache_dir(home, place)):
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            _make_owned(folder, ground.uid, ground.gid)
        inside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        inside.mkdir(exist_ok=True)
        # Readable inside, whoever runs there; on the host its parent keeps everybody out.
        inside.chmod(0o755)
    except OSError as error:
        raise ContainerError(f"start a container: {error.filename}: {error.strerror}") from error
    return inside


def check_sources(mounts: Sequence[Mount]) -> None:
    """Every mount's source is a directory and no link, for an engine would follow one. They all lie in directories that
    no agent can write; this is for the day on which somebody forgets that. Blocks. Raises ContainerError."""
    for mount in mounts:
        try:
            mode = mount.source.lstat().st_mode
        except OSError as error:
            raise ContainerError(f"start a container: {mount.source}: {error.strerror}", retryable=False) from error
        if not stat.S_ISDIR(mode):
            raise ContainerError(f"start a container: {mount.source} is not a directory", retryable=False)


def put_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files that the inside may read, each whole or not at all. Blocks. Raises ContainerError."""
    for name, data in files.items():
        draft = directory / f".{name}.{secrets.token_hex(4)}"
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(data)
            draft.replace(directory / name)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise ContainerError(f"write {directory / name}: {error.strerror}") from error


def forget(ground: Ground, container_id: str) -> None:
    """Delete the container's run directory; nothing of an agent is in it. Blocks. Quiet when it is not there."""
    shutil.rmtree(run_dir(ground.home, container_id), ignore_errors=True)


def forget_others(ground: Ground, container_ids: Collection[str]) -> None:
    """Delete the run directories of all other containers: a daemon may have ended between a row and its directory.
    Blocks."""
    kept = {run_dir(ground.home, container_id).name for container_id in container_ids}
    folder = run_dir(ground.home, "any").parent
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.name not in kept:
                shutil.rmtree(entry, ignore_errors=True)


def _make_owned(folder: Path, uid: int, gid: int) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder, _FOLDER)
    try:
        if os.fstat(descriptor).st_uid != uid:
            os.fchown(descriptor, uid, gid)
    finally:
        os.close(descriptor)
