"""The host's directories behind a container's mounts: made, owned and checked before an engine is told of them."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from oubliette.container.layout import Ground, Place, cache_dir, mounts, run_dir
from oubliette.errors import ContainerError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def prepare(ground: Ground, place: Place, container_id: str) -> None:
    """Make what is missing and check every mount's source. Blocks. Raises ContainerError.

    The engine follows symbolic links in a source; ours are all in directories that no agent can write, and none may be
    a link all the same.
    """
    home = ground.home
    try:
        for folder in (home.state_dir(place.project_id, place.key), cache_dir(home, place)):
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            _make_owned(folder, ground.uid, ground.gid)
        inside = run_dir(home, container_id)
        inside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Readable inside, whoever runs there; on the host its parent keeps everybody out.
        inside.mkdir(mode=0o755, exist_ok=True)
        inside.chmod(0o755)
        for mount in mounts(ground, place, container_id):
            if not stat.S_ISDIR(mount.source.lstat().st_mode):
                raise ContainerError(f"start a container: {mount.source} is not a directory", retryable=False)
    except FileNotFoundError as error:
        raise ContainerError(f"start a container: {error.filename} is missing", retryable=False) from error
    except OSError as error:
        raise ContainerError(f"start a container: {error.filename}: {error.strerror}") from error


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


def _make_owned(folder: Path, uid: int, gid: int) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder, _FOLDER)
    try:
        if os.fstat(descriptor).st_uid != uid:
            os.fchown(descriptor, uid, gid)
    finally:
        os.close(descriptor)
