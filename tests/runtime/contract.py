"""What the contract suite needs from a runtime: a kit of it, whose containers are cheap to make and leave nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from oubliette.runtime.base import LABEL_PREFIX, ContainerInfo, ContainerSpec, Mount, Resources, Runtime
from oubliette.runtime.default_images import DEFAULT_IMAGES

ROOT_DAEMON_UID = 10001
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "HOME": "/tmp/home", "LANG": "C.UTF-8"}

SLEEPER = ("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")
"""A container that runs until it is told to stop, and then stops at once."""


@dataclass
class Kit:
    """One runtime under test.

    ``walls``: it confines, so the second half of the suite runs over it. ``extra_env``: variables that its processes
    have beside the listed ones, each with a reason in its factory. ``local``: its processes are processes of this host.
    """

    runtime: Runtime
    place: Path
    walls: bool
    extra_env: frozenset[str] = frozenset()
    local: bool = True
    uid: int = field(default_factory=lambda: ROOT_DAEMON_UID if os.geteuid() == 0 else os.geteuid())
    gid: int = field(default_factory=lambda: ROOT_DAEMON_UID if os.geteuid() == 0 else os.getegid())
    instance: str = field(default_factory=lambda: f"test-{secrets.token_hex(6)}")
    resources: Resources = field(default_factory=lambda: Resources(memory_bytes=256 << 20, cpus=1.0, pids=128))

    @property
    def labels(self) -> dict[str, str]:
        """The label that every container of this kit carries."""
        return {LABEL_PREFIX + "instance": self.instance}

    def directory(self, name: str, *, mode: int = 0o755) -> Path:
        """A fresh host directory that the container's user owns."""
        path = self.place / f"{name}-{secrets.token_hex(4)}"
        path.mkdir(parents=True)
        path.chmod(mode)
        self.give(path)
        return path

    def give(self, path: Path) -> None:
        """Make the container's user the owner."""
        if os.geteuid() == 0:
            os.lchown(path, self.uid, self.gid)

    def spec(self, argv: Sequence[str] = SLEEPER, **changes: Any) -> ContainerSpec:
        """A small container of this kit with a name of its own; ``labels`` in ``changes`` are added."""
        labels: Mapping[str, str] = {**self.labels, **changes.pop("labels", {})}
        spec = ContainerSpec(
            name=f"oubliette-{self.instance}-{secrets.token_hex(4)}",
            image=DEFAULT_IMAGES["base"],
            argv=list(argv),
            env=ENVIRONMENT,
            mounts=[Mount(self.directory("workspace"), "/workspaces/w", read_only=False)],
            labels=labels,
            working_dir="/workspaces/w",
            uid=self.uid,
            gid=self.gid,
            resources=self.resources,
            tmpfs={"/tmp": 64 << 20},
        )
        return replace(spec, **changes)

    async def create(self, argv: Sequence[str] = SLEEPER, **changes: Any) -> str:
        """Create one and return its name."""
        spec = self.spec(argv, **changes)
        await self.runtime.create(spec)
        return spec.name

    async def run(self, argv: Sequence[str] = SLEEPER, **changes: Any) -> str:
        """Create and start one and return its name."""
        name = await self.create(argv, **changes)
        await self.runtime.start(name)
        return name

    async def info(self, name: str) -> ContainerInfo:
        found = await self.runtime.inspect(name)
        assert found is not None, f"there is no container {name}"
        return found

    async def ended(self, name: str) -> ContainerInfo:
        """Wait until it has ended by itself."""
        while True:
            info = await self.info(name)
            if info.state != "running":
                return info
            await trio.sleep(0.02)

    async def said(self, name: str) -> str:
        """Wait until its own process has written something; all of that."""
        while True:
            logs = await self.runtime.logs(name)
            if logs.endswith(b"\n"):
                return logs.decode()
            await trio.sleep(0.02)

    async def sh(self, name: str, script: str, **options: Any) -> str:
        """Run a script inside; its stdout. Fails the test when it fails."""
        result = await self.runtime.exec(name, ["sh", "-c", script], **options)
        assert result.exit_code == 0, f"{script!r} ended with {result.exit_code}: {result.stderr!r} {result.stdout!r}"
        return result.stdout.decode()

    async def python(self, name: str, script: str, **options: Any) -> str:
        """Run a Python program inside; its stdout. Fails the test when it fails."""
        result = await self.runtime.exec(name, ["python3", "-I", "-c", script], **options)
        assert result.exit_code == 0, f"ended with {result.exit_code}: {result.stderr!r}"
        return result.stdout.decode()

    async def remove_all(self) -> None:
        for info in await self.runtime.list(self.labels):
            await self.runtime.remove(info.name)
        assert not await self.runtime.list(self.labels)


Factory = Callable[[Path], AbstractAsyncContextManager[Kit]]
"""Makes a kit whose files are below the given directory; fails the test with a clear message where it cannot."""


@asynccontextmanager
async def cleaned(kit: Kit) -> AsyncIterator[Kit]:
    """The kit, and afterwards nothing of it."""
    try:
        yield kit
    finally:
        with trio.CancelScope(shield=True), trio.fail_after(60):
            await kit.remove_all()


def processes_with(marker: str) -> list[int]:
    """Processes of this host that have ``marker`` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended
    return found


async def eventually(question: Callable[[], bool]) -> None:
    """Wait until the answer is yes. Processes and files of an engine tell nobody, so it is asked again and again."""
    while not question():
        await trio.sleep(0.01)


async def until_there(marker: str) -> None:
    """Wait for a process with ``marker``."""
    await eventually(lambda: bool(processes_with(marker)))


async def until_gone(marker: str) -> None:
    """Wait until there is no process with ``marker``."""
    await eventually(lambda: not processes_with(marker))


async def until(path: Path) -> str:
    """Wait for a file with a complete line in it; its text."""
    await eventually(lambda: text_of(path).endswith("\n"))
    return text_of(path)


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""
