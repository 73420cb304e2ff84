"""One turn, from the claimed row to its completion: lease the container, prompt the agent, store what it says.

The turn's time limit is the deadline of one cancel scope; it stands still while somebody is asked. Being stopped
(interrupt, end, cancel) cancels that same scope and leaves a note of why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import structlog
import trio

from oubliette.agent.base import (
    AgentAsk,
    AgentAskGone,
    AgentBusy,
    AgentDelta,
    AgentDurable,
    AgentEvent,
    AgentIdle,
    AgentLost,
    AgentRetry,
    Prompt,
)
from oubliette.core.model import (
    EventType,
    Json,
    NewEvent,
    Outcome,
    Reason,
    RequestRow,
    SessionRow,
    TurnRow,
)
from oubliette.errors import AgentError, AgentUnreachable, ContainerError, ContainerExited, OublietteError, RequestError
from oubliette.project.git import Snapshots
from oubliette.session import prompts, units
from oubliette.session.asks import TurnAsks
from oubliette.session.deps import Deps, ReadyContainer
from oubliette.session.units import TurnEnd
from oubliette.store import turns

log = structlog.get_logger(__name__)

ABORT_SECONDS = 5.0
"""How long an agent may take to stop a turn before its processes are killed by mark anyway."""
DRAIN_SECONDS = 1.0
"""After an abort: how long the agent's last words are waited for."""
SNAPSHOT_SECONDS = 20.0
SETTLE_SECONDS = 3.0
BATCH = 500


