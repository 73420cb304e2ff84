"""One model request from its body to its settlement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog
import trio

from oubliette.core.model import ModelUsage
from oubliette.errors import RequestError
from oubliette.gateway.answer import Answer
from oubliette.gateway.headers import downstream_headers, upstream_headers
from oubliette.gateway.http1 import ClientGone, Exchange, Headers
from oubliette.gateway.lines import Lines
from oubliette.gateway.metering import Estimate, Meter, Ticket, charged
from oubliette.gateway.models import ResolvedModel
from oubliette.gateway.places import Slot
from oubliette.gateway.rebuild import Rebuilt, input_estimate, keeps_for_an_hour, parse_object
from oubliette.gateway.redaction import SecretFilter, without_keys
from oubliette.gateway.routes import Route
from oubliette.gateway.scripted import Scripted
from oubliette.gateway.scripted_reply import reply
from oubliette.gateway.upstream import UpstreamCut, Upstreams
from oubliette.gateway.usage import UsageReader

SETTLE_SECONDS = 10
THREAD_BYTES = 1 << 20
"""A larger body is parsed in a thread, so that others are not kept waiting."""
USER_AGENT = "oubliette"

log = structlog.get_logger(__name__)


class Cut(Exception):
    """Our answer has begun and cannot be finished: the client is to see that it broke off."""


@dataclass(slots=True, eq=False)
class Running:
    """A request at work. ``cut`` ends it from outside; ``settled`` is set when its row is written.

    ``ticket`` has no reservation while the request waits for its budget.
    """

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    settled: trio.Event = field(default_factory=trio.Event)
    ticket: Ticket | None = None
    reason: str | None = None
    """Why it was ended from outside."""
    reader: UsageReader | None = None
    """Set once the provider has accepted the request: from then on it costs."""
    error: str | None = None
    began: float = field(default_factory=trio.current_time)

    def cut(self, reason: str) -> None:
        """End the request now."""
        if self.reason is None:
            self.reason = reason
        self.scope.cancel()


@dataclass(frozen=True, slots=True)
class Server:
    """Serves requests of containers whose capability has been checked."""

    meter: Meter
    lines: Lines
    upstreams: Upstreams
    scripted: Scripted

    async def serve(
        self,
        exchange: Exchange,
        route: Route,
        container_id: str,
        *,
        slot: Slot,
        admitted: Callable[[Running], None],
    ) -> None:
        """Read, admit, wait until it fits into the budget, ask, pass on, settle.

        ``admitted`` is told about the request once its session is known, and may raise. Raises RequestError while
        nothing has been answered, Cut afterwards; ClientGone and Refused go through.
        """
        raw = await exchange.read_body(reserve=slot.take_bytes)
        body = await trio.to_thread.run_sync(parse_object, raw) if len(raw) > THREAD_BYTES else parse_object(raw)
        del raw
        running = Running()
        answer = Answer(exchange, route.wire, streaming=route.streams(body))
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                running.scope = nursery.cancel_scope
                nursery.start_soon(exchange.watch, lambda: running.cut("client gone"))
                try:
                    ticket = await self.meter.admit(
                        container_id,
                        exchange.head.get("x-session-id"),
                        route.wire,
                        route.asked_model(body),
                        Estimate(input_estimate(body), route.asked_output(body), keeps_for_an_hour(body)),
                        parent_agent_session_id=exchange.head.get("x-parent-session-id"),
                    )
                    running.ticket = ticket
                    admitted(running)
                    nursery.start_soon(answer.keep_alive, lambda: running.cut("client gone"))
                    running.ticket = ticket = await self._fitting(ticket, slot)
                    await answer.waited()
                    rebuilt = route.rebuild(body, _bounded(ticket))
                    del body
                    if rebuilt.removed:
                        log.info("model_request_rebuilt", alias=ticket.model.alias, removed=rebuilt.removed[:20])
                    if ticket.model.scripted:
                        await self._ask_script(answer, route, rebuilt, running, ticket)
                    else:
                        await self._ask_provider(exchange, answer, route, rebuilt, running, ticket)
                except (RequestError, Cut, UpstreamCut, ClientGone) as error:
                    running.error = running.error or str(error) or type(error).__name__
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            if not (exchange.finished or running.error or running.reason):
                running.error = "ended by the daemon"
            with trio.CancelScope(shield=True, deadline=trio.current_time() + SETTLE_SECONDS):
                await self._settle(running)
        if running.reason == "client gone":
            raise ClientGone
        if running.reason is not None and not exchange.finished:
            failure = RequestError("cancelled", f"The request was ended: {running.reason}.")
        if failure is None:
            return
        if answer.waiting and isinstance(failure, RequestError):
            await answer.refuse_waiting(failure)
            return
        if exchange.started and not isinstance(failure, ClientGone):
            raise Cut(str(failure)) from failure
        raise failure

    async def _fitting(self, ticket: Ticket, slot: Slot) -> Ticket:
        """The ticket once its worst case is set aside. While it waits it takes nobody's place."""
        reserved = await self.lines.through(ticket, slot.park)
        try:
            await slot.unpark()
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + SETTLE_SECONDS):
                await self.meter.give_back(reserved)
            self.lines.changed(root_id=reserved.root_id, project_id=reserved.project_id)
            raise
        return reserved

    async def _settle(self, running: Running) -> None:
        """Write what it came to. A request that no provider has accepted costs nothing."""
        try:
            if running.ticket is not None and running.ticket.reservation is not None:
                error = running.error or running.reason
                usage = ModelUsage(requests=1)
                if running.reader is not None:
                    reported = running.reader.finish()
                    usage = charged(running.ticket, reported)
                    error = error or reported.error
                await self.meter.settle(running.ticket, usage, error)
                self.lines.changed(root_id=running.ticket.root_id, project_id=running.ticket.project_id)
                log.debug(
                    "model_request",
                    session_id=running.ticket.session_id,
                    alias=running.ticket.model.alias,
                    seconds=round(trio.current_time() - running.began, 3),
                    error=error,
                )
        finally:
            running.settled.set()

    async def _ask_provider(
        self, exchange: Exchange, answer: Answer, route: Route, rebuilt: Rebuilt, running: Running, ticket: Ticket
    ) -> None:
        model = ticket.model
        url = model.base_url + route.upstream_path(model, streaming=rebuilt.streaming)
        headers = upstream_headers(model, exchange.head, streaming=rebuilt.streaming, user_agent=USER_AGENT)
        async with self.upstreams.post(url, headers, rebuilt.encode(), alias=model.alias) as upstream:
            secrets = [
                secret for secret in (model.api_key, *model.extra_headers.values()) if secret and len(secret) > 7
            ]
            if not 200 <= upstream.status < 300:
                running.error = f"HTTP {upstream.status}"
                body = without_keys(await upstream.error_body(), secrets)
                passed = downstream_headers(upstream.headers)
                await _refuse(answer, upstream.status, passed, body)
                return
            streamed = "text/event-stream" in upstream.headers.get("content-type", "")
            running.reader = route.usage(streaming=streamed)
            key_filter = SecretFilter(model.api_key)
            await answer.start(downstream_headers(upstream.headers))
            while piece := await upstream.receive():
                await answer.send(key_filter.feed(piece))
                running.reader.feed(piece)
            await answer.send(key_filter.finish())
            await answer.finish()
            if key_filter.found:
                log.warning("key_in_model_answer", alias=model.alias)

    async def _ask_script(
        self, answer: Answer, route: Route, rebuilt: Rebuilt, running: Running, ticket: Ticket
    ) -> None:
        """The built-in model answers on the wire that it was asked on."""
        scripted = reply(
            self.scripted,
            route.wire,
            rebuilt.body,
            streaming=rebuilt.streaming,
            model=ticket.model.model,
            session=ticket.session_id,
        )
        if scripted.status != 200:
            running.error = f"HTTP {scripted.status}"
            body = b"".join(piece.data for piece in scripted.pieces)
            await _refuse(answer, scripted.status, scripted.headers, body)
            return
        running.reader = route.usage(streaming=rebuilt.streaming)
        await answer.start(scripted.headers)
        for piece in scripted.pieces:
            if piece.cut:
                raise Cut("the script cuts the stream")
            if piece.pause_seconds:
                await trio.sleep(piece.pause_seconds)
            await answer.send(piece.data)
            running.reader.feed(piece.data)
        await answer.finish()


async def _refuse(answer: Answer, status: int, headers: Headers, body: bytes) -> None:
    """A provider's error. After a wait that has begun the answer, one that is worth another try breaks it off: agents
    ask again after that, and take an error inside an answer for the last word."""
    if answer.begun and (status == 429 or status >= 500):
        raise Cut(f"HTTP {status}")
    await answer.refuse(status, headers, body)


def _bounded(ticket: Ticket) -> ResolvedModel:
    """The model with the output that was set aside for this request. Where the whole of it fits nothing is bounded
    that was not before: some servers refuse a limit that nobody asked for."""
    if ticket.output_tokens >= ticket.asked_output_tokens:
        return ticket.model
    return replace(ticket.model, max_output_tokens=ticket.output_tokens, output_cap=ticket.output_tokens)
