"""The writes of runs: each function is one unit of the store, all or nothing.

A run's row is inserted together with its message, so that a crash leaves either both or neither; from then on rows
alone say what becomes of it. ``settle`` may be asked any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

from oubliette.core import cron
from oubliette.core.events import schedule_run_event
from oubliette.core.limits import MAX_QUEUED_RUNS
from oubliette.core.model import EventType, Json, Outcome, SessionRow, TurnRow, TurnStatus
from oubliette.core.notices import thin_run
from oubliette.core.schedule_rows import PauseReason, RunRow, RunStatus, ScheduleRow, TargetRow
from oubliette.errors import OublietteError, RequestError
from oubliette.log import get_logger
from oubliette.schedule import authority, due, views
from oubliette.schedule.sending import PASSES, Ways, send
from oubliette.session import units
from oubliette.session.limits import AT_WORK
from oubliette.store import events, runs, schedules, sessions, turns, webhooks
from oubliette.store.database import Tx

log = get_logger(__name__)

REFUSED_AT_ONCE = 32
"""So many runs of those that wait for room are refused once more before a unit leaves the rest for later: thousands may
wait, and every turn that ends asks."""
LONG = timedelta(days=2)
"""A gap of that length is looked at twice: the clock may have been wrong before."""
HELD = timedelta(hours=1)
"""How long a run waits for what passes by itself (room for a session, disk) before it fails with that."""
_ENDS = {Outcome.COMPLETED: RunStatus.SUCCEEDED, Outcome.CANCELLED: RunStatus.CANCELLED}
"""What any other outcome of its turn makes of a run: failed."""


@dataclass(slots=True)
class Effects:
    """What is to be done after the commit: sessions that have something to do, and trees that were made for a run which
    is over, marked as ending by the unit, each root first."""

    started: list[SessionRow] = field(default_factory=list)
    close: list[list[str]] = field(default_factory=list)
    refused: int = 0
    """How many runs have found no room."""


def claim(tx: Tx, ways: Ways, schedule_id: str, at: datetime) -> Effects:
    """Account for everything of the schedule that is due by ``at``."""
    effects = Effects()
    row = schedules.get(tx, schedule_id)
    if row is None or row.due_at is None or row.due_at > at:
        return effects
    try:
        expression = cron.parse(row.cron_expr, row.timezone)
    except RequestError as error:
        schedules.pause(tx, row, "invalid", at, error.message)
        return effects
    if at - row.accounted_until > LONG:
        # A clock that was years behind has had it begin anew there; what ran before was neither missed nor runs again.
        newest = runs.latest_planned(tx, schedule_id, at)
        row = replace(row, accounted_until=max(row.accounted_until, newest or row.accounted_until))
    found = due.account(row, at, expression)
    if found is not None:
        schedules.update(tx, schedule_id, accounted_until=found.until, **({"last_run_at": at} if found.run else {}))
        for target in schedules.targets(tx, schedule_id):
            if found.gap is not None:
                _note_gap(tx, ways, row, target, found.gap, at)
            if found.run is not None:
                run = _new_run(ways, row, target, at, planned_at=found.run, missed_count=found.stands_for)
                _enter(tx, ways, row, target, run, at, effects)
        runs.prune(tx, schedule_id, ways.config.retention.runs_per_schedule)
    # An earlier run may have paused it just now.
    row = replace(schedules.get(tx, schedule_id) or row, accounted_until=found.until if found is not None else at)
    schedules.update(tx, schedule_id, accounted_until=row.accounted_until, **due.upcoming(row, expression))
    return effects


def trigger(tx: Tx, ways: Ways, row: ScheduleRow, asked_by: str | None, at: datetime) -> tuple[list[RunRow], Effects]:
    """One run for each target, now, with the rights of the token ``asked_by``."""
    effects = Effects()
    made = []
    latest = runs.latest_by_hand(tx, row.schedule_id)
    planned = at if latest is None or latest < at else latest + timedelta(microseconds=1)
    for target in schedules.targets(tx, row.schedule_id):
        run = _new_run(ways, row, target, at, planned_at=planned, trigger="manual", authority=asked_by)
        _enter(tx, ways, row, target, run, at, effects)
        made.append(runs.get(tx, run.run_id) or run)
    schedules.update(tx, row.schedule_id, last_run_at=at)
    runs.prune(tx, row.schedule_id, ways.config.retention.runs_per_schedule)
    return made, effects


def settle(tx: Tx, ways: Ways, at: datetime, session_ids: Collection[str] | None = None) -> Effects:
    """Bring runs up to their turns (of these sessions; of all), and let those that wait for it go on."""
    effects = Effects()
    for run in runs.at_work(tx, session_ids):
        _alone(tx, run, partial(_bring_up, run=run, at=at))
    for session_id in runs.left_open(tx, session_ids):
        counts = sessions.tree_counts(tx, session_id)
        if not any(counts[status] for status in AT_WORK):
            marked = units.mark_ending(tx, session_id, "completed", at)
            if marked:
                effects.close.append([row.session_id for row in marked])
    # Those that were refused before come last: they must not take the turn of those that need no room.
    for run in sorted(runs.waiting(tx), key=lambda run: run.held_since is not None):
        if effects.refused >= REFUSED_AT_ONCE:
            break
        _alone(tx, run, partial(_go_on, ways=ways, run=run, at=at, effects=effects))
    return effects


def _alone(tx: Tx, run: RunRow, part: Callable[[Tx], None]) -> None:
    """Trouble with one run is logged, and keeps none of the others from going on."""
    try:
        tx.attempt(part)
    except Exception:
        if not tx.intact:
            raise
        log.exception("a run could not be brought up to its turn", run_id=run.run_id, schedule_id=run.schedule_id)


# --- the life of a run


def _bring_up(tx: Tx, run: RunRow, at: datetime) -> None:
    turn = turns.get(tx, run.session_id or "", run.turn or 0)
    if turn is None:
        _end(tx, run, RunStatus.CANCELLED, at, reason="session_deleted")
        return
    if run.status is RunStatus.CLAIMED and turn.started_at is not None:
        run = _begin(tx, run, turn.started_at)
    if turn.status is TurnStatus.DONE:
        _end_with(tx, run, turn, at)


def _new_run(ways: Ways, row: ScheduleRow, target: TargetRow, at: datetime, **fields: object) -> RunRow:
    run = RunRow(
        run_id=f"run_{ways.fresh_hex(24)}",
        schedule_id=row.schedule_id,
        target_id=target.target_id,
        project_id=target.project_id,
        trigger="cron",
        planned_at=at,
        claimed_at=at,
        status=RunStatus.CLAIMED,
        workspace_id=target.workspace_id,
    )
    return replace(run, **fields)  # type: ignore[arg-type]  # fields of RunRow


def _note_gap(tx: Tx, ways: Ways, row: ScheduleRow, target: TargetRow, gap: cron.Due, at: datetime) -> None:
    """One row for all of them; ``until`` is None for a single one."""
    until = gap.last if gap.count > 1 else None
    missed = _new_run(ways, row, target, at, planned_at=gap.first, missed_count=gap.count, until=until, ended_at=at)
    runs.insert(tx, replace(missed, status=RunStatus.MISSED, reason="late"))


def _enter(
    tx: Tx,
    ways: Ways,
    row: ScheduleRow,
    target: TargetRow,
    run: RunRow,
    at: datetime,
    effects: Effects,
) -> None:
    """Insert the run: skipped or queued behind the target's others, or with its message."""
    status, reason = _overlap(tx, row, target)
    denied = _denied(tx, row, run, at)
    if denied is not None:
        status, reason = RunStatus.SKIPPED, denied
    ended = at if status is RunStatus.SKIPPED else None
    if not runs.insert(tx, replace(run, status=status, reason=reason, ended_at=ended)):
        return
    if denied is not None and run.trigger == "cron":
        current = schedules.get(tx, row.schedule_id)
        if current is not None:
            schedules.pause(tx, current, denied, at)
    if status is RunStatus.CLAIMED:
        _send(tx, ways, row, target, run, at, effects)


