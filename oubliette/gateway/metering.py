"""Who pays, with which model, and what it came to. The only meter there is: the agent's own counts are ignored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import structlog
import trio

from oubliette import clock
from oubliette.config import Config
from oubliette.core.budget import Asked, Held, Later, LimitName, decide
from oubliette.core.model import EventType, Json, ModelUsage, NewEvent, TurnStatus
from oubliette.core.pricing import estimate_tokens, price, worst_case
from oubliette.errors import OublietteError, RequestError
from oubliette.gateway.accounts import accounts
from oubliette.gateway.models import ResolvedModel, Wire, resolve
from oubliette.gateway.payer import alias_of, check_allowed, payer, require_open
from oubliette.gateway.usage import Reported
from oubliette.store import budgets, containers, events, model_requests, sessions, turns
from oubliette.store.budgets import Reservation
from oubliette.store.database import Store, Tx

EVENT_SECONDS = 1.0
"""At most one usage event in that time for each session; what comes between is summed up in the next."""
FINAL_FLUSH_SECONDS = 2.0

Hold = Callable[[Tx, str, Held, datetime], None]
"""(unit, root, why, when)."""
Release = Callable[[Tx, str, datetime], None]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Estimate:
    """How large a request is: tokens that the model will read, and how many it may write (None: not said).

    ``hour_writes``: it asks the provider to keep something of it for an hour, which costs more.
    """

    input_tokens: int
    output_tokens: int | None = None
    hour_writes: bool = False


@dataclass(frozen=True, slots=True)
class Ticket:
    """An admitted request: who pays for which model. ``worst_case_microusd`` is the most that it can cost.

    ``reservation`` None: nothing is set aside for it yet, and it may not be sent. ``output_tokens`` is the most that it
    may write, of ``asked_output_tokens``.
    """

    session_id: str
    root_id: str
    project_id: str
    turn: int | None
    model: ResolvedModel
    input_estimate: int = 0
    worst_case_microusd: int = 0
    asked_output_tokens: int = 1
    output_tokens: int = 1
    hour_writes: bool = False
    reservation: int | None = None

    @property
    def asked(self) -> Asked:
        """As it is weighed."""
        return Asked(self.input_estimate, self.asked_output_tokens, self.model.prices, self.hour_writes)


@dataclass(slots=True)
class _Recent:
    """A session whose last usage event is younger than EVENT_SECONDS, and what has been settled since."""

    since: float
    waiting: ModelUsage | None = None
    turn: int | None = None


class Meter:
    """Admits and settles model requests. ``run`` is its service: it writes the usage events that had to wait."""

    def __init__(self, store: Store, config: Config, *, now: Callable[[], datetime] = clock.now) -> None:
        self._store = store
        self._config = config
        self._now = now
        self._hold: Hold = hold_row
        self._release: Release = release_row
        self._recent: dict[str, _Recent] = {}
        self._late: deque[Callable[[Tx], object]] = deque()
        """Settlements that could not be written: without them what was set aside would be so for good."""
        self._wake = trio.Event()
        self._took_over = False

    def tell(self, hold: Hold, release: Release) -> None:
        """Who is told, in the unit that finds it out, that a tree is held and that it no longer is (for the latter:
        told often, mostly of trees that were not)."""
        self._hold, self._release = hold, release

    async def capability(self, container_id: str) -> str | None:
        """The secret that the container's inside has to show; None for a container that is gone."""
        row = await self._store.read(partial(containers.get, container_id=container_id))
        return row.capability if row else None

    async def admit(
        self,
        container_id: str,
        agent_session_id: str | None,
        wire: Wire,
        asked_model: str,
        estimate: Estimate,
        *,
        parent_agent_session_id: str | None = None,
    ) -> Ticket:
        """Find who pays and what is asked.

        The session with that agent id when it lives in the container, else its parent's, else the container's oldest
        open one. Raises RequestError: ``permission_denied`` (nobody there may ask, or not for this model),
        ``not_found`` (no such model, or not on this wire), ``not_ready``.
        """
        named = tuple(name for name in (agent_session_id, parent_agent_session_id) if name)
        session, turn, project = await self._store.read(partial(payer, container_id=container_id, named=named))
        alias = alias_of(asked_model, self._config)
        check_allowed(alias, session, turn, project)
        credential = (project.settings.get("credential_refs") or {}).get("provider")
        model = resolve(self._config, alias, credential=credential)
        if not model.scripted and model.wire is not wire:
            raise RequestError("not_found", f"The model {alias!r} is not served here.", hint=f"It is {model.wire}.")
        output = min(estimate.output_tokens or model.max_output_tokens, model.max_output_tokens)
        return Ticket(
            session_id=session.session_id,
            root_id=session.root_id,
            project_id=session.project_id,
            turn=turn.turn if turn else None,
            model=model,
            input_estimate=estimate.input_tokens,
            worst_case_microusd=worst_case(
                model.prices, estimate.input_tokens, output, hour_writes=estimate.hour_writes
            ),
            asked_output_tokens=output,
            output_tokens=output,
            hour_writes=estimate.hour_writes,
        )

    async def reserve(self, ticket: Ticket) -> Ticket | Later | Held:
        """Set the request's worst case aside, in one unit with looking whether it fits: the ticket to send it with
        (maybe with less output), or why not now. Raises RequestError permission_denied when its session has ended."""
        return await self._store.write(
            partial(
                _reserved,
                ticket=ticket,
                config=self._config,
                at=self._now(),
                hold=self._hold,
                release=self._release,
            )
        )

    async def give_back(self, ticket: Ticket) -> None:
        """What was set aside for a request that is not sent after all."""
        if ticket.reservation is None:
            return
        unit = partial(budgets.unreserve, key=ticket.reservation)
        try:
            await self._store.write(unit)
        except OublietteError as error:
            log.warning("reservation_not_given_back", session_id=ticket.session_id, error=error.message)
            self._write_later(unit)

    async def release_tree(self, root_id: str) -> None:
        """Nothing of that tree waits any more."""
        release, at = self._release, self._now()
        await self._store.write(lambda tx: release(tx, root_id, at))

    async def settle(self, ticket: Ticket, usage: ModelUsage, error: str | None = None) -> None:
        """Write the request's row, and a usage event now or within EVENT_SECONDS (none for a request that cost nothing
        because it failed). What raises OublietteError is tried again until it is written."""
        event = self._event_now(ticket, usage) if error is None or usage.input_tokens or usage.output_tokens else None
        unit = partial(_settled, ticket=ticket, usage=usage, error=error, at=self._now())
        try:
            await self._store.write(partial(unit, event=event))
        except OublietteError:
            self._write_later(partial(unit, event=None))
            if event is not None:
                self._keep(ticket.session_id, ticket.turn, event)
            raise

    def _write_later(self, unit: Callable[[Tx], object]) -> None:
        self._late.append(unit)
        self._wake.set()

    async def flush(self, session_id: str) -> None:
        """Write the usage event that waits, if any: call it before a turn's ``completion``."""
        recent = self._recent.get(session_id)
        if recent is None or recent.waiting is None:
            return
        usage, turn = recent.waiting, recent.turn
        recent.waiting, recent.since = None, trio.current_time()
        try:
            await self._store.write(partial(_append_usage, session_id=session_id, turn=turn, usage=usage))
        except OublietteError:
            self._keep(session_id, turn, usage)
            raise

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """First settle what a daemon before left at work; then write waiting usage events when they are due, the rest
        when cancelled."""
        if not self._took_over:  # started again, it would settle what is at work in this daemon
            left = await self._store.write(partial(budgets.settle_left_over, at=self._now()))
            self._took_over = True
            if left:
                log.warning("model_requests_of_a_daemon_before", count=left)
        self._wake.set()  # there may be something that waits since it failed
        task_status.started()
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._recent or self._late:
                    since = min((recent.since for recent in self._recent.values()), default=trio.current_time())
                    await trio.sleep_until(since + EVENT_SECONDS)
                    await self._write_late()
                    await self._flush_due()
        finally:
            with trio.move_on_after(FINAL_FLUSH_SECONDS, shield=True):
                await self._write_late()
                for session_id in list(self._recent):
                    await self._flush_or_warn(session_id)

    async def _write_late(self) -> None:
        while self._late:
            try:
                await self._store.write(self._late[0])
            except OublietteError as error:
                log.warning("model_requests_not_settled", count=len(self._late), error=error.message)
                return
            self._late.popleft()

    async def _flush_due(self) -> None:
        now = trio.current_time()
        for session_id, recent in list(self._recent.items()):
            if now < recent.since + EVENT_SECONDS:
                continue
            if recent.waiting is None:
                del self._recent[session_id]
                continue
            await self._flush_or_warn(session_id)

    async def _flush_or_warn(self, session_id: str) -> None:
        try:
            await self.flush(session_id)
        except OublietteError as error:
            log.warning("usage_event_late", session_id=session_id, error=error.message)

    def _event_now(self, ticket: Ticket, usage: ModelUsage) -> ModelUsage | None:
        """What the session's usage event says now; None when it has to wait."""
        now = trio.current_time()
        recent = self._recent.get(ticket.session_id)
        if recent is None:
            self._recent[ticket.session_id] = _Recent(now)
            self._wake.set()
            return usage
        total = usage if recent.waiting is None else recent.waiting.plus(usage)
        if now >= recent.since + EVENT_SECONDS:
            recent.since, recent.waiting = now, None
            return total
        recent.waiting, recent.turn = total, ticket.turn
        return None

    def _keep(self, session_id: str, turn: int | None, usage: ModelUsage) -> None:
        """Put back what could not be written."""
        recent = self._recent.setdefault(session_id, _Recent(trio.current_time()))
        recent.waiting = usage if recent.waiting is None else recent.waiting.plus(usage)
        recent.turn = turn
        self._wake.set()


