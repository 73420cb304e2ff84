"""Packages from npm, by npm itself (``npm pack``: its proxies, registries and credentials; no install script runs),
each checked against an integrity that stands in this source."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from oubliette.errors import AgentError

log = structlog.get_logger(__name__)

Report = Callable[[str, int, int], None]
"""``(what, done, total)`` in bytes."""

FETCH_SECONDS = 900.0
PROGRESS_SECONDS = 0.3
KILL_SECONDS = 5.0
MAX_MEMBER_BYTES = 512 << 20
_STDERR_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Package:
    """A pinned npm package of which one file is wanted. ``integrity`` as in a package lock."""

    name: str
    version: str
    integrity: str
    size_bytes: int
    member: str

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def file_name(self) -> str:
        """What ``npm pack`` calls it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


async def fetch(package: Package, *, scratch: Path, local: Path, report: Report) -> Path:
    """The package's verified archive: out of the folder ``local`` if it was put there, else by npm into ``scratch``.

    Raises AgentError: no npm, npm failed, or the archive is not the pinned one.
    """
    given = local / package.file_name
    if await trio.to_thread.run_sync(given.is_file):
        await trio.to_thread.run_sync(_verify, given, package)
        return given
    npm = await trio.to_thread.run_sync(shutil.which, "npm")
    if npm is None:
        raise AgentError(
            f"The agent must be fetched once ({package.spec}), and there is no npm on PATH.",
            hint="Install Node.js with npm (apt-get install npm, brew install node) and start again; or run "
            f"`npm pack {package.spec}` elsewhere and put {package.file_name} into {local}.",
            code="not_ready",
        )
    await _pack(npm, package, scratch, local, report)
    archive = scratch / package.file_name
    await trio.to_thread.run_sync(_verify, archive, package)
    report(f"fetched {package.spec}", package.size_bytes, package.size_bytes)
    return archive


async def _pack(npm: str, package: Package, scratch: Path, local: Path, report: Report) -> None:
    cache = scratch / f"npm-{package.file_name}"
    argv = [npm, "pack", package.spec, "--pack-destination", str(scratch), "--cache", str(cache), "--ignore-scripts"]
    env = {**os.environ, "NO_UPDATE_NOTIFIER": "1", "npm_config_fund": "false", "npm_config_audit": "false"}
    errors = bytearray()
    try:
        process = await trio.lowlevel.open_process(
            argv,
            cwd=scratch,  # not where somebody's .npmrc lies
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise AgentError(f"fetch {package.spec}: npm cannot be started: {error}") from error
    try:
        with trio.move_on_after(FETCH_SECONDS) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_collect, process, errors)
                nursery.start_soon(_watch, cache, package, report)
                code = await process.wait()
                nursery.cancel_scope.cancel("npm ended")
    finally:
        with trio.move_on_after(KILL_SECONDS, shield=True):
            await _end(process)
    if patience.cancelled_caught:
        raise AgentError(f"fetch {package.spec}: npm did not end in {FETCH_SECONDS:g} s")
    if code != 0:
        told = [line for line in errors.decode(errors="replace").splitlines() if "npm error" in line] or [
            f"exit {code}"
        ]
        reason = " / ".join(line.removeprefix("npm error ") for line in told[:3])[:500]
        raise AgentError(
            f"fetch {package.spec}: npm failed: {reason}",
            hint=f"Try `npm pack {package.spec}` by hand; its file may be put into {local}.",
            code="unavailable",
            retryable=True,
        )


async def _collect(process: trio.Process, errors: bytearray) -> None:
    if process.stderr is None:
        return
    async for piece in process.stderr:
        errors += piece
        del errors[:-_STDERR_BYTES]


async def _watch(cache: Path, package: Package, report: Report) -> None:
    """npm tells nothing itself; what arrives lies in its cache."""
    while True:
        done = await trio.to_thread.run_sync(_size, cache)
        report(f"fetching {package.spec}", min(done, package.size_bytes), package.size_bytes)
        await trio.sleep(PROGRESS_SECONDS)


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118  os.walk gives strings
            except FileNotFoundError:
                continue  # npm moved it meanwhile
    return total


async def _end(process: trio.Process) -> None:
    """npm and everything it started, gone: a cancelled fetch must not go on."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    if process.stderr is not None:
        await process.stderr.aclose()


def _verify(archive: Path, package: Package) -> None:
    algorithm, _, expected = package.integrity.partition("-")
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).digest()
    if base64.b64encode(digest).decode() != expected:
        raise AgentError(
            f"fetch {package.spec}: {archive.name} is not the package that was pinned.",
            hint=f"Expected {package.integrity}, got {algorithm}-{base64.b64encode(digest).decode()}. "
            "A proxy or registry gave something else.",
        )


def extract(archive: Path, package: Package, target: Path) -> None:
    """Write the one wanted file. Nothing else of the archive is looked at. Raises AgentError when it is not in it."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            member = tar.getmember(package.member)
            source = tar.extractfile(member) if member.isreg() and member.size <= MAX_MEMBER_BYTES else None
            if source is None:
                raise AgentError(f"unpack {package.spec}: {package.member} is not a plain file")
            with source, target.open("xb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except (KeyError, tarfile.TarError, EOFError) as error:
        raise AgentError(f"unpack {package.spec}: {error}") from error
