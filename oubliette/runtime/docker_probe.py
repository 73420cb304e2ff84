"""Trying an engine: does it answer, confine, and really mount what it is told to?

Snap's Docker mounts an empty directory in place of what lies outside the home, an engine on another machine has other
files, a rootless one has other owners, and SELinux or a virtual machine may keep a container from dialling a socket in
a mount. None of that shows in an error, so a container of the base image reads, writes and dials, as an agent's will.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from oubliette.errors import ContainerError, EngineError, RuntimeUnavailable
from oubliette.runtime import images
from oubliette.runtime.base import LABEL_PREFIX, ContainerSpec, Mount, Resources, RuntimeReport
from oubliette.runtime.docker_api import EngineApi
from oubliette.runtime.docker_spec import Abilities

if TYPE_CHECKING:
    from oubliette.runtime.docker import Docker

PROBE_SECONDS = 60.0
CLEAN_SECONDS = 10.0
ROOT_DAEMON_UID = 10001
"""As whom the container of a root daemon's probe runs."""

_SCRIPT = """
import socket, sys
text = open("/probe/in/file").read()
open("/probe/out/file", "w").write(text)
dialled = socket.socket(socket.AF_UNIX)
try:
    dialled.connect("/probe/in/sock")
except OSError as error:
    open("/probe/out/file", "w").write(f"{text} {error.strerror}")
"""


async def probe(docker: Docker, api: EngineApi, scratch: Path | None) -> RuntimeReport:
    """As ``Runtime.probe``."""
    try:
        with trio.fail_after(PROBE_SECONDS):
            return await _try(docker, api, scratch)
    except ContainerError as error:
        return RuntimeReport(docker.name, ok=False, reason=error.message, hint=error.hint)
    except trio.TooSlowError:
        return RuntimeReport(docker.name, ok=False, reason=f"The engine did not pass its trial in {PROBE_SECONDS:g} s.")
    except OSError as error:
        return RuntimeReport(docker.name, ok=False, reason=f"The trial could not be prepared: {error}")


async def _try(docker: Docker, api: EngineApi, scratch: Path | None) -> RuntimeReport:
    version = await api.version()
    able = await docker.abilities()
    if str(version.get("Os", "linux")).lower() != "linux":
        raise RuntimeUnavailable("The engine runs Windows containers.", hint="Switch it to Linux containers.")
    if not able.seccomp:
        raise RuntimeUnavailable(
            "The engine runs containers without a seccomp filter.",
            hint="Remove seccomp-profile=unconfined from its configuration, or use a kernel with seccomp.",
        )
    with _trial_directory(scratch) as trial:
        known = [image for image in images.DEFAULT_IMAGES.values() if await images.look(api, image) is not None]
        if known:
            mounts = await _from_inside(docker, api, known[0], trial)
        else:
            mounts = await _from_outside(docker, api, trial)
    details = {
        **able.details,
        "endpoint": str(api.endpoint()),
        "api": str(version.get("ApiVersion", "")),
        "mounts": mounts,
        "enforces": ", ".join(_enforces(able)),
    }
    return RuntimeReport(docker.name, ok=True, version=str(version.get("Version", "")), details=details)


def _enforces(able: Abilities) -> list[str]:
    held = {"memory": able.memory_limit, "cpus": able.cpu_limit, "pids": able.pids_limit}
    return [name for name, is_held in held.items() if is_held]


@dataclass(frozen=True, slots=True)
class _Trial:
    """A directory with a file to be read, a socket to be dialled and a place to be written, and the secret in it."""

    path: Path
    text: str
    uid: int
    gid: int
    listener: socket.socket

    def spec(self, image: str, argv: list[str]) -> ContainerSpec:
        return ContainerSpec(
            name=f"oubliette-probe-{self.text}",
            image=image,
            argv=argv,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
            mounts=[Mount(self.path / "in", "/probe/in"), Mount(self.path / "out", "/probe/out", read_only=False)],
            labels={LABEL_PREFIX + "probe": self.text},
            working_dir="/",
            uid=self.uid,
            gid=self.gid,
            resources=Resources(memory_bytes=128 << 20, cpus=1, pids=32),
            tmpfs={},
        )