def charged(ticket: Ticket, reported: Reported) -> ModelUsage:
    """What an answered request comes to. Without the provider's own numbers: what is known, and estimates."""
    read, written = reported.input_tokens, reported.output_tokens
    if not reported.complete:
        read = read if reported.input_known else ticket.input_estimate
        written = max(written, estimate_tokens(reported.characters))
    usage = ModelUsage(
        requests=1,
        input_tokens=read,
        output_tokens=written,
        reasoning_tokens=reported.reasoning_tokens,
        cache_read_tokens=reported.cache_read_tokens,
        cache_write_tokens=reported.cache_write_tokens,
    )
    cost, priced = price(usage, ticket.model.prices, cache_write_hour_tokens=reported.cache_write_hour_tokens)
    complete = priced and reported.complete and not reported.unpriced
    return ModelUsage(
        requests=1,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cost_microusd=cost,
        cost_complete=complete,
    )


def _reserved(
    tx: Tx, ticket: Ticket, config: Config, at: datetime, hold: Hold, release: Release
) -> Ticket | Later | Held:
    """Weigh the request, and set its worst case aside where it fits. The tree is held or freed accordingly."""
    require_open(sessions.get(tx, ticket.session_id))
    verdict = decide(accounts(tx, config, ticket.root_id, ticket.project_id, at), ticket.asked)
    if isinstance(verdict, Held):
        hold(tx, ticket.root_id, verdict, at)
        return verdict
    release(tx, ticket.root_id, at)
    if isinstance(verdict, Later):
        return verdict
    cost = ticket.asked.needs(LimitName.TREE_COST, verdict.output_tokens)
    row = Reservation(
        session_id=ticket.session_id,
        root_id=ticket.root_id,
        project_id=ticket.project_id,
        turn=ticket.turn,
        at=at,
        alias=ticket.model.alias,
        model=ticket.model.model,
        provider=ticket.model.provider,
        input_tokens=ticket.input_estimate,
        output_tokens=verdict.output_tokens,
        cost_microusd=cost,
        read_microusd=ticket.asked.needs(LimitName.TREE_COST, 0),
        priced=ticket.model.prices is not None,
    )
    return replace(
        ticket,
        worst_case_microusd=cost,
        reservation=budgets.reserve(tx, row),
        output_tokens=verdict.output_tokens,
    )


