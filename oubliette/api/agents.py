"""The door for agents: MCP on the relay's streams, each call made as the session that it is stamped with.

Which container calls is known from the socket that was reached. Which session of it calls is in the arguments, where
the agent's plugin writes it (``_session``, the agent's own id of the session); it must name one that lives in that
container. Whoever runs code in a container is that workspace, so a forged stamp gains nothing that the container does
not have; nothing that is said here reaches further.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import mcp_types as types
import trio
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server

from oubliette import clock
from oubliette.agent.base import OWN_SERVER
from oubliette.api.agent_rights import Rights, anybody, rights_of
from oubliette.api.callers import CallerDoor
from oubliette.api.desk import Desk
from oubliette.api.line_stream import OpenCalls, serve_lines
from oubliette.api.live import Origin
from oubliette.api.tools.registry import Call, Progress, failure
from oubliette.core.model import ContainerRow
from oubliette.core.principals import Principal
from oubliette.errors import RemoteWireError, RequestError
from oubliette.store import containers

DRAIN_SECONDS: Final = 2.0
ANSWER_CHARACTERS: Final = 100_000
"""The most that an agent gets at once, whatever ``max_chars`` it asks for: unread answers are kept in memory."""

Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True, slots=True)
class _Inside:
    """Who is at the other end of a stream, as far as the socket says."""

    container: ContainerRow
    desk: Desk


class AgentDoor:
    """Made before the doors are open, because containers may dial before that: their streams wait until they are."""

    def __init__(self, version: str) -> None:
        self._server: Server[Any] = Server(
            OWN_SERVER, version=version, on_list_tools=self._list_tools, on_call_tool=self._call_tool
        )
        self._callers = CallerDoor(version)
        self._desk: Desk | None = None
        self._opened = trio.Event()
        self._streams: set[trio.CancelScope] = set()
        self._calls: dict[str, OpenCalls] = defaultdict(OpenCalls)
        self._fewer = trio.Event()

    @asynccontextmanager
    async def open(self, desk: Desk) -> AsyncIterator[None]:
        """Serve at that desk; at the end all streams end, and those that come later end at once."""
        self._desk = desk
        self._opened.set()
        try:
            with self._callers.open(desk.shared.services.tree.callers):
                yield
        finally:
            self._desk = None
            for scope in self._streams:
                scope.cancel("the doors are closed")
            with trio.move_on_after(DRAIN_SECONDS, shield=True):
                while self._streams:
                    await self._fewer.wait()

    async def serve(self, stream: trio.abc.HalfCloseableStream, container_id: str, caller_id: str = "") -> None:
        """One ``mcp`` stream of a container. ``caller_id`` names whose tools are asked for; empty: Oubliette's own.

        Raises RemoteWireError."""
        with trio.CancelScope() as scope:
            self._streams.add(scope)
            calls = self._calls[container_id]
            calls.streams += 1
            try:
                await self._opened.wait()
                if self._desk is not None:
                    container = await self._desk.shared.services.store.read(
                        partial(containers.get, container_id=container_id)
                    )
                    if container is None:
                        raise RemoteWireError("a stream of a container that is not known any more")
                    if caller_id:
                        await self._callers.serve(stream, container, caller_id, self._desk, calls)
                    else:
                        await serve_lines(stream, self._server, _Inside(container, self._desk), calls=calls)
            finally:
                calls.streams -= 1
                if not calls.streams:
                    del self._calls[container_id]
                self._streams.discard(scope)
                self._fewer.set()
                self._fewer = trio.Event()

    async def _list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        """Without output schemas: agents see only the text, and pay for every word of the list."""
        inside: _Inside = ctx.lifespan_context
        services = inside.desk.shared.services
        some = await services.store.read(partial(anybody, container=inside.container, at=services.now()))
        return types.ListToolsResult(
            tools=[
                types.Tool(name=schema.name, description=schema.description, input_schema=schema.input)
                for schema in inside.desk.registry.tools(some)
            ]
        )

    async def _call_tool(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        inside: _Inside = ctx.lifespan_context
        given = _bounded(params.arguments or {})
        request_id = clock.fresh_hex(20)
        services = inside.desk.shared.services
        try:
            rights = await services.store.read(
                partial(rights_of, container=inside.container, given=given, tool=params.name, at=services.now())
            )
        except RequestError as error:
            outcome = failure(error, request_id)
        else:
            principal = await _acting(inside.desk, rights, request_id, params.name, given)
            origin = Origin(principal, request_id, address=f"container {inside.container.container_id}")
            outcome = await inside.desk.run(origin, params.name, given, _progress(ctx))
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=outcome.text)], is_error=outcome.is_error
        )


async def _acting(desk: Desk, rights: Rights, request_id: str, tool: str, given: Mapping[str, Any]) -> Principal:
    """The session itself where it may; else by what it was lent, which also says why not."""
    if rights.lent is None or await desk.registry.admits(Call(desk.shared, rights.own, request_id), tool, given):
        return rights.own
    return rights.lent


def _bounded(given: Mapping[str, Any]) -> Mapping[str, Any]:
    asked = given.get("max_chars")
    number = int(asked) if isinstance(asked, str) and asked.isdecimal() and len(asked) < 10 else asked
    if isinstance(number, int) and number > ANSWER_CHARACTERS:
        return {**given, "max_chars": ANSWER_CHARACTERS}
    return given


def _progress(ctx: Context) -> Progress | None:
    """How to tell the agent that its call goes on; None when it did not ask to be told."""
    if not ctx.meta or ctx.meta.get("progress_token") is None:
        return None
    return ctx.session.report_progress