class TurnDriver:
    """Drives one turn. ``stop`` may be called from any task at any time; ``run`` returns how the turn ended."""

    def __init__(self, deps: Deps, row: SessionRow, turn: TurnRow) -> None:
        self.row = row
        self.turn = turn
        self._deps = deps
        self._scope = trio.CancelScope()
        self._left = units.deadline_of(row, turn).total_seconds()
        self._clock_runs = False
        self._stopping: tuple[Outcome, Reason | None, bool] | None = None
        self._directory = ""
        self._asks: TurnAsks | None = None
        self._idle: AgentIdle | None = None
        self._tree_before: str | None = None

    # --- from outside

    def stop(self, outcome: Outcome, reason: Reason | None = None, *, kill: bool) -> None:
        """End the turn with that outcome; ``kill``: also whatever its tools left running."""
        if self._stopping is None:
            self._stopping = (outcome, reason, kill)
            self._scope.cancel(f"turn {outcome}")

    @property
    def seconds_left(self) -> float:
        """Of the turn's time limit; what passes while somebody is asked does not count."""
        return max(0.0, self._scope.deadline - trio.current_time()) if self._clock_runs else self._left

    async def reply(self, request: RequestRow, resolution: Json) -> None:
        """Tell the agent how an ask was settled (the row is already written). Quiet when the agent is gone."""
        if self._asks is not None:
            await self._asks.reply(request, resolution)

    # --- the turn

    async def run(self, *, resume: bool) -> TurnEnd:
        """Drive to the end. ``resume``: the prompt may have been sent before a restart. Never raises OublietteError."""
        try:
            async with AsyncExitStack() as stack:
                container: ReadyContainer | None = None
                with trio.CancelScope() as scope:
                    self._limit(scope)
                    await self._deps.place_ready(self.row.project_id, self.row.workspace_id)
                    lease = self._deps.lease(self.row.project_id, self.row.workspace_id)
                    container = await stack.enter_async_context(lease)
                if container is None:
                    return self._stopped_end()
                return await self._with_container(container, resume=resume)
        except OublietteError as error:
            log.warning("turn failed", session=self.row.session_id, turn=self.turn.turn, error=str(error))
            if self._stopping is not None:
                return self._stopped_end()
            return self._failed_end(error)

    async def _with_container(self, container: ReadyContainer, *, resume: bool) -> TurnEnd:
        self._directory = container.directory(self.row.workspace_id)
        snapshots = Snapshots(container.exec)
        end: TurnEnd | None = None
        try:
            with trio.CancelScope() as scope:
                self._limit(scope)
                async with trio.open_nursery() as nursery:
                    self._asks = TurnAsks(self._deps, self.turn, container.agent, self._directory, nursery, self._asked)
                    nursery.start_soon(self._snapshot_before, snapshots)
                    end = await self._converse(container, resume=resume)
                    nursery.cancel_scope.cancel("turn over")
        except* OublietteError as group:
            end = self._failed_end(_first(group))
        finally:
            self._asks = None
        if end is None:
            end = self._stopped_end()
            await self._abort(container)
        return await self._with_files(snapshots, end)

    def _limit(self, scope: trio.CancelScope) -> None:
        """The next stretch of the turn is cut short by ``stop`` and by the time limit; what follows it still runs."""
        self._set_clock(running=False)
        self._scope = scope
        self._set_clock(running=True)
        if self._stopping is not None:
            scope.cancel("stopped before it began")

    async def _converse(self, container: ReadyContainer, *, resume: bool) -> TurnEnd:
        deps, row = self._deps, self.row
        agent = container.agent
        agent_session_id = row.agent_session_id
        if agent_session_id is None:
            agent_session_id = await agent.create_session(
                await prompts.agent_session(deps, row, self.turn, self._directory)
            )
        async with agent.events(agent_session_id, self._directory) as stream:
            self.row = await deps.store.write(
                partial(
                    units.agent_accepts, session_id=row.session_id, agent_session_id=agent_session_id, at=deps.now()
                )
            )
            if resume and await self._already_sent(container, agent_session_id):
                if self._idle is not None:
                    return self._end_of(self._idle)
            else:
                await agent.prompt(agent_session_id, self._directory, await self._prompt(container))
            return await self._follow(stream)

    async def _already_sent(self, container: ReadyContainer, agent_session_id: str) -> bool:
        """After a restart: whether the agent has the prompt; stores what was missed and notes if it has ended since."""
        message_id = self.turn.agent_message_id or ""
        if not await container.agent.has_message(agent_session_id, self._directory, message_id):
            return False
        missed, idle = await container.agent.backfill(agent_session_id, self._directory, message_id)
        await self._store(missed)
        self._idle = idle
        return True

    async def _prompt(self, container: ReadyContainer) -> Prompt:
        return await prompts.prompt(self._deps, self.row, self.turn, container, self._directory)

    async def _follow(self, stream: trio.MemoryReceiveChannel[AgentEvent]) -> TurnEnd:
        while True:
            durables: list[AgentDurable] = []
            for item in await _next_batch(stream):
                if isinstance(item, AgentDurable):
                    durables.append(item)
                    continue
                await self._store(durables)
                durables = []
                end = await self._one(item)
                if end is not None:
                    return end
            await self._store(durables)

    async def _one(self, item: AgentEvent) -> TurnEnd | None:
        if isinstance(item, AgentDelta):
            self._deps.feed.publish_delta(self.row.session_id, self.turn.turn, item)
        elif isinstance(item, AgentAsk):
            await self._require_asks().open(item)
        elif isinstance(item, AgentAskGone):
            await self._require_asks().gone(item.agent_ref)
        elif isinstance(item, AgentRetry):
            data = {"attempt": item.attempt, "message": item.message}
            body: Json = {"code": "model_retry", "data": data}
            await self._store([AgentDurable(EventType.SYSTEM, body, f"retry:{self.turn.turn}:{item.attempt}")])
        elif isinstance(item, AgentIdle):
            return self._end_of(item)
        elif isinstance(item, AgentLost):
            return self._lost_end(item.detail)
        elif not isinstance(item, AgentBusy):
            await self._store([item])
        return None

    async def _store(self, durables: Sequence[AgentDurable]) -> None:
        if not durables:
            return
        number = self.turn.turn
        new = [NewEvent(item.type, number, item.body, source=item.source) for item in durables]
        await self._deps.store.write(partial(units.append_events, session_id=self.row.session_id, new=new))

    def _require_asks(self) -> TurnAsks:
        if self._asks is None:
            raise RuntimeError("asks outside of a running turn")
        return self._asks

    # --- the clock

    def _asked(self, waits: bool) -> None:
        """While somebody is asked the time limit stands still."""
        self._set_clock(running=not waits)

    def _set_clock(self, *, running: bool) -> None:
        if running and not self._clock_runs:
            self._scope.deadline = trio.current_time() + self._left
        elif not running and self._clock_runs:
            self._left = max(0.0, self._scope.deadline - trio.current_time())
            self._scope.deadline = math.inf
        self._clock_runs = running

    # --- the end

    async def _abort(self, container: ReadyContainer) -> None:
        """Stop the agent's turn, then whatever it left running; bounded, and quiet about an agent that is gone."""
        self._deps.cut_model(self.row.session_id)
        agent_session_id = self.row.agent_session_id
        if agent_session_id is None:
            return
        with trio.move_on_after(ABORT_SECONDS) as patience:
            try:
                await container.agent.abort(agent_session_id, self._directory)
            except AgentError as error:
                log.warning("abort failed", session=self.row.session_id, error=str(error))
        kill = self._stopping is not None and self._stopping[2]
        if kill or patience.cancelled_caught:
            with trio.move_on_after(ABORT_SECONDS):
                try:
                    await container.kill_session(agent_session_id)
                except ContainerError as error:
                    log.warning("kill by mark failed", session=self.row.session_id, error=str(error))
        with trio.move_on_after(DRAIN_SECONDS):
            await self._last_words(container, agent_session_id)

    async def _last_words(self, container: ReadyContainer, agent_session_id: str) -> None:
        try:
            missed, _ = await container.agent.backfill(
                agent_session_id, self._directory, self.turn.agent_message_id or ""
            )
        except AgentError:
            return
        await self._store(missed)

    def _end_of(self, idle: AgentIdle) -> TurnEnd:
        if idle.aborted:
            return TurnEnd(Outcome.INTERRUPTED, idle.final_text, error=idle.error)
        if idle.error is not None:
            return TurnEnd(Outcome.FAILED, idle.final_text, error=idle.error)
        return TurnEnd(Outcome.COMPLETED, idle.final_text)

    def _lost_end(self, detail: str) -> TurnEnd:
        error = AgentError(
            "The agent ended in the middle of the turn.",
            hint="Send a message to go on: the conversation is kept.",
            retryable=True,
        )
        log.warning("agent lost", session=self.row.session_id, detail=detail)
        return TurnEnd(Outcome.INTERRUPTED, error=error.as_json(), reason=Reason.AGENT_LOST)

    def _failed_end(self, error: OublietteError) -> TurnEnd:
        if isinstance(error, AgentUnreachable):
            return self._lost_end(str(error))
        if isinstance(error, ContainerExited):
            return TurnEnd(Outcome.INTERRUPTED, error=error.as_json(), reason=Reason.CONTAINER_LOST)
        return TurnEnd(Outcome.FAILED, error=error.as_json())

    def _stopped_end(self) -> TurnEnd:
        if self._stopping is None:
            self._stopping = (Outcome.TIMED_OUT, Reason.TIMEOUT, False)
        outcome, reason, _ = self._stopping
        error: Json | None = None
        if outcome is Outcome.TIMED_OUT:
            error = RequestError(
                "timed_out", "The turn reached its time limit.", hint="Raise timeout_minutes, or split the work."
            ).as_json()
        return TurnEnd(outcome, error=error, reason=reason)

    # --- files

    async def _snapshot_before(self, snapshots: Snapshots) -> None:
        self._tree_before = self.turn.tree_before
        if self._tree_before is None:
            self._tree_before = await self._snapshot(snapshots)
            await self._deps.store.write(
                partial(
                    turns.update,
                    session_id=self.row.session_id,
                    turn=self.turn.turn,
                    tree_before=self._tree_before,
                )
            )

    async def _snapshot(self, snapshots: Snapshots) -> str | None:
        try:
            with trio.fail_after(SNAPSHOT_SECONDS):
                return await snapshots.snapshot(self._directory)
        except (OublietteError, trio.TooSlowError) as error:
            log.warning("no snapshot of the workspace", session=self.row.session_id, error=str(error))
            return None

    async def _with_files(self, snapshots: Snapshots, end: TurnEnd) -> TurnEnd:
        """Add what the turn changed, and wait for the bill of its last model request. Bounded."""
        with trio.move_on_after(SETTLE_SECONDS):
            await self._deps.model_settled(self.row.session_id)
        before = self._tree_before
        if before is None:
            return end
        after = await self._snapshot(snapshots)
        if after is None or after == before:
            return _with(end, before, after, (), truncated=False)
        try:
            with trio.fail_after(SNAPSHOT_SECONDS):
                changes = await snapshots.changes(before, after)
        except (OublietteError, trio.TooSlowError) as error:
            log.warning("no list of changed files", session=self.row.session_id, error=str(error))
            return _with(end, before, after, (), truncated=False)
        return _with(end, before, after, changes.files, truncated=changes.truncated)


def _with(end: TurnEnd, before: str | None, after: str | None, files: Sequence[Json], *, truncated: bool) -> TurnEnd:
    return TurnEnd(end.outcome, end.final_text, files, truncated, end.error, before, after, end.reason)


def _first(group: BaseExceptionGroup[OublietteError]) -> OublietteError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")


async def _next_batch(stream: trio.MemoryReceiveChannel[AgentEvent]) -> list[AgentEvent]:
    """Whatever has arrived, at least one: many small events become one write. Raises AgentError at the end."""
    try:
        batch = [await stream.receive()]
    except trio.EndOfChannel:
        raise AgentError("The agent's events ended without an outcome.", retryable=True) from None
    while len(batch) < BATCH:
        try:
            batch.append(stream.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            break
    return batch
