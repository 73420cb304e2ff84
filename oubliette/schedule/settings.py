"""What a schedule may be: its arguments checked and put into rows. What takes a ``tx`` is part of a unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, get_args

from oubliette.config import Config
from oubliette.core import access, cron
from oubliette.core.access import no_such
from oubliette.core.limits import MAX_LINE_CHARACTERS, MAX_MESSAGE_BYTES, MAX_SCHEDULE_TARGETS
from oubliette.core.model import Json, PlaceState
from oubliette.core.principals import Principal
from oubliette.core.schedule_rows import ScheduleRow, TargetRow
from oubliette.errors import RequestError
from oubliette.schedule.requests import (
    UNSET,
    Misfire,
    Overlap,
    ScheduleArgs,
    ScheduleChanges,
    SessionBehavior,
    TargetArgs,
)
from oubliette.session import choices
from oubliette.store import projects, schedules, workspaces
from oubliette.store.database import Tx

MAX_JITTER_SECONDS = 86_400
MAX_TIMEOUT_MINUTES = 7 * 24 * 60
MAX_FAILURES = 1_000


def columns(given: ScheduleArgs | ScheduleChanges) -> Json:
    """The columns that the arguments set (targets aside), each checked by itself. Raises RequestError."""
    asked = {field.name: getattr(given, field.name) for field in fields(given) if field.name != "targets"}
    found: Json = {name: value for name, value in asked.items() if value is not UNSET}
    for name, check in _CHECKS.items():
        if name in found:
            found[name] = check(name, found[name])
    if "max_cost_usd" in found:
        usd = found.pop("max_cost_usd")
        found["max_cost_microusd"] = None if usd is None else round(usd * 1_000_000)
    return found


def check(row: ScheduleRow) -> None:
    """What its settings must be together. Raises RequestError."""
    cron.parse(row.cron_expr, row.timezone)
    if row.overlap_behavior == "parallel" and row.session_behavior != "new":
        raise _invalid("overlap_behavior", "parallel needs session_behavior new: one session has one turn at a time")


def check_places(tx: Tx, config: Config, principal: Principal, row: ScheduleRow, targets: Sequence[TargetArgs]) -> None:
    """Write on every target, each a usable place that may use the model. Raises RequestError."""
    if not targets:
        raise _invalid("targets", "at least one is needed: [{project_id, workspace_id?}]")
    if len(targets) > MAX_SCHEDULE_TARGETS:
        raise _invalid("targets", f"there may be {MAX_SCHEDULE_TARGETS}")
    if len({(one.project_id, one.workspace_id) for one in targets}) != len(targets):
        raise _invalid("targets", "one is there twice")
    for one in targets:
        project = projects.get(tx, one.project_id)
        try:
            access.check(principal, "schedule.create", project.project_id if project is not None else None)
        except RequestError as error:
            raise (no_such("project") if error.code == "not_found" else error) from None
        if project is None or project.state is PlaceState.DELETING:
            raise no_such("project")
        if one.workspace_id is not None:
            place = workspaces.get(tx, one.workspace_id)
            if place is None or place.project_id != one.project_id or place.state is PlaceState.DELETING:
                raise no_such("workspace")
        most = row.max_cost_microusd
        if most is not None or row.model is not None:
            alias = choices.choose_model(config, project, row.model)
            choices.check_cost(config, project, principal, most / 1_000_000 if most is not None else None)
            choices.check_priced(config, project, alias, explicit=most is not None)


def put_targets(tx: Tx, schedule_id: str, targets: Sequence[TargetArgs], fresh_hex: Callable[[int], str]) -> None:
    """Have exactly these. One that names the same place as before keeps its id and its pinned session; so does one that
    is alone in its project and names another workspace."""
    known = {(one.project_id, one.workspace_id): one for one in schedules.targets(tx, schedule_id)}
    kept = {key: known.pop(key) for key in [(one.project_id, one.workspace_id) for one in targets] if key in known}
    for position, asked in enumerate(targets):
        key = (asked.project_id, asked.workspace_id)
        moved = [one for one in known if one[0] == asked.project_id] if key not in kept else []
        if key in kept:
            schedules.update_target(tx, kept[key].target_id, position=position)
        elif len(moved) == 1:
            target = known.pop(moved[0])
            schedules.update_target(tx, target.target_id, position=position, workspace_id=asked.workspace_id)
        else:
            target_id = f"tgt_{fresh_hex(24)}"
            schedules.add_target(tx, TargetRow(target_id, schedule_id, asked.project_id, position, asked.workspace_id))
    for gone in known.values():
        schedules.remove_target(tx, gone.target_id)


def given_targets(tx: Tx, schedule_id: str) -> list[TargetArgs]:
    """Those that it has, as if they were given again."""
    return [TargetArgs(one.project_id, one.workspace_id) for one in schedules.targets(tx, schedule_id)]


def forget_failures(tx: Tx, schedule_id: str) -> None:
    """Nothing has failed in a row (a pause was ended)."""
    for one in schedules.targets(tx, schedule_id):
        if one.consecutive_failures:
            schedules.update_target(tx, one.target_id, consecutive_failures=0)


def new_row(schedule_id: str, given: Json, principal: Principal, authority: str | None, at: datetime) -> ScheduleRow:
    return ScheduleRow(
        schedule_id=schedule_id,
        created_at=at,
        updated_at=at,
        created_by=principal.as_json(),
        accounted_until=at,
        authority=authority,
        **given,
    )


# --- single values


def _line(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_LINE_CHARACTERS or not value.isprintable():
        raise _invalid(name, f"one line of 1 to {MAX_LINE_CHARACTERS} characters is needed")
    return value.strip()


def _message(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _invalid(name, "a text is needed")
    if len(value.encode("utf-8", "replace")) > MAX_MESSAGE_BYTES:
        raise RequestError("too_large", f"{name} may have {MAX_MESSAGE_BYTES} bytes.", field=name)
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _invalid(name, "a text is needed")
    return value


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _invalid(name, "true or false is needed")
    return value


def _one_of(*allowed: str) -> Callable[[str, Any], str]:
    def one(name: str, value: Any) -> str:
        if value not in allowed:
            raise _invalid(name, f"one of {', '.join(allowed)} is needed")
        return str(value)

    return one


def _whole(most: int) -> Callable[[str, Any], int]:
    def whole(name: str, value: Any) -> int:
        if not isinstance(value, (int, float)) or value != int(value) or not 0 <= value <= most:
            raise _invalid(name, f"a whole number from 0 to {most} is needed")
        return int(value)

    return whole


def _positive(most: float) -> Callable[[str, Any], float | None]:
    def positive(name: str, value: Any) -> float | None:
        if value is not None and (not isinstance(value, (int, float)) or not 0 < value <= most):
            raise _invalid(name, f"more than 0, at most {most:g}")
        return None if value is None else float(value)

    return positive


def _optional_line(name: str, value: Any) -> str | None:
    return None if value is None else _line(name, value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "name": _line,
    "cron_expr": _text,
    "timezone": _text,
    "message": _message,
    "enabled": _bool,
    "overlap_behavior": _one_of(*get_args(Overlap)),
    "session_behavior": _one_of(*get_args(SessionBehavior)),
    "misfire": _one_of(*get_args(Misfire)),
    "jitter_seconds": _whole(MAX_JITTER_SECONDS),
    "model": _optional_line,
    "max_cost_usd": _positive(1_000_000),
    "timeout_minutes": _positive(MAX_TIMEOUT_MINUTES),
    "pause_after_failures": _whole(MAX_FAILURES),
}


def _invalid(field: str, why: str) -> RequestError:
    return RequestError("invalid_argument", f"{field}: {why}.", field=field)
