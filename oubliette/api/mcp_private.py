"""The parts of the MCP SDK that we use and that it does not promise: all of them, here, behind our own names.

Checked against ``PINNED``; a test fails when the installed SDK is another one, so that a new pin is looked at.
"""

from __future__ import annotations

from typing import Any, Final

from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared._context_streams import ContextReceiveStream, ContextSendStream, create_context_streams
from mcp.shared.message import SessionMessage

PINNED: Final = "2.3.0"

Inward = ContextSendStream[SessionMessage | Exception]
Outward = ContextReceiveStream[SessionMessage]


def message_streams() -> tuple[
    Inward, ContextReceiveStream[SessionMessage | Exception], ContextSendStream[SessionMessage], Outward
]:
    """What a dispatcher needs for a wire of our own: we send to the first, it reads the second; it writes to the
    third, we read the fourth."""
    inward, received = create_context_streams[SessionMessage | Exception](0)
    sent, outward = create_context_streams[SessionMessage](0)
    return inward, received, sent, outward


def connection_of(ctx: ServerRequestContext[Any, Any]) -> Connection:
    """The client connection behind a request: where notifications outside of a request are sent."""
    connection: Connection = ctx.session._connection  # noqa: SLF001
    return connection


def close_stream(manager: StreamableHTTPSessionManager, protocol_session: str) -> None:
    """End the GET stream of a handshake session; the client opens it again. Fine when there is none."""
    transport = manager._server_instances.get(protocol_session)  # noqa: SLF001
    if transport is not None:
        transport.close_standalone_sse_stream()


def close_all_streams(manager: StreamableHTTPSessionManager) -> None:
    """End every GET stream (shutdown)."""
    for protocol_session in list(manager._server_instances):  # noqa: SLF001
        close_stream(manager, protocol_session)


async def end_sessions_of(manager: StreamableHTTPSessionManager, principal_id: str) -> None:
    """Terminate the handshake sessions that were opened with this principal's token."""
    for protocol_session, owner in list(manager._session_owners.items()):  # noqa: SLF001
        transport = manager._server_instances.get(protocol_session)  # noqa: SLF001
        if transport is not None and owner["client_id"] == principal_id:
            await transport.terminate()


def open_sessions(manager: StreamableHTTPSessionManager) -> int:
    return len(manager._server_instances)  # noqa: SLF001