def _overlap(tx: Tx, row: ScheduleRow, target: TargetRow) -> tuple[RunStatus, str | None]:
    others = runs.open_of_target(tx, target.target_id)
    if not others or row.overlap_behavior == "parallel":
        return RunStatus.CLAIMED, None
    if row.overlap_behavior == "skip":
        return RunStatus.SKIPPED, "overlap"
    if sum(other.status is RunStatus.QUEUED for other in others) >= MAX_QUEUED_RUNS:
        return RunStatus.SKIPPED, "queue_full"
    return RunStatus.QUEUED, None


def _denied(tx: Tx, row: ScheduleRow, run: RunRow, at: datetime) -> PauseReason | None:
    answers = row.authority if run.trigger == "cron" else run.authority
    return authority.missing(tx, answers, run.project_id, at)


def _send(
    tx: Tx,
    ways: Ways,
    row: ScheduleRow,
    target: TargetRow,
    run: RunRow,
    at: datetime,
    effects: Effects,
) -> None:
    """Its message to a session; what passes by itself is waited for, anything else ends it."""
    try:
        sent = tx.attempt(partial(send, ways=ways, schedule=row, target=target, at=at))
    except RequestError as error:
        reason = PASSES.get(error.code)
        held_since = run.held_since or at
        if reason is None or at - held_since > HELD:
            _end(tx, run, RunStatus.FAILED, at, reason=error.code, error=error.as_json())
        else:
            runs.update(tx, run.run_id, status=RunStatus.QUEUED, reason=reason, held_since=held_since)
            effects.refused += 1
        return
    except Exception as error:
        if not tx.intact:
            raise
        # It would fail the next time as well: said of the run, counted, and in the way of no other.
        log.exception("a run could not be sent", run_id=run.run_id, schedule_id=run.schedule_id)
        failure = OublietteError(f"The run could not be begun: {type(error).__name__}. The daemon's log has more.")
        _end(tx, run, RunStatus.FAILED, at, reason=failure.code, error=failure.as_json())
        return
    runs.update(
        tx,
        run.run_id,
        status=RunStatus.CLAIMED,
        reason=None,
        workspace_id=sent.row.workspace_id,
        session_id=sent.row.session_id,
        session=sent.bound,
        turn=sent.turn,
    )
    tx.after_commit(partial(ways.watch, sent.row.session_id))
    effects.started.append(sent.row)


