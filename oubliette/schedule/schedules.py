"""Schedules as callers reach them: made, changed, looked at, triggered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from itertools import islice

import trio

from oubliette.config import Config
from oubliette.core import cron
from oubliette.core.model import Json, rfc3339
from oubliette.core.principals import Principal
from oubliette.core.schedule_rows import RunRow, RunStatus, ScheduleRow
from oubliette.errors import RequestError
from oubliette.schedule import authority, due, settings, views
from oubliette.schedule.requests import UNSET, ScheduleArgs, ScheduleChanges
from oubliette.schedule.runs import Effects
from oubliette.schedule.runs import trigger as trigger_unit
from oubliette.schedule.scheduler import Scheduler
from oubliette.schedule.sending import Ways
from oubliette.store import runs, schedules
from oubliette.store.database import Store, Tx

MAX_PREVIEW = 100


class Schedules:
    """The noun behind the ``schedule`` tool. Results are SHAPES' Schedule and Run. All raise RequestError.

    Write calls need write on every target; reads need read on one of them and show no target of another project.
    ``Store.hear(store.schedules.TOPIC, …)`` tells of every change.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        scheduler: Scheduler,
        *,
        now: Callable[[], datetime],
        fresh_hex: Callable[[int], str],
    ) -> None:
        self._store = store
        self._config = config
        self._scheduler = scheduler
        self._now = now
        self._fresh_hex = fresh_hex

    async def create(self, principal: Principal, args: ScheduleArgs) -> Json:
        """A new schedule (Schedule). Raises invalid_argument (with ``field``), not_found, limit_reached."""
        given = settings.columns(args)
        at = self._now()
        schedule_id = f"sched_{self._fresh_hex(24)}"

        def unit(tx: Tx) -> Json:
            row = settings.new_row(schedule_id, given, principal, authority.of(tx, principal), at)
            settings.check(row)
            settings.check_places(tx, self._config, principal, row, args.targets)
            row = replace(row, **due.upcoming(row))
            schedules.insert(tx, row)
            settings.put_targets(tx, schedule_id, args.targets, self._fresh_hex)
            return views.schedule_view(tx, row, at, project_id=principal.scope.project_id)

        return await self._store.write(unit)

    async def update(self, principal: Principal, schedule_id: str, changes: ScheduleChanges) -> Json:
        """Change what is set (Schedule). Whoever changes a schedule answers for its runs from then on.

        Changed times begin now; what was planned before is neither run nor counted as missed.
        """
        given = settings.columns(changes)
        at = self._now()

        def unit(tx: Tx) -> Json:
            old = authority.writable(tx, principal, schedule_id, "schedule.update")
            row = replace(old, **given, updated_at=at, authority=authority.of(tx, principal))
            wanted = changes.targets
            if wanted is UNSET:
                wanted = settings.given_targets(tx, schedule_id)
            if given != {"enabled": False} or changes.targets is not UNSET:
                settings.check(row)
                settings.check_places(tx, self._config, principal, row, wanted)
            # To switch it off is always possible: whatever it names may be gone, or more than this principal may give.
            if given.get("enabled"):
                row = replace(row, paused=None)
                settings.forget_failures(tx, schedule_id)
            if row.active and (not old.active or _times(row) != _times(old)):
                row = replace(row, accounted_until=at)
            row = replace(row, **due.upcoming(row))
            schedules.put(tx, row)
            if changes.targets is not UNSET:
                settings.put_targets(tx, schedule_id, wanted, self._fresh_hex)
            if old.enabled and not row.enabled:
                runs.cancel_waiting(tx, schedule_id, reason="disabled", at=at)
            return views.schedule_view(tx, row, at, project_id=principal.scope.project_id)

        return await self._store.write(unit)

    async def delete(self, principal: Principal, schedule_id: str) -> Json:
        """``{"schedule_id", "deleted": true}``: with its history; sessions stay, a running turn goes on."""

        def unit(tx: Tx) -> Json:
            authority.writable(tx, principal, schedule_id, "schedule.delete")
            schedules.delete(tx, schedule_id)
            return {"schedule_id": schedule_id, "deleted": True}

        return await self._store.write(unit)

    async def get(self, principal: Principal, schedule_id: str) -> Json:
        """Schedule, with ``next_runs`` and each target's ``last_run``."""

        def query(tx: Tx) -> Json:
            row = authority.seen(tx, principal, schedule_id, "schedule.get")
            return views.schedule_view(tx, row, self._now(), project_id=principal.scope.project_id)

        return await self._store.read(query)

    async def list_page(
        self, principal: Principal, *, project_id: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Json:
        """``{"schedules": [...], "next_cursor"?}``, newest first; what the principal may see."""
        place = principal.scope.project_id or project_id
        if project_id is not None and project_id != place:
            raise RequestError("not_found", "There is no such project.", hint="List what there is with project list.")

        def query(tx: Tx) -> Json:
            rows, following = schedules.list_page(
                tx, project_id=place, limit=limit, cursor=cursor, bound_to=principal.id
            )
            own, at = principal.scope.project_id, self._now()
            shape: Json = {"schedules": [views.schedule_view(tx, row, at, project_id=own, listed=True) for row in rows]}
            return {**shape, "next_cursor": following} if following is not None else shape

        return await self._store.read(query)

    async def trigger(self, principal: Principal, schedule_id: str) -> Json:
        """One run for each target, now: ``{"schedule_id", "run_ids": [...], "runs": [Run, ...]}``. Also when it is
        disabled or paused; its overlap rule holds. The runs have the caller's rights."""

        def unit(tx: Tx, *, ways: Ways, at: datetime) -> tuple[Json, Effects]:
            row = authority.writable(tx, principal, schedule_id, "schedule.trigger")
            if not schedules.projects_of(tx, schedule_id):
                raise RequestError(
                    "conflict", "The schedule has no targets left.", hint="Give it some: schedule update."
                )
            made, effects = trigger_unit(tx, ways, row, authority.of(tx, principal), at)
            return _triggered(tx, schedule_id, made), effects

        return await self._scheduler.carry_out(unit)

    async def history(
        self,
        principal: Principal,
        schedule_id: str,
        *,
        limit: int = 50,
        cursor: str | None = None,
        status: str | None = None,
    ) -> Json:
        """``{"runs": [Run, ...], "next_cursor"?}``, newest first."""
        if status is not None and status not in set(RunStatus):
            raise RequestError("invalid_argument", f"status: one of {', '.join(RunStatus)} is needed.", field="status")
        wanted = RunStatus(status) if status is not None else None

        def query(tx: Tx) -> Json:
            authority.seen(tx, principal, schedule_id, "schedule.history")
            rows, following = runs.list_page(
                tx,
                schedule_id,
                project_id=principal.scope.project_id,
                status=wanted,
                limit=limit,
                cursor=cursor,
                bound_to=principal.id,
            )
            shape: Json = {"runs": [views.run_view(tx, row) for row in rows]}
            return {**shape, "next_cursor": following} if following is not None else shape

        return await self._store.read(query)

    async def preview(self, cron_expr: str, timezone: str = "UTC", count: int = 5) -> Json:
        """``{"cron_expr", "timezone", "cron_text", "next_runs": [RFC 3339 UTC], "next_runs_local": [ISO 8601]}``."""
        # In a thread: many leap days, and what is no time zone, take tens of milliseconds, and any token may ask.
        return await trio.to_thread.run_sync(_preview, cron_expr, timezone, self._now(), count)


def _preview(cron_expr: str, timezone: str, at: datetime, count: int) -> Json:
    expression = cron.parse(cron_expr, timezone)
    times = list(islice(cron.occurrences(expression, at), max(1, min(count, MAX_PREVIEW))))
    there = cron.zone(timezone)
    return {
        "cron_expr": cron_expr,
        "timezone": timezone,
        "cron_text": cron.cron_text(cron_expr),
        "next_runs": [rfc3339(at) for at in times],
        "next_runs_local": [at.astimezone(there).isoformat() for at in times],
    }


def _times(row: ScheduleRow) -> tuple[str, str]:
    return row.cron_expr, row.timezone


def _triggered(tx: Tx, schedule_id: str, made: list[RunRow]) -> Json:
    return {
        "schedule_id": schedule_id,
        "run_ids": [run.run_id for run in made],
        "runs": [views.run_view(tx, run) for run in made],
    }
