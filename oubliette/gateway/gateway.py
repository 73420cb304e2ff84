"""The model gateway: the only way from a container to a model, and the only place that holds the keys.

Each stream is one connection of the relay's loopback listener inside a container. Which container that is, the relay
host says; here its capability is checked, requests are counted, and errors are put in the asked provider's words.
"""

from __future__ import annotations

import hmac
import ssl
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import structlog
import trio

from oubliette.config import Config
from oubliette.errors import OublietteError, RequestError
from oubliette.gateway.http1 import ClientGone, Exchange, Head, Headers, Refused, serve_http
from oubliette.gateway.lines import Lines
from oubliette.gateway.metering import Meter
from oubliette.gateway.places import Place
from oubliette.gateway.refusals import refusal, refusal_of
from oubliette.gateway.routes import find_route, wire_of
from oubliette.gateway.scripted import Scripted
from oubliette.gateway.serving import Cut, Running, Server
from oubliette.gateway.upstream import Upstreams

REMEMBERED_CUTS = 10_000
SETTLED_SECONDS = 5

log = structlog.get_logger(__name__)


class Gateway:
    """``serve_model`` is handed to the relay host; ``cancel_session`` and ``settled`` to the sessions."""

    def __init__(
        self,
        config: Config,
        meter: Meter,
        *,
        scripted: Scripted | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._meter = meter
        self._lines = Lines(meter.reserve, meter.release_tree)
        self._server = Server(meter, self._lines, Upstreams(tls=tls), scripted or Scripted())
        self._places: dict[str, Place] = {}
        self._running: dict[str, set[Running]] = {}
        self._cut_at: OrderedDict[str, int] = OrderedDict()
        self._clock = 0
        """Counts cuts: a request that began before its session's last cut is cut as well, wherever it was."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service: keeps the lines of waiting requests."""
        await self._lines.run(task_status=task_status)

    def budget_changed(self, *, root_id: str | None = None, project_id: str | None = None) -> None:
        """A limit of a tree or a project is another now: what waits for it looks again."""
        self._lines.changed(root_id=root_id, project_id=project_id)

    async def serve_model(self, stream: trio.abc.Stream, container_id: str) -> None:
        """Serve one connection from that container until it ends. Closes the stream."""
        try:
            capability = await self._meter.capability(container_id)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if capability is None:
            await trio.aclose_forcefully(stream)
            return
        with self._connected(container_id) as place:
            handler = partial(self._handle, container_id=container_id, capability=capability, place=place)
            await serve_http(stream, handler, _refusal)

    def cancel_session(self, session_id: str, reason: str = "its turn was ended") -> None:
        """Cut every request of the session that has begun, admitted or not yet. Later ones are refused only when the
        session's row says that it is ending: write that first."""
        self._clock += 1
        self._cut_at[session_id] = self._clock
        self._cut_at.move_to_end(session_id)
        if len(self._cut_at) > REMEMBERED_CUTS:
            self._cut_at.popitem(last=False)
        for running in list(self._running.get(session_id, ())):
            running.cut(reason)

    async def settled(self, session_id: str, *, seconds: float = SETTLED_SECONDS) -> None:
        """Return when every request of the session that is at work now has its row, and its usage event is written.

        Waits for no request longer than ``seconds``: one that goes on after its turn is metered when it ends, and its
        usage event then belongs to no turn.
        """
        with trio.move_on_after(seconds):
            for running in list(self._running.get(session_id, ())):
                if running.ticket is not None and running.ticket.reservation is not None:
                    await running.settled.wait()
        await self._meter.flush(session_id)

    def requests_at_work(self, container_id: str | None = None) -> int:
        """How many requests are being served, in all or for one container."""
        if container_id is not None:
            return self._places[container_id].requests if container_id in self._places else 0
        return sum(place.requests for place in self._places.values())

    def requests_waiting(self, root_id: str | None = None) -> int:
        """How many requests wait for their budget, in all or of one tree."""
        return self._lines.waiting(root_id)

    async def _handle(self, exchange: Exchange, *, container_id: str, capability: str, place: Place) -> None:
        """One request. Every error becomes an answer in the words of the provider that was asked for."""
        head = exchange.head
        wire = wire_of(head.target)
        try:
            _check_capability(head, capability)
            route = find_route(head.method, head.target)
            _check_content(head)
            with place.slot() as slot:
                began = self._clock
                running: list[Running] = []
                try:
                    await self._server.serve(
                        exchange,
                        route,
                        container_id,
                        slot=slot,
                        admitted=lambda one: self._admitted(one, began, running),
                    )
                finally:
                    for one in running:
                        self._forget(one)
        except RequestError as error:
            await _answer(exchange, *refusal_of(wire, error))
        except Cut as cut:
            log.info("model_answer_cut", container_id=container_id, reason=str(cut))
        except (ClientGone, Refused):
            raise
        except Exception as error:
            log.exception("model_request_failed", container_id=container_id)
            if exchange.started:
                return
            shown = error if isinstance(error, OublietteError) else OublietteError("internal error")
            await _answer(exchange, *refusal_of(wire, shown))

    def _admitted(self, running: Running, began: int, kept: list[Running]) -> None:
        if running.ticket is None:
            return
        session_id = running.ticket.session_id
        if self._cut_at.get(session_id, 0) > began:
            raise RequestError("cancelled", "The turn that this request belongs to was ended.")
        self._running.setdefault(session_id, set()).add(running)
        kept.append(running)

    def _forget(self, running: Running) -> None:
        if running.ticket is None:
            return
        at_work = self._running.get(running.ticket.session_id)
        if at_work is not None:
            at_work.discard(running)
            if not at_work:
                del self._running[running.ticket.session_id]

    @contextmanager
    def _connected(self, container_id: str) -> Iterator[Place]:
        place = self._places.setdefault(container_id, Place())
        place.connections += 1
        try:
            yield place
        finally:
            place.connections -= 1
            if not place.connections and self._places.get(container_id) is place:
                del self._places[container_id]


def _check_capability(head: Head, capability: str) -> None:
    """The container's secret, in the header that the asked provider's SDK uses for its key."""
    scheme, _, token = (head.get("authorization") or "").partition(" ")
    shown = [token.strip()] if scheme.lower() == "bearer" else []
    shown += [value for name in ("x-api-key", "x-goog-api-key") if (value := head.get(name))]
    if not any(hmac.compare_digest(value.encode(), capability.encode()) for value in shown):
        raise RequestError("unauthenticated", "This is not this container's capability.")


def _check_content(head: Head) -> None:
    content_type = (head.get("content-type") or "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" or head.all("content-encoding"):
        raise RequestError("invalid_argument", "The request must be plain application/json.")


async def _answer(exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
    """Answer; when the body was not read to its end the connection cannot go on."""
    if exchange.body_read:
        await exchange.answer(status, headers, body)
    else:
        await exchange.answer_unread(status, headers, body)


def _refusal(refused: Refused, target: str) -> tuple[Headers, bytes]:
    return refusal(wire_of(target), refused.status, refused.message)
