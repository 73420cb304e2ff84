"""A runtime without walls (a container is a real relay as a local process), a small agent, a daemon around them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import trio

from oubliette.agent.base import Agent
from oubliette.config import Config
from oubliette.container.deps import ContainerCode, Tuning
from oubliette.container.layout import RUN_INSIDE, TOOLKIT_INSIDE, agent_password
from oubliette.container.link import RelayLink
from oubliette.container.ready import AgentCommand, ReadyContainer
from oubliette.container.registry import Containers
from oubliette.core.model import ContainerRow, Json, PlaceState, ProjectRow, WorkspaceRow
from oubliette.errors import AgentUnreachable, ContainerError, EngineError
from oubliette.home import Home
from oubliette.relay_host import RelayHost
from oubliette.runtime.base import ContainerInfo, ContainerSpec, ExecResult, Progress, ReportProgress, RuntimeReport
from oubliette.store import containers, projects, workspaces
from oubliette.store.database import Store, Tx, open_store
from tests.relay.harness import MARK, RELAY_COMMAND, echo

AT = datetime(2026, 11, 22, 8, 15, 30, tzinfo=UTC)
AGENT_SCRIPT = Path(__file__).with_name("fake_agent.py")
INSTANCE = "0123456789abcdef"
QUICK = Tuning(
    relay_start=10,
    relay_gone=1,
    look=0.05,
    stop_grace=5,
    agent_grace=1,
    agent_steady=60,
    agent_failures=3,
    backoff_first=0.01,
    backoff_last=0.05,
    memory_look=0.1,
    memory_least_bytes=64 << 20,
    memory_share=0.0,
    hibernate=600,
    crash_pause=0.1,
)


popen = subprocess.Popen
"""Not Trio's: the process must outlive the test's daemon."""


@dataclass
class Box:
    spec: ContainerSpec
    process: subprocess.Popen[bytes] | None = None
    started: int = 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class LocalRuntime:
    """Outlives the daemons of a test, as an engine does."""

    name = "local"

    def __init__(self, scratch: Path) -> None:
        self.boxes: dict[str, Box] = {}
        self.calls: list[str] = []
        self.fail: dict[str, ContainerError] = {}
        """Operation to the error of its next call."""
        self.hold: dict[str, trio.Event] = {}
        """Operation to what its calls wait for."""
        self.seen: dict[str, trio.Event] = {}
        """Operation to what its next call sets."""
        self.relay_argv: list[str] | None = None
        self._scratch = scratch

    async def _call(self, operation: str) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append(operation)
        if operation in self.seen:
            self.seen.pop(operation).set()
        if operation in self.hold:
            await self.hold[operation].wait()
        if operation in self.fail:
            raise self.fail.pop(operation)

    async def probe(self) -> RuntimeReport:
        return RuntimeReport(self.name, ok=True)

    async def ensure_image(self, image: str, report: ReportProgress) -> str:
        report(Progress("pulling", 1, 2, "bytes"))
        await self._call("ensure_image")
        return f"{image}@sha256:0"

    async def build_image(self, context: Path, tag: str, report: ReportProgress) -> str:
        raise EngineError("nothing is built here")

    async def create(self, spec: ContainerSpec) -> str:
        await self._call("create")
        box = self.boxes.get(spec.name)
        if box is not None:
            if box.spec.labels != spec.labels:
                raise EngineError(f"create {spec.name}: there is another one")
            return spec.name
        writable = {str(mount.source) for mount in spec.mounts if not mount.read_only}
        for other in self.boxes.values():
            shared = writable & {str(mount.source) for mount in other.spec.mounts if not mount.read_only}
            assert not (other.running and shared), f"{shared} mounted writable in two containers"
        self.boxes[spec.name] = Box(spec)
        return spec.name

    async def start(self, name: str) -> None:
        await self._call("start")
        box = self.boxes[name]
        if box.running:
            return
        sources = {mount.target: str(mount.source) for mount in box.spec.mounts}
        argv = self.relay_argv or [
            *RELAY_COMMAND,
            "--socket",
            f"{sources[RUN_INSIDE]}/relay.sock",
            "--model-port",
            "0",
        ]
        assert box.spec.argv[2].startswith(TOOLKIT_INSIDE)
        env = {"PATH": os.environ["PATH"], "HOME": str(self._scratch / "home")}
        with (self._scratch / f"{name}.log").open("ab") as logged:
            box.process = popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=logged, stderr=logged)
        box.started += 1

    async def stop(self, name: str, grace_seconds: float) -> None:
        await self._call("stop")
        box = self.boxes.get(name)
        if box is None or box.process is None:
            return
        if box.running:
            box.process.terminate()
        with trio.move_on_after(grace_seconds):
            while box.running:
                await trio.sleep(0.005)
        box.process.kill()
        box.process.wait()

    async def remove(self, name: str) -> None:
        await self.stop(name, 5)
        await self._call("remove")
        self.boxes.pop(name, None)

    async def inspect(self, name: str) -> ContainerInfo | None:
        await trio.lowlevel.checkpoint()
        box = self.boxes.get(name)
        if box is None:
            return None
        state = "running" if box.running else "created" if box.process is None else "exited"
        code = box.process.poll() if box.process is not None else None
        return ContainerInfo(name, name, state, box.spec.labels, exit_code=code, enforced=("pids",))  # type: ignore[arg-type]

    async def list(self, labels: Mapping[str, str]) -> Sequence[ContainerInfo]:
        await self._call("list")
        infos = [await self.inspect(name) for name in list(self.boxes)]
        return [info for info in infos if info and labels.items() <= info.labels.items()]

    async def exec(self, name: str, argv: Sequence[str], **_: Any) -> ExecResult:
        raise EngineError("commands go through the relay")

    async def logs(self, name: str, *, tail: int = 200, max_bytes: int = 1 << 20) -> bytes:
        await trio.lowlevel.checkpoint()
        lines = (self._scratch / f"{name}.log").read_bytes().splitlines(keepends=True)
        return b"".join(lines[-tail:])[-max_bytes:]

    async def stats(self, name: str) -> Mapping[str, int]:
        return {}

    def running(self) -> tuple[Box, ...]:
        return tuple(box for box in self.boxes.values() if box.running)

    def pid(self) -> int:
        """Of the only container that runs."""
        (box,) = self.running()
        assert box.process is not None
        return box.process.pid

    def end_all(self) -> None:
        for box in self.boxes.values():
            if box.process is not None and box.running:
                box.process.send_signal(signal.SIGCONT)
                box.process.terminate()
                try:
                    box.process.wait(10)
                except subprocess.TimeoutExpired:
                    box.process.kill()
                    box.process.wait()


class FakeAgent:
    """Only what the container room asks of an agent, and a way to talk to the process."""

    def __init__(self, link: RelayLink, port: int) -> None:
        self._link = link
        self._port = port
        self.lost = False
        self.hung = trio.Event()
        """Set by a test: the launcher finds that it does not answer any more."""
        self.warmed: list[str] = []

    async def warm(self, directory: str) -> None:
        await trio.lowlevel.checkpoint()
        self.warmed.append(directory)

    async def die(self, pid: int) -> None:
        """Kill it; returns when that shows on a connection to it, which is how a session learns of it."""
        async with self._link.dial(self._port) as stream:
            os.kill(pid, signal.SIGKILL)
            try:
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                return

    async def say(self, line: str) -> tuple[int, str]:
        """Pid and password of the process."""
        async with self._link.dial(self._port) as stream:
            await stream.send_all(line.encode() + b"\n")
            answer = (await stream.receive_some(200)).decode().split()
        if not answer:
            raise AgentUnreachable("the fake agent said nothing")
        return int(answer[0]), answer[1]


@dataclass
class FakeLauncher:
    version: str = "1.0"
    ports: dict[str, int] = field(default_factory=dict)
    script: list[str] | None = None
    """Instead of the fake agent's."""
    agents: list[FakeAgent] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)

    async def files(self, row: ContainerRow, project: ProjectRow) -> Mapping[str, bytes]:
        await trio.lowlevel.checkpoint()
        return {"agent.json": f"{project.name} {row.capability}".encode()}

    def command(self, row: ContainerRow, password: str) -> AgentCommand:
        assert password == agent_password(row)
        self.passwords.append(password)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.ports[row.container_id] = free.getsockname()[1]
        argv = self.script or [sys.executable, "-IS", str(AGENT_SCRIPT), str(self.ports[row.container_id])]
        return AgentCommand(argv, {"PATH": os.environ["PATH"], "PASSWORD": password, "MARK": MARK}, "/")

    @asynccontextmanager
    async def connect(self, link: RelayLink, row: ContainerRow, password: str) -> AsyncIterator[Agent]:
        agent = FakeAgent(link, self.ports[row.container_id])
        with trio.move_on_after(5) as patience:
            while True:
                try:
                    assert (await agent.say("hello"))[1] == password
                    break
                except (ContainerError, AgentUnreachable):
                    await trio.sleep(0.01)
        if patience.cancelled_caught:
            raise AgentUnreachable("the fake agent does not come up")
        self.agents.append(agent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_let_go_when_hung, agent, nursery.cancel_scope)
            try:
                yield cast("Agent", agent)
            finally:
                agent.lost = True
            nursery.cancel_scope.cancel("let go")
        if agent.hung.is_set():
            raise AgentUnreachable("the fake agent hangs")


