"""The doors as one thing: built from the services, served until told to stop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from oubliette.api import mcp_private, resources
from oubliette.api.agents import AgentDoor
from oubliette.api.desk import Desk
from oubliette.api.door import Door
from oubliette.api.firehose import Firehose
from oubliette.api.http import make_routes
from oubliette.api.mcp import McpDoor
from oubliette.api.notify import Notifier
from oubliette.api.serve import serve_http
from oubliette.api.services import Services
from oubliette.api.shared import Shared
from oubliette.api.tools.registry import Registry, Tool
from oubliette.api.tools.table import TOOLS
from oubliette.core.principals import Principal
from oubliette.errors import OublietteError, RequestError
from oubliette.log import get_logger
from oubliette.store import schedules

log = get_logger(__name__)

_LAST_WORDS_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Api:
    """Open doors. ``app`` is the ASGI application; ``close_streams`` lets the streams end before the drain."""

    shared: Shared
    desk: Desk
    mcp: McpDoor
    app: Door

    def close_streams(self) -> None:
        self.shared.services.feed.close()
        self.mcp.close_streams()


@asynccontextmanager
async def open_api(
    services: Services, tools: Sequence[Tool] = TOOLS, *, agents: AgentDoor | None = None
) -> AsyncIterator[Api]:
    """Everything behind the doors, with its services running. ``agents``: the door that containers dial."""
    shared = Shared(services)
    desk = Desk(shared, Registry(tools))
    firehose = Firehose()
    notifier = Notifier(partial(_may_read, services))
    mcp = McpDoor(desk, notifier)
    api = Api(shared, desk, mcp, Door(shared, make_routes(desk, firehose), mcp))  # type: ignore[arg-type]  # ASGI
    async with mcp.manager.run(), trio.open_nursery() as nursery:
        await nursery.start(shared.run)
        await nursery.start(services.supervisor.of("event stream of everything", partial(firehose.run, services.feed)))
        await nursery.start(services.supervisor.of("notifications", partial(notifier.run, services.feed)))
        ending: set[str] = set()

        def end(principal_id: str) -> None:
            """Told of again while anything of that token goes on; one task for each is enough."""
            if principal_id not in ending:
                ending.add(principal_id)
                nursery.start_soon(_end_protocol_sessions, mcp, notifier, principal_id, ending)

        shared.live.on_end = end
        async with agents.open(desk) if agents is not None else nullcontext():
            with services.store.hear(schedules.TOPIC, notifier.schedule_changed):
                yield api
        nursery.cancel_scope.cancel(reason="the doors are closed")


async def _may_read(services: Services, principal: Principal, ref: resources.Ref) -> bool:
    try:
        await services.store.read(partial(resources.check, ref=ref, principal=principal))
    except RequestError:
        return False
    except OublietteError:  # one client's news is not worth the doors
        log.exception("who may hear of a change could not be looked up", kind=ref.kind)
        return False
    return True


async def _end_protocol_sessions(mcp: McpDoor, notifier: Notifier, principal_id: str, ending: set[str]) -> None:
    """A token has ended: its handshake sessions go with it, once its calls have answered that they were ended."""
    notifier.end_principal(principal_id)
    await trio.sleep(_LAST_WORDS_SECONDS)
    ending.discard(principal_id)
    await mcp_private.end_sessions_of(mcp.manager, principal_id)


async def run_api(
    services: Services,
    *,
    shutdown: trio.Event,
    tools: Sequence[Tool] = TOOLS,
    agents: AgentDoor | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """A service: HTTP and MCP until ``shutdown``. ``started`` gets the bound addresses. Returns only when told."""
    async with open_api(services, tools, agents=agents) as api:
        await serve_http(
            api.app,
            services.config.server,
            shutdown=shutdown,
            closing=api.close_streams,
            task_status=task_status,
        )
    if not shutdown.is_set():
        raise OublietteError("serve HTTP: the server returned unasked")
