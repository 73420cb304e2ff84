"""The door for agents: MCP on the relay's streams, each call made as the session that it is stamped with.

Which container calls is known from the socket that was reached. Which session of it calls is in the arguments, where
the agent's plugin writes it (``_session``, the agent's own id of the session); it must name one that lives in that
container. Whoever runs code in a container is that workspace, so a forged stamp gains nothing that the container does
not have; nothing that is said here reaches further.
"""

from __future__ import annotations

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
from oubliette.api.desk import Desk
from oubliette.api.line_stream import serve_lines
from oubliette.api.live import Origin
from oubliette.api.tools.registry import Progress, failure
from oubliette.core.model import ContainerRow, Principal, Scope
from oubliette.errors import RemoteWireError, RequestError
from oubliette.session.attenuation import caller_of
from oubliette.store import containers, sessions
from oubliette.store.database import Tx

STAMP: Final = "_session"
"""The argument in which plugin.js says whose call it is."""
SERVER: Final = "oubliette"
"""What the agent calls this server; its tools are ``oubliette_<tool>`` to the model."""
DRAIN_SECONDS: Final = 2.0

Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True, slots=True)
class _Inside:
    """Who is at the other end of a stream, as far as the socket says."""

    container: ContainerRow
    desk: Desk

    @property
    def nobody(self) -> Principal:
        """Some session of the container: enough to list tools."""
        scope = Scope("session", project_id=self.container.project_id, container_id=self.container.container_id)
        return Principal("session", self.container.container_id, self.container.container_id, scope)


class AgentDoor:
    """Made before the doors are open, because containers may dial before that: their streams wait until they are."""

    def __init__(self, version: str) -> None:
        self._server: Server[Any] = Server(
            SERVER, version=version, on_list_tools=self._list_tools, on_call_tool=self._call_tool
        )
        self._desk: Desk | None = None
        self._opened = trio.Event()
        self._streams: set[trio.CancelScope] = set()
        self._fewer = trio.Event()

    @asynccontextmanager
    async def open(self, desk: Desk) -> AsyncIterator[None]:
        """Serve at that desk; at the end all streams end, and those that come later end at once."""
        self._desk = desk
        self._opened.set()
        try:
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
        if caller_id:
            raise RemoteWireError(f"no caller {caller_id[:64]!r} has tools here")
        with trio.CancelScope() as scope:
            self._streams.add(scope)
            try:
                await self._opened.wait()
                if self._desk is not None:
                    container = await self._desk.shared.services.store.read(
                        partial(containers.get, container_id=container_id)
                    )
                    if container is None:
                        raise RemoteWireError("a stream of a container that is not known any more")
                    await serve_lines(stream, self._server, _Inside(container, self._desk))
            finally:
                self._streams.discard(scope)
                self._fewer.set()
                self._fewer = trio.Event()

    async def _list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        """Without output schemas: agents see only the text, and pay for every word of the list."""
        inside: _Inside = ctx.lifespan_context
        return types.ListToolsResult(
            tools=[
                types.Tool(name=schema.name, description=schema.description, input_schema=schema.input)
                for schema in inside.desk.registry.tools(inside.nobody)
            ]
        )

    async def _call_tool(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        inside: _Inside = ctx.lifespan_context
        given = params.arguments or {}
        request_id = clock.fresh_hex(20)
        try:
            principal = await inside.desk.shared.services.store.read(
                partial(principal_of, container=inside.container, given=given, tool=params.name)
            )
        except RequestError as error:
            outcome = failure(error, request_id)
        else:
            origin = Origin(principal, request_id, address=f"container {inside.container.container_id}")
            outcome = await inside.desk.run(origin, params.name, given, _progress(ctx))
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=outcome.text)], is_error=outcome.is_error
        )


def principal_of(tx: Tx, container: ContainerRow, given: Mapping[str, Any], tool: str) -> Principal:
    """The session of that container which makes this call. Raises RequestError."""
    stamp = given.get(STAMP)
    if not isinstance(stamp, str) or not stamp:
        raise RequestError(
            "invalid_argument",
            "The call does not say which session makes it.",
            hint="The agent's plugin writes that into _session; call the tool through the agent.",
            field=STAMP,
        )
    row = sessions.by_agent_id(tx, container.project_id, container.workspace_id, stamp)
    if row is None:
        raise RequestError("not_found", "No session of this container has that _session.", field=STAMP)
    caller = caller_of(tx, row.session_id)
    if not caller.may_use(f"{SERVER}_{tool}"):
        raise RequestError("permission_denied", f"This session may not use {SERVER}_{tool[:64]}.")
    scope = Scope(
        "session",
        project_id=container.project_id,
        session_id=row.session_id,
        container_id=container.container_id,
    )
    return Principal("session", row.session_id, row.session_id, scope)


def _progress(ctx: Context) -> Progress | None:
    """How to tell the agent that its call goes on; None when it did not ask to be told."""
    if not ctx.meta or ctx.meta.get("progress_token") is None:
        return None
    return ctx.session.report_progress
