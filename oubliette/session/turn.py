"""One turn, from the claimed row to its completion: lease the container, prompt the agent, store what it says.

The turn's time limit is the deadline of one cancel scope; it stands still while somebody is asked. Being stopped
(interrupt, end, cancel) cancels that same scope and leaves a note of why.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime
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
from oubliette.errors import AgentError, AgentUnreachable, ContainerExited, OublietteError, RequestError
from oubliette.project.git import Snapshots
from oubliette.session import budgets, diffs, prompts, units
from oubliette.session.asks import TurnAsks
from oubliette.session.deps import Deps, ReadyContainer
from oubliette.session.hearing import Hearing
from oubliette.session.stop_agent import stop_agent
from oubliette.session.turn_clock import TurnClock
from oubliette.session.units import TurnEnd
from oubliette.store import turns
from oubliette.store.database import Tx

log = structlog.get_logger(__name__)

TAKE_UP_SECONDS = 30.0
"""After a restart: how long a turn that is to be stopped waits for its container, and for being stopped there."""
DRAIN_SECONDS = 1.0
"""After an abort: how long the agent's last words are waited for."""
SNAPSHOT_SECONDS = 20.0
SETTLE_SECONDS = 3.0


class TurnDriver:
    """Drives one turn. ``stop`` may be called from any task at any time; ``run`` returns how the turn ended."""

    def __init__(self, deps: Deps, row: SessionRow, turn: TurnRow) -> None:
        self.row = row
        self.turn = turn
        self._deps = deps
        self._scope = trio.CancelScope()
        self._clock = TurnClock(units.deadline_of(row, turn).total_seconds())
        self._stopping: tuple[Outcome, Reason | None, bool] | None = None
        self._directory = ""
        self._asks: TurnAsks | None = None
        self._heard: Hearing | None = None
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
        """Of the turn's time limit; what passes while somebody is asked or the tree is held does not count."""
        return self._clock.seconds_left

    def hold(self, *, held: bool) -> None:
        """Its tree is held by its budget, or goes on: the time limit stands still meanwhile."""
        self._clock.stand("budget", still=held)

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
                    if resume and self.row.agent_session_id is not None:
                        await self._stop_what_was_begun(stack)
                    return self._stopped_end()
                return await self._with_container(container, resume=resume)
        except OublietteError as error:
            log.warning("turn failed", session=self.row.session_id, turn=self.turn.turn, error=str(error))
            if self._stopping is not None:
                return self._stopped_end()
            return self._failed_end(error)

    async def _stop_what_was_begun(self, stack: AsyncExitStack) -> None:
        """Stopped before the container was there, after a restart: the agent may be at work on the turn."""
        with trio.move_on_after(TAKE_UP_SECONDS):
            lease = self._deps.lease(self.row.project_id, self.row.workspace_id)
            container = await stack.enter_async_context(lease)
            self._directory = container.directory(self.row.workspace_id)
            await self._abort(container)

    async def _with_container(self, container: ReadyContainer, *, resume: bool) -> TurnEnd:
        self._directory = container.directory(self.row.workspace_id)
        snapshots = self._deps.snapshots.of(container)
        async with AsyncExitStack() as listening:
            end = await self._conversation(container, listening, snapshots, resume=resume)
            if end is None:
                end = self._stopped_end()
                await self._abort(container)
        return await self._with_results(await self._with_files(snapshots, end))

    async def _conversation(
        self, container: ReadyContainer, listening: AsyncExitStack, snapshots: Snapshots, *, resume: bool
    ) -> TurnEnd | None:
        """The part of the turn that may be stopped; None: it was. What the agent says is heard until ``listening``
        ends."""
        end: TurnEnd | None = None
        try:
            with trio.CancelScope() as scope, self._deps.callers.clock(self.row.session_id, self._called):
                self._limit(scope)
                async with trio.open_nursery() as nursery:
                    self._asks = TurnAsks(self._deps, self.turn, container.agent, self._directory, nursery, self._asked)
                    nursery.start_soon(self._snapshot_before, snapshots)
                    end = await self._converse(container, listening, resume=resume)
                    nursery.cancel_scope.cancel("turn over")
        except* OublietteError as group:
            end = self._failed_end(_first(group))
        finally:
            self._asks = None
        return end

    def _limit(self, scope: trio.CancelScope) -> None:
        """The next stretch of the turn is cut short by ``stop`` and by the time limit; what follows it still runs."""
        self._scope = scope
        self._clock.cover(scope)
        if self._stopping is not None:
            scope.cancel("stopped before it began")

    async def _converse(self, container: ReadyContainer, listening: AsyncExitStack, *, resume: bool) -> TurnEnd:
        deps, row = self._deps, self.row
        agent = container.agent
        agent_session_id = row.agent_session_id
        if agent_session_id is None:
            agent_session_id = await agent.create_session(
                await prompts.agent_session(deps, row, self.turn, self._directory)
            )
        stream = await listening.enter_async_context(agent.events(agent_session_id, self._directory))
        self._heard = Hearing(stream)
        self.row = await deps.store.write(partial(self._accepted, agent_session_id=agent_session_id, at=deps.now()))
        if resume and await self._already_sent(container, agent_session_id):
            if self._idle is not None:
                return self._end_of(self._idle)
            await self._require_asks().take_up()
        else:
            await deps.caller_entries.ready(container, self.row, self.turn, self._directory)
            await agent.prompt(agent_session_id, self._directory, await self._prompt(container))
        return await self._follow(self._heard)

    def _accepted(self, tx: Tx, agent_session_id: str, at: datetime) -> SessionRow:
        row = units.agent_accepts(tx, self.row.session_id, agent_session_id, at)
        tx.after_commit(partial(self.hold, held=budgets.paused(row)))  # in order with what holds and frees the tree
        return row

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

    async def _follow(self, heard: Hearing) -> TurnEnd:
        while True:
            item = heard.first
            if item is None:
                await heard.more()
            elif durables := heard.durables:
                await self._store(durables)
                heard.done(len(durables))
            else:
                end = await self._one(item)
                heard.done()
                if end is not None:
                    return end

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

    def _asked(self, waits: bool) -> None:
        """While somebody is asked the time limit stands still."""
        self._clock.stand("asked", still=waits)

    def _called(self, waits: bool) -> None:
        """The same while a caller is asked to run its tool."""
        self._clock.stand("called", still=waits)

    # --- the end

    async def _abort(self, container: ReadyContainer) -> None:
        """Stop the agent's turn, then whatever it left running; bounded, and quiet about an agent that is gone."""
        self._deps.cut_model(self.row.session_id)
        agent_session_id = self.row.agent_session_id
        if agent_session_id is None:
            return
        kill = self._stopping is not None and self._stopping[2]
        await stop_agent(container, agent_session_id, self._directory, kill=kill)
        with trio.move_on_after(DRAIN_SECONDS):
            await self._last_words(container, agent_session_id)

    async def _last_words(self, container: ReadyContainer, agent_session_id: str) -> None:
        """What was heard while it was being stopped; when its end was not among that, what its history has."""
        rest = self._heard.rest() if self._heard is not None else []
        await self._store([one for one in rest if isinstance(one, AgentDurable)])
        if any(isinstance(one, AgentIdle) for one in rest):
            return
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
        shown = {
            name: self._deps.public_text(value) if isinstance(value, str) else value
            for name, value in error.as_json().items()
        }
        if isinstance(error, ContainerExited):
            return TurnEnd(Outcome.INTERRUPTED, error=shown, reason=Reason.CONTAINER_LOST)
        return TurnEnd(Outcome.FAILED, error=shown)

    def _stopped_end(self) -> TurnEnd:
        if self._stopping is None:
            self._stopping = (Outcome.TIMED_OUT, Reason.TIMEOUT, False)
        outcome, reason, _ = self._stopping
        error: Json | None = None
        if outcome is Outcome.BUDGET:
            error = budgets.held_too_long().as_json()
        elif outcome is Outcome.TIMED_OUT:
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
        end = replace(end, tree_before=before, tree_after=after)
        if after is None:
            return end
        try:
            with trio.fail_after(SNAPSHOT_SECONDS):
                changed = await diffs.of_turn(self._deps.store, snapshots, self.turn, before, after)
        except (OublietteError, trio.TooSlowError) as error:
            log.warning("no list of changed files", session=self.row.session_id, error=str(error))
            return end
        if not changed:
            return end
        return replace(end, files=changed[0].files, files_truncated=changed[0].files_truncated, changes=changed)

    async def _with_results(self, end: TurnEnd) -> TurnEnd:
        """Add what a child has left for its parent."""
        if self.row.parent_id is None:
            return end
        try:
            return replace(end, results=await self._deps.results(self.row))
        except (OublietteError, OSError) as error:
            log.warning("no list of results", session=self.row.session_id, error=str(error))
            return end


def _first(group: BaseExceptionGroup[OublietteError]) -> OublietteError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")