@contextmanager
def _trial_directory(scratch: Path | None) -> Iterator[_Trial]:
    path = Path(tempfile.mkdtemp(prefix="oubliette-probe-", dir=scratch))
    is_root = os.geteuid() == 0
    uid, gid = (ROOT_DAEMON_UID, ROOT_DAEMON_UID) if is_root else (os.geteuid(), os.getegid())
    text = secrets.token_hex(8)
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.chmod(0o755)
        (path / "in").mkdir()
        (path / "out").mkdir()
        (path / "in" / "file").write_text(text)
        if is_root:
            os.chown(path / "out", uid, gid)
        _bind(listener, path / "in" / "sock")
        listener.listen(1)
        yield _Trial(path, text, uid, gid, listener)
    finally:
        listener.close()
        shutil.rmtree(path, ignore_errors=True)


def _bind(listener: socket.socket, path: Path) -> None:
    """Bind, however long the path is; and let the container's user dial, who need not be the one that binds."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        short = f"/proc/self/fd/{directory}/{path.name}"
        listener.bind(short if Path(f"/proc/self/fd/{directory}").exists() else str(path))
    finally:
        os.close(directory)
    path.chmod(0o666)


async def _from_inside(docker: Docker, api: EngineApi, image: str, trial: _Trial) -> str:
    spec = trial.spec(image, ["python3", "-I", "-c", _SCRIPT])
    try:
        await docker.create(spec)
        await docker.start(spec.name)
        await api.call("POST", f"/containers/{spec.name}/wait", what=f"wait for container {spec.name}")
        said = (await docker.logs(spec.name, tail=5)).decode("utf-8", "replace").strip()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEAN_SECONDS):
            await docker.remove(spec.name)
    written = trial.path / "out" / "file"
    if not written.exists():
        raise RuntimeUnavailable(
            f"The engine does not mount this host's directories: {said or 'what was written inside is not outside'}",
            hint="Snap's Docker mounts below your home only, and a remote engine has other files; use an engine here.",
        )
    if written.stat().st_uid != trial.uid:
        raise RuntimeUnavailable(
            "The engine maps users: files written inside belong to somebody else outside.",
            hint="Rootless engines and userns-remap are not supported; use another engine or the bubblewrap runtime.",
        )
    text, _, problem = written.read_text().partition(" ")
    if text != trial.text:
        raise RuntimeUnavailable("The engine mounts something else than this host's directories.")
    if problem:
        raise RuntimeUnavailable(
            f"A container cannot dial a socket in a mounted directory: {problem}.",
            hint="SELinux, or an engine in a virtual machine, prevents it; use the bubblewrap runtime.",
        )
    return "read, written and dialled from inside"


async def _from_outside(docker: Docker, api: EngineApi, trial: _Trial) -> str:
    """Without an image nothing can run: the engine itself reads the file, through the mount of a container of an empty
    image that is never started."""
    image = f"oubliette-probe:{trial.text}"
    what = "read a mounted file back"
    spec = trial.spec(image, ["none"])
    try:
        await _import_empty(api, image, what)
        await docker.create(spec)
        content = await _archive(api, f"/containers/{spec.name}/archive", "/probe/in/file", what)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEAN_SECONDS):
            await docker.remove(spec.name)
            if await images.look(api, image) is not None:
                await api.call("DELETE", f"/images/{image}", what=what, params={"force": 1})
    if content != trial.text.encode():
        raise RuntimeUnavailable(
            "The engine does not mount this host's directories.",
            hint="Snap's Docker mounts below your home only, and a remote engine has other files; use an engine here.",
        )
    return "read back by the engine (no image yet to try from inside)"


async def _import_empty(api: EngineApi, image: str, what: str) -> None:
    name, tag = images.split_reference(image)
    params = {"fromSrc": "-", "repo": name, "tag": tag}
    tar = io.BytesIO(bytes(2 * tarfile.BLOCKSIZE))
    async with api.stream(
        "POST", "/images/create", what=what, params=params, content=images.FileChunks(tar), seconds=PROBE_SECONDS
    ) as answer:
        await answer.aread()


async def _archive(api: EngineApi, path: str, inside: str, what: str) -> bytes:
    async with api.stream("GET", path, what=what, params={"path": inside}, seconds=PROBE_SECONDS) as answer:
        packed = await answer.aread()
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            first = archive.next()
            content = archive.extractfile(first) if first is not None else None
            return content.read() if content is not None else b""
    except tarfile.TarError as error:
        raise EngineError(f"{what}: the engine's archive cannot be read: {error}") from error