def hold_row(tx: Tx, root_id: str, held: Held, at: datetime) -> None:
    """Only the tree's own row: what a meter does that nobody has told more."""
    budgets.hold(tx, root_id, held.as_json(), at)


def release_row(tx: Tx, root_id: str, at: datetime) -> None:
    """The reverse of ``hold_row``."""
    budgets.release(tx, root_id)


def _settled(
    tx: Tx, ticket: Ticket, usage: ModelUsage, error: str | None, event: ModelUsage | None, at: datetime
) -> None:
    if ticket.reservation is not None and not budgets.unreserve(tx, ticket.reservation):
        return  # settled before
    model_requests.insert(
        tx,
        session_id=ticket.session_id,
        root_id=ticket.root_id,
        project_id=ticket.project_id,
        turn=ticket.turn,
        ts=at,
        alias=ticket.model.alias,
        model=ticket.model.model,
        provider=ticket.model.provider,
        usage=usage,
        error=error,
    )
    if event is not None:
        _append_usage(tx, ticket.session_id, ticket.turn, event)


def _append_usage(tx: Tx, session_id: str, turn: int | None, usage: ModelUsage) -> None:
    """The event belongs to the turn only while that runs: nothing of a turn comes after its completion."""
    if sessions.get(tx, session_id) is None:
        return
    row = turns.get(tx, session_id, turn) if turn is not None else None
    running = row is not None and row.status is TurnStatus.RUNNING
    body: Json = {"usage": usage.as_json()}
    events.append(tx, session_id, NewEvent(EventType.USAGE, turn=turn if running else None, body=body))
