"""A runtime whose containers are tasks of the test: their relays speak the real protocol and supervise nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import trio

from oubliette.agent.base import Agent
from oubliette.container.layout import RUN_INSIDE
from oubliette.container.link import RelayLink
from oubliette.core.model import ContainerRow
from oubliette.runtime.base import ContainerInfo
from oubliette_relay import protocol
from tests.container.fakes import Box, FakeAgent, FakeLauncher, LocalRuntime


class PretendedRuntime(LocalRuntime):
    """``nursery`` outlives the daemons of the test."""

    def __init__(self, scratch: Path, nursery: trio.Nursery) -> None:
        super().__init__(scratch)
        self._nursery = nursery
        self._scopes: dict[str, trio.CancelScope] = {}
        self.agents: dict[str, list[str]] = {}
        """Container name to the tags of the agents that run in it."""

    async def start(self, name: str) -> None:
        await self._call("start")
        if name not in self._scopes:
            spec = self.boxes[name].spec
            path = next(mount.source for mount in spec.mounts if mount.target == RUN_INSIDE) / "relay.sock"
            self._scopes[name] = trio.CancelScope()
            self.agents[name] = []
            self._nursery.start_soon(self._relay, name, path)
        await self._call("started")

    async def stop(self, name: str, grace_seconds: float) -> None:
        await self._call("stop")
        scope = self._scopes.pop(name, None)
        if scope is not None:
            scope.cancel("the container is stopped")
        self.agents.pop(name, None)
        await self._call("stopped")

    async def inspect(self, name: str) -> ContainerInfo | None:
        await trio.lowlevel.checkpoint()
        box = self.boxes.get(name)
        if box is None:
            return None
        return ContainerInfo(name, name, "running" if name in self._scopes else "created", box.spec.labels)

    async def logs(self, name: str, *, tail: int = 200, max_bytes: int = 1 << 20) -> bytes:
        return b""

    def running(self) -> tuple[Box, ...]:
        return tuple(self.boxes[name] for name in self._scopes)

    async def _relay(self, name: str, path: Path) -> None:
        with self._scopes[name]:
            while True:
                try:
                    stream = await trio.open_unix_socket(path)
                except OSError:
                    await trio.sleep(0.001)
                    continue
                try:
                    async with stream:
                        await stream.send_all(protocol.encode_hello(protocol.Hello("control", boot=name)))
                        await self._serve(name, stream)
                except trio.BrokenResourceError:
                    await trio.sleep(0.001)

    async def _serve(self, name: str, stream: trio.SocketStream) -> None:
        lines = protocol.LineSplitter()
        while data := await stream.receive_some(65536):
            for line in lines.feed(data):
                await stream.send_all(protocol.encode(self._answer(name, protocol.decode_to_relay(line))))

    def _answer(self, name: str, asked: protocol.ToRelay) -> protocol.ToDaemon:
        tags = self.agents[name]
        if isinstance(asked, protocol.ListProcesses):
            states = [
                protocol.ProcessState("agent", tag, number, 1, running=True) for number, tag in enumerate(tags, 1)
            ]
            return protocol.Processes(asked.id, tuple(states))
        if isinstance(asked, protocol.Start):
            if tags and tags != [asked.tag]:
                return protocol.Failed(asked.id, "exists", "another agent runs already")
            tags[:] = [asked.tag]
        elif isinstance(asked, protocol.Stop):
            tags.clear()
        return protocol.Done(asked.id)


class PretendedLauncher(FakeLauncher):
    @asynccontextmanager
    async def connect(self, link: RelayLink, row: ContainerRow, password: str) -> AsyncIterator[Agent]:
        await trio.lowlevel.checkpoint()
        yield cast("Agent", FakeAgent(link, 1))

    async def files(self, row: ContainerRow, project: object) -> Mapping[str, bytes]:
        await trio.lowlevel.checkpoint()
        return {}
