"""The agents' door for callers' tools: the list that an agent's server of a caller has, and the way of a call.

One server of the agent is for all sessions of its workspace that have a caller of that id, so the list holds what all
of them declare. Each session sees its own tools alone by its rules in the agent, and whatever it calls is held against
its own declaration here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import mcp_types as types
import trio
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server

from oubliette import clock
from oubliette.api.agent_rights import session_of
from oubliette.api.desk import Desk
from oubliette.api.line_stream import OpenCalls, serve_lines
from oubliette.api.live import Origin
from oubliette.api.tools.registry import failure
from oubliette.api.tools.reply import compact
from oubliette.core.caller_results import CallerResult
from oubliette.core.caller_tools import CALLER_ID, STAMP, full_name, merged
from oubliette.core.limits import KIB
from oubliette.core.model import ContainerRow, Json
from oubliette.core.principals import Principal, Scope
from oubliette.errors import OublietteError, RemoteWireError, RequestError
from oubliette.log import get_logger
from oubliette.session.callers import Callers, Listing
from oubliette.store import caller_tools

log = get_logger(__name__)

SHOWN_SECONDS: Final = 5.0
"""How long a prompt waits for the agent to ask for the newest list."""
_PAGE_BYTES: Final = 512 * KIB
"""Of one page of a list; a line to the agent holds 1 MiB."""

Context = ServerRequestContext[Any, Any]


@dataclass(eq=False)
class _Stream:
    """One server of an agent: which caller's tools it has, and what its agent was last told of them."""

    container: ContainerRow
    caller_id: str
    desk: Desk
    listed: set[str] = field(default_factory=set)
    lists: int = 0
    """How often it was given the whole list."""
    news: trio.Event = field(default_factory=trio.Event)

    def is_in(self, project_id: str, workspace_id: str) -> bool:
        return self.container.project_id == project_id and self.container.workspace_id in (None, workspace_id)

    async def announce(self, connection: Connection) -> None:
        """Tell the agent whenever the list has changed."""
        while True:
            await self.news.wait()
            self.news = trio.Event()
            await connection.notify("notifications/tools/list_changed", None)


class CallerDoor:
    """Part of the agents' door."""

    def __init__(self, version: str) -> None:
        self._server: Server[Any] = Server(
            "oubliette-caller", version=version, on_list_tools=self._list_tools, on_call_tool=self._call_tool
        )
        self._streams: set[_Stream] = set()
        self._moved = trio.Event()
        """Set when a stream has come, gone or been given its list; replaced each time."""

    @contextmanager
    def open(self, callers: Callers) -> Iterator[None]:
        """While the door is open prompts wait for the newest list."""
        callers.listing = Listing(self._changed, self._shown)
        try:
            yield
        finally:
            callers.listing = None

    async def serve(
        self,
        stream: trio.abc.HalfCloseableStream,
        container: ContainerRow,
        caller_id: str,
        desk: Desk,
        calls: OpenCalls | None = None,
    ) -> None:
        """One stream until it ends; ``calls`` counts with the container's other streams. Raises RemoteWireError."""
        if not CALLER_ID.fullmatch(caller_id):
            raise RemoteWireError(f"no caller is called {caller_id[:64]!r}")
        one = _Stream(container, caller_id, desk)
        self._streams.add(one)
        self._move()
        try:
            await serve_lines(stream, self._server, one, one.announce, calls=calls)
        finally:
            self._streams.discard(one)
            self._move()

    def _move(self) -> None:
        moved, self._moved = self._moved, trio.Event()
        moved.set()

    # --- the list

    def _changed(self, project_id: str, caller_id: str) -> None:
        for one in self._streams:
            if one.container.project_id == project_id and one.caller_id == caller_id:
                one.news.set()

    async def _shown(self, project_id: str, workspace_id: str, caller_id: str, names: Sequence[str]) -> None:
        told: dict[_Stream, int] = {}
        with trio.move_on_after(SHOWN_SECONDS) as patience:
            while not self._has(project_id, workspace_id, caller_id, names, told):
                await self._moved.wait()
        if patience.cancelled_caught:
            log.warning("an agent did not ask for the tools of a caller", project=project_id, caller=caller_id)

    def _has(
        self, project_id: str, workspace_id: str, caller_id: str, names: Sequence[str], told: dict[_Stream, int]
    ) -> bool:
        """Whether the agent there has a list with these, or has asked for one since it was ``told`` to: once."""
        here = [one for one in self._streams if one.caller_id == caller_id and one.is_in(project_id, workspace_id)]
        behind = [one for one in here if not one.listed.issuperset(names) and one.lists <= told.get(one, one.lists)]
        for one in behind:
            if one not in told:
                told[one] = one.lists
                one.news.set()
        return bool(here) and not behind

    async def _list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        one: _Stream = ctx.lifespan_context
        declared = await one.desk.shared.services.store.read(
            partial(
                caller_tools.in_place,
                project_id=one.container.project_id,
                workspace_id=one.container.workspace_id,
                caller_id=one.caller_id,
            )
        )
        tools = merged(row.tools for row in declared)
        page, following = _page(tools, params.cursor if params is not None else None)
        if following is None:
            one.listed = {str(tool["name"]) for tool in tools}
            one.lists += 1
            self._move()
        return types.ListToolsResult(
            tools=[
                types.Tool(name=tool["name"], description=tool["description"], input_schema=tool["input_schema"])
                for tool in page
            ],
            next_cursor=following,
        )

    # --- a call

    async def _call_tool(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        one: _Stream = ctx.lifespan_context
        given = dict(params.arguments or {})
        request_id = clock.fresh_hex(20)
        try:
            result = await self._ask(one, params.name, given, request_id)
        except OublietteError as error:
            if not isinstance(error, RequestError):
                log.exception("a caller tool's call failed", caller=one.caller_id, request_id=request_id)
            return types.CallToolResult(
                content=[types.TextContent(type="text", text=failure(error, request_id).text)], is_error=True
            )
        return types.CallToolResult.model_validate({"content": list(result.content), "isError": result.is_error})

    async def _ask(self, one: _Stream, name: str, given: Json, request_id: str) -> CallerResult:
        services = one.desk.shared.services
        whole = full_name(one.caller_id, name)
        session_id = await services.store.read(partial(session_of, container=one.container, given=given, name=whole))
        given.pop(STAMP, None)
        scope = Scope("session", project_id=one.container.project_id, session_id=session_id)
        principal = Principal("session", session_id, session_id, scope)
        origin = Origin(principal, request_id, address=f"container {one.container.container_id}")
        with one.desk.shared.live.call(principal, origin):
            result = await services.tree.callers.call(session_id, one.caller_id, name, given)
        return result  # noqa: RET504 - ``call`` raises when it was ended, which mypy cannot know


def _page(tools: Sequence[Json], cursor: str | None) -> tuple[Sequence[Json], str | None]:
    """As many tools as a line holds, from the one that ``cursor`` counts; and where the next page begins."""
    start = int(cursor) if cursor is not None and cursor.isdecimal() and cursor.isascii() else 0
    size = 0
    for place in range(start, len(tools)):
        size += len(compact(tools[place]).encode())
        if size > _PAGE_BYTES and place > start:
            return tools[start:place], str(place)
    return tools[start:], None
