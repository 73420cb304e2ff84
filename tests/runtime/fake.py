"""A runtime without walls: its containers are plain processes of the host. It passes the lifecycle half of the contract
suite, so what is tested against it meets the same behaviour as a real one. Other rooms' tests use it too.

The mounts are seen through the words: a mount's target in argv, environment and working directory is replaced by its
source. What needs a wall (uids, read-only mounts, networks, limits) is not here, and `enforced` says so.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

from oubliette.errors import ContainerExited, EngineError, ImageMissing, RuntimeUnavailable
from oubliette.runtime import process
from oubliette.runtime.base import (
    ContainerInfo,
    ContainerSpec,
    ExecResult,
    Progress,
    ReportProgress,
    RuntimeReport,
)

MARK = "OUBLIETTE_FAKE"
"""Variable that every process of a container carries, so that a stop finds those that left its process group."""
GONE_SECONDS = 5.0

BeforeHook = Callable[[str, str], Awaitable[None]]


@dataclass
class _Container:
    spec: ContainerSpec
    engine_id: str
    log: Path
    mark: str
    process: trio.Process | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class FakeRuntime:
    """In-memory Runtime over real subprocesses.

    ``before(operation, name)`` is awaited before each operation: a test can fail it, delay it or kill something there.
    ``images`` are those that are there; ``pullable`` those that can be had.
    """

    name = "fake"

    def __init__(self, place: Path, *, before: BeforeHook | None = None) -> None:
        self.place = place
        self.before = before
        self.images = {"oubliette-base:0.1"}
        self.pullable: set[str] = set()
        self.report = RuntimeReport("fake", ok=True, version="1")
        self.containers: dict[str, _Container] = {}
        self._numbers = itertools.count(1)

    async def probe(self) -> RuntimeReport:
        return self.report

    async def ensure_image(self, image: str, report: ReportProgress) -> str:
        await self._enter("ensure_image", image)
        if image not in self.images:
            if image not in self.pullable:
                raise ImageMissing(f"The image {image} cannot be pulled: there is none.")
            for done in (50, 100):
                report(Progress("pulling", done, 100, "bytes"))
            self.images.add(image)
        return f"sha256:{image.encode().hex():0>64}"

    async def build_image(self, context: Path, tag: str, report: ReportProgress) -> str:
        await self._enter("build_image", tag)
        report(Progress("building", 1, 1, "steps", "FROM scratch"))
        self.images.add(tag)
        return await self.ensure_image(tag, report)

    async def create(self, spec: ContainerSpec) -> str:
        await self._enter("create", spec.name)
        existing = self.containers.get(spec.name)
        if existing is not None:
            if dict(existing.spec.labels) != dict(spec.labels):
                raise EngineError(f"create container {spec.name}: the name is taken", code="conflict", retryable=False)
            return existing.engine_id
        engine_id = secrets.token_hex(8)
        log = self.place / f"{spec.name}-{next(self._numbers)}.log"
        log.touch()
        self.containers[spec.name] = _Container(spec, engine_id, log, f"{MARK}={engine_id}")
        await trio.lowlevel.checkpoint()
        return engine_id

    async def start(self, name: str) -> None:
        await self._enter("start", name)
        box = self.containers.get(name)
        if box is None:
            raise EngineError(f"start container {name}: there is none of that name", code="not_found", retryable=False)
        if box.running:
            return
        with box.log.open("ab") as log:
            try:
                started = await trio.lowlevel.open_process(
                    [self._inside(box, word) for word in box.spec.argv],
                    env=self._environment(box),
                    cwd=self._cwd(box, None),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise EngineError(f"start container {name}: {error}", retryable=False) from error
        box.process = started
        if name not in self.containers:  # removed while the thread above was starting it
            await self._kill(box)
            raise EngineError(f"start container {name}: it was removed", code="not_found", retryable=False)
        await trio.lowlevel.checkpoint()

    async def stop(self, name: str, grace_seconds: float) -> None:
        await self._enter("stop", name)
        box = self.containers.get(name)
        if box is None or box.process is None:
            return
        if box.running:
            os.killpg(box.process.pid, signal.SIGTERM)
            with trio.move_on_after(grace_seconds):
                await box.process.wait()
        await self._kill(box)

    async def remove(self, name: str) -> None:
        await self._enter("remove", name)
        box = self.containers.get(name)
        if box is None:
            return
        await self._kill(box)
        self.containers.pop(name, None)
        box.log.unlink(missing_ok=True)
        await trio.lowlevel.checkpoint()

    async def inspect(self, name: str) -> ContainerInfo | None:
        await self._enter("inspect", name)
        box = self.containers.get(name)
        return None if box is None else self._info(box)

    async def list(self, labels: Mapping[str, str]) -> Sequence[ContainerInfo]:
        await self._enter("list", "")
        return [
            self._info(box)
            for box in self.containers.values()
            if all(box.spec.labels.get(key) == value for key, value in labels.items())
        ]

    async def exec(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
        stdin: bytes = b"",
        timeout_seconds: float = 120,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        await self._enter("exec", name)
        box = self.containers.get(name)
        if box is None or not box.running:
            raise ContainerExited(f"exec in container {name}: it does not run")
        try:
            return await process.run(
                [self._inside(box, word) for word in argv],
                env=self._environment(box, env),
                cwd=self._cwd(box, working_dir),
                stdin=stdin,
                timeout_seconds=timeout_seconds,
                max_output_bytes=max_output_bytes,
            )
        except RuntimeUnavailable as error:
            return ExecResult(127, b"", str(error).encode(), 0, len(str(error)))

    async def logs(self, name: str, *, tail: int = 200, max_bytes: int = 1 << 20) -> bytes:
        await self._enter("logs", name)
        box = self.containers.get(name)
        if box is None:
            raise EngineError(f"read the logs of container {name}: there is none", code="not_found", retryable=False)
        lines = box.log.read_bytes().splitlines(keepends=True)
        return b"".join(lines[-tail:])[-max_bytes:]

    async def stats(self, name: str) -> Mapping[str, int]:
        await self._enter("stats", name)
        box = self.containers.get(name)
        if box is None or not box.running:
            return {}
        pids = _marked(box.mark)
        memory = sum(_resident_bytes(pid) for pid in pids)
        return {"memory_bytes": memory, "pids": len(pids)}

    def kill(self, name: str) -> None:
        """For tests: the container dies by itself, now."""
        box = self.containers[name]
        if box.process is not None:
            os.killpg(box.process.pid, signal.SIGKILL)

    async def _enter(self, operation: str, name: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.before is not None:
            await self.before(operation, name)

    async def _kill(self, box: _Container) -> None:
        """SIGKILL to all that carries the mark, until nothing does."""
        if box.process is None:
            return
        with trio.CancelScope(shield=True), trio.fail_after(GONE_SECONDS):
            while pids := _marked(box.mark):
                for pid in pids:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                if box.process.pid in pids:
                    await box.process.wait()
                await trio.sleep(0.005)
            await box.process.wait()

    def _info(self, box: _Container) -> ContainerInfo:
        pid = box.process.pid if box.process is not None and box.running else None
        state: Literal["created", "running", "exited"]
        state = "created" if box.process is None else "running" if box.running else "exited"
        code = box.process.returncode if box.process is not None else None
        if state != "exited":
            code = None
        elif code is not None and code < 0:
            code = 128 - code
        return ContainerInfo(
            name=box.spec.name,
            engine_id=box.engine_id,
            state=state,
            labels=dict(box.spec.labels),
            exit_code=code,
            pid=pid,
            image=box.spec.image,
        )

    def _inside(self, box: _Container, text: str) -> str:
        """``text`` with the targets of the mounts replaced by their sources, longest first."""
        for mount in sorted(box.spec.mounts, key=lambda mount: -len(mount.target)):
            text = re.sub(rf"(?<![\w./-]){re.escape(mount.target)}(?![\w-])", str(mount.source), text)
        return text

    def _environment(self, box: _Container, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        merged = {**box.spec.env, **(extra or {})}
        name, _, value = box.mark.partition("=")
        return {**{key: self._inside(box, text) for key, text in merged.items()}, name: value}

    def _cwd(self, box: _Container, asked: str | None) -> str:
        return self._inside(box, asked or box.spec.working_dir)


def _marked(mark: str) -> list[int]:
    """Living processes (no zombies) with ``mark`` in their environment."""
    needle, found = mark.encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if needle in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue  # gone, or not ours
    return found


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