async def _let_go_when_hung(agent: FakeAgent, scope: trio.CancelScope) -> None:
    await agent.hung.wait()
    scope.cancel("it hangs")


def fake(ready: ReadyContainer) -> FakeAgent:
    return cast("FakeAgent", ready.agent)


@dataclass
class World:
    """A home with a project of two workspaces, an engine, and daemons that come and go."""

    home: Home
    store: Store
    runtime: LocalRuntime
    launcher: FakeLauncher
    tuning: Tuning
    toolkit: Path
    codes: list[ContainerCode] = field(default_factory=list)
    project_id: str = "p1"
    one: str = "w1"
    two: str = "w2"

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[Containers]:
        """Containers as a daemon has them, until it is stopped (cancelled)."""
        served = self.containers()
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(served.run)
            try:
                yield served
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel("the daemon stops")
        if failure is not None:
            raise failure

    def containers(self) -> Containers:
        served = Containers(
            store=self.store,
            config=Config(),
            home=self.home,
            instance=INSTANCE,
            runtime=self.runtime,
            listen=RelayHost(serve_model=echo).listen,
            launcher=self.launcher,
            toolkit=self._toolkit,
            tuning=self.tuning,
        )
        served.observe(self._hear)
        return served

    def _hear(self, row: ContainerRow, code: ContainerCode, data: Json) -> None:
        assert row.project_id == self.project_id
        assert isinstance(data, dict)
        self.codes.append(code)

    async def _toolkit(self) -> Path:
        await trio.lowlevel.checkpoint()
        return self.toolkit

    async def rows(self) -> list[ContainerRow]:
        return await self.store.read(containers.all_live)

    async def row(self) -> ContainerRow:
        (row,) = await self.rows()
        return row


@asynccontextmanager
async def world(directory: Path, *, tuning: Tuning = QUICK, **settings: Any) -> AsyncIterator[World]:
    home = Home(directory / "home")
    home.create()
    runtime = LocalRuntime(directory)
    try:
        async with open_store(home.database, publish=lambda _events: None, synchronous="OFF") as store:
            made = World(home, store, runtime, FakeLauncher(), tuning, home.toolkit)
            await store.write(partial(_rows, made=made, settings=settings))
            for workspace in (made.one, made.two):
                home.workspace_dir(made.project_id, workspace).mkdir(parents=True)
            yield made
    finally:
        runtime.end_all()


def _rows(tx: Tx, made: World, settings: Json) -> None:
    by = {"kind": "local", "id": "local", "name": "test"}
    project = ProjectRow(made.project_id, "shop", PlaceState.READY, AT, AT, by, made.one, settings=settings)
    projects.insert(tx, project)
    for workspace in (made.one, made.two):
        workspaces.insert(tx, WorkspaceRow(workspace, made.project_id, workspace == made.one, PlaceState.READY, AT))