def _go_on(tx: Tx, ways: Ways, run: RunRow, at: datetime, effects: Effects) -> None:
    """Let a queued run have its message if it is its turn."""
    row, target = schedules.get(tx, run.schedule_id), schedules.target(tx, run.target_id)
    current = runs.get(tx, run.run_id)
    if current is None or current.status is not RunStatus.QUEUED or row is None:
        return
    if target is None:
        _end(tx, run, RunStatus.CANCELLED, at, reason="target_removed")
        return
    if run.trigger == "cron" and not row.active:
        # It came to wait in the unit that paused it, after what waited was cancelled.
        _end(tx, run, RunStatus.CANCELLED, at, reason="disabled" if row.paused is None else "paused")
        return
    others = runs.open_of_target(tx, run.target_id)
    if row.overlap_behavior != "parallel" and others[0].run_id != run.run_id:
        return
    denied = _denied(tx, row, run, at)
    if denied is not None:
        _end(tx, run, RunStatus.SKIPPED, at, reason=denied)
        if run.trigger == "cron":
            schedules.pause(tx, row, denied, at)
        return
    _send(tx, ways, row, target, run, at, effects)


def _begin(tx: Tx, run: RunRow, started_at: datetime) -> RunRow:
    run = replace(run, status=RunStatus.RUNNING, started_at=started_at)
    runs.update(tx, run.run_id, status=run.status, started_at=started_at)
    _tell(tx, EventType.SCHEDULE_RUN_STARTED, run)
    return run


def _end_with(tx: Tx, run: RunRow, turn: TurnRow, at: datetime) -> None:
    outcome = turn.outcome or Outcome.INTERRUPTED
    status = _ENDS.get(outcome, RunStatus.FAILED)
    reason = None if status is RunStatus.SUCCEEDED else str(outcome)
    _end(tx, run, status, turn.ended_at or at, reason=reason, text=turn.final_text, error=turn.error)


def _end(
    tx: Tx,
    run: RunRow,
    status: RunStatus,
    at: datetime,
    *,
    reason: str | None = None,
    text: str | None = None,
    error: Json | None = None,
) -> None:
    """The run is over: its row, its event, what it means for the schedule."""
    ended = replace(
        run,
        status=status,
        reason=reason,
        ended_at=at,
        output=text[: views.OUTPUT] if text is not None else None,
        output_bytes=len(text.encode("utf-8", "replace")) if text is not None else None,
        usage=views.usage_of(tx, run) if run.started_at is not None else None,
        error=error,
    )
    runs.update(
        tx,
        run.run_id,
        status=status,
        reason=reason,
        ended_at=at,
        output=ended.output,
        output_bytes=ended.output_bytes,
        usage=ended.usage,
        error=error,
    )
    _tell(tx, EventType.SCHEDULE_RUN_ENDED, ended)
    if status in (RunStatus.SUCCEEDED, RunStatus.FAILED):
        _count(tx, ended, at)


def _count(tx: Tx, run: RunRow, at: datetime) -> None:
    """Failures in a row of its target; too many pause the schedule."""
    target, row = schedules.target(tx, run.target_id), schedules.get(tx, run.schedule_id)
    if target is None or row is None:
        return
    failures = 0 if run.status is RunStatus.SUCCEEDED else target.consecutive_failures + 1
    if failures != target.consecutive_failures:
        schedules.update_target(tx, target.target_id, consecutive_failures=failures)
    if failures and failures >= row.pause_after_failures > 0:
        # Whoever reads one of its projects reads this: what was said in one of several is in its history alone.
        alone = len(schedules.projects_of(tx, row.schedule_id)) == 1
        said = str((run.error or {}).get("message") or run.reason or "") if alone else ""
        text = f"{failures} runs failed in a row." if failures > 1 else "A run failed."
        schedules.pause(tx, row, "failures", at, f"{text} The last: {said}" if said else text)


def _tell(tx: Tx, kind: EventType, run: RunRow) -> None:
    """Its event, in the log of its session; a run that never had one is told of by a notice alone."""
    tx.tell(schedules.TOPIC, run.schedule_id)
    shape = views.run_view(tx, run)
    at = run.ended_at or run.started_at or run.claimed_at
    if run.session_id is not None and sessions.get(tx, run.session_id) is not None:
        events.append(tx, run.session_id, schedule_run_event(kind, run.turn, shape, at))
    elif kind is EventType.SCHEDULE_RUN_ENDED:
        webhooks.add(tx, "schedule.run_ended", run.project_id, {"run": thin_run(shape)}, at)
