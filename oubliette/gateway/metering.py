"""Who pays, with which model, and what it came to. The only meter there is: the agent's own counts are ignored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import structlog
import trio

from oubliette import clock
from oubliette.config import Config
from oubliette.core.model import (
    EventType,
    Json,
    ModelUsage,
    NewEvent,
    ProjectRow,
    SessionRow,
    TurnRow,
    TurnStatus,
)
from oubliette.core.pricing import estimate_tokens, price, worst_case
from oubliette.errors import OublietteError, RequestError
from oubliette.gateway.models import ResolvedModel, Wire, resolve
from oubliette.gateway.usage import Reported
from oubliette.store import containers, events, model_requests, projects, sessions, turns
from oubliette.store.database import Store, Tx

EVENT_SECONDS = 1.0
"""At most one usage event in that time for each session; what comes between is summed up in the next."""
FINAL_FLUSH_SECONDS = 2.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Estimate:
    """How large a request is: tokens that the model will read, and how many it may write (None: not said)."""

    input_tokens: int
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Ticket:
    """An admitted request: who pays for which model. ``worst_case_microusd`` is the most that it can cost."""

    session_id: str
    root_id: str
    project_id: str
    turn: int | None
    model: ResolvedModel
    input_estimate: int = 0
    worst_case_microusd: int = 0


@dataclass(slots=True)
class _Recent:
    """A session whose last usage event is younger than EVENT_SECONDS, and what has been settled since."""

    since: float
    waiting: ModelUsage | None = None
    turn: int | None = None


class Meter:
    """Admits and settles model requests. ``run`` is its service: it writes the usage events that had to wait."""

    def __init__(self, store: Store, config: Config) -> None:
        self._store = store
        self._config = config
        self._recent: dict[str, _Recent] = {}
        self._wake = trio.Event()

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
        session, turn, project = await self._store.read(partial(_payer, container_id=container_id, named=named))
        alias = _alias(asked_model, self._config)
        _check_allowed(alias, session, turn, project)
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
            worst_case_microusd=worst_case(model.prices, estimate.input_tokens, output),
        )

    async def settle(self, ticket: Ticket, usage: ModelUsage, error: str | None = None) -> None:
        """Write the request's row, and a usage event now or within EVENT_SECONDS (none for a request that cost nothing
        because it failed)."""
        event = self._event_now(ticket, usage) if error is None or usage.input_tokens or usage.output_tokens else None
        try:
            await self._store.write(partial(_settled, ticket=ticket, usage=usage, error=error, event=event))
        except OublietteError:
            if event is not None:
                self._keep(ticket.session_id, ticket.turn, event)
            raise

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
        """Write waiting usage events when they are due; the rest when cancelled."""
        task_status.started()
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._recent:
                    due = min(recent.since for recent in self._recent.values()) + EVENT_SECONDS
                    await trio.sleep_until(due)
                    await self._flush_due()
        finally:
            with trio.move_on_after(FINAL_FLUSH_SECONDS, shield=True):
                for session_id in list(self._recent):
                    await self._flush_or_warn(session_id)

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


def _payer(tx: Tx, container_id: str, named: tuple[str, ...]) -> tuple[SessionRow, TurnRow | None, ProjectRow]:
    container = containers.get(tx, container_id)
    if container is None:
        raise RequestError("permission_denied", "This container is no longer there.")
    place = (container.project_id, container.workspace_id)
    found = (sessions.by_agent_id(tx, *place, name) for name in named)
    session = next((one for one in found if one is not None), None)
    if session is None:
        session = next((one for one in sessions.open_in_place(tx, *place) if one.ending is None), None)
    if session is None:
        raise RequestError("permission_denied", "No session is open here that could pay for a model.")
    if session.ending is not None or not session.open:
        raise RequestError("permission_denied", "The session has ended: it may not ask a model any more.")
    project = projects.get(tx, session.project_id)
    if project is None:
        raise RequestError("permission_denied", "The project is no longer there.")
    return session, turns.running(tx, session.session_id), project


def _alias(asked: str, config: Config) -> str:
    """``alias``, or ``model-name@alias``: agents choose prompts and abilities by the real name that stands in front."""
    if asked in config.models.models:
        return asked
    return asked.rpartition("@")[2]


def _check_allowed(alias: str, session: SessionRow, turn: TurnRow | None, project: ProjectRow) -> None:
    """The project's allowed models, and what the session itself runs with."""
    allowed = project.settings.get("allowed_models")
    own = {session.model, (turn.overrides.get("model") if turn else None)}
    if allowed and alias not in allowed and alias not in own:
        raise RequestError("permission_denied", f"This session may not use the model {alias[:80]!r}.")


def _settled(tx: Tx, ticket: Ticket, usage: ModelUsage, error: str | None, event: ModelUsage | None) -> None:
    model_requests.insert(
        tx,
        session_id=ticket.session_id,
        root_id=ticket.root_id,
        project_id=ticket.project_id,
        turn=ticket.turn,
        ts=clock.now(),
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
