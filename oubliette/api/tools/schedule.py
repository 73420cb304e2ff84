"""The ``schedule`` tool: messages that are sent by the clock, each time to the same session."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from oubliette.api.tools import schedule_prose as prose
from oubliette.api.tools.fields import Args, Cursor, Doc, Id, Line, Message, Only, PageSize, WriteArgs, invalid, shown
from oubliette.api.tools.gate import Target
from oubliette.api.tools.registry import Action, Call, Tool
from oubliette.api.tools.schedule_targets import parse_targets
from oubliette.core.limits import DEFAULT_PAGE, MAX_SCHEDULE_TARGETS
from oubliette.core.model import Json
from oubliette.core.place_shapes import RunList, Schedule, ScheduleList, SchedulePreview, TriggerResult
from oubliette.core.schedule_rows import RunStatus
from oubliette.schedule.requests import Misfire, Overlap, ScheduleArgs, ScheduleChanges, SessionBehavior
from oubliette.schedule.schedules import Schedules

ScheduleId = Annotated[Id, Doc("which schedule")]
Targets = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_SCHEDULE_TARGETS)]

_PREVIEW: Final = 5
_BRIEF_CHARACTERS: Final = 300
"""Of a prompt or an output in a list."""
_ITEM: Final = (
    "schedule_id",
    "name",
    "cron_expr",
    "cron_text",
    "timezone",
    "message",
    "enabled",
    "paused",
    "notice",
    "last_run_at",
    "next_run_at",
    "consecutive_failures",
    "targets",
)
"""What a list shows of each, without ``detail: full``."""
_DEFAULTS: Final = {one.name: one.default for one in fields(ScheduleArgs)}


class Settings(WriteArgs):
    """What create and update have in common."""

    timezone: Annotated[Line | None, Doc("name [UTC]")] = None
    enabled: Annotated[bool | None, Doc("[true]; true also ends a pause")] = None
    overlap_behavior: Annotated[Overlap | None, Doc("while a run goes on [skip]")] = None
    session_behavior: Annotated[SessionBehavior | None, Doc("resume = the same each run [resume]")] = None
    misfire: Annotated[Misfire | None, Doc("due while the daemon was off [skip]")] = None
    jitter_seconds: Annotated[int | None, Field(ge=0), Doc("start up to so much later [0]")] = None
    model: Annotated[Line | None, Doc("alias")] = None
    max_cost_usd: Annotated[float | None, Field(gt=0), Doc("of one run")] = None
    timeout_minutes: Annotated[float | None, Field(gt=0, le=10080), Doc("of one run's turn")] = None
    pause_after_failures: Annotated[int | None, Field(ge=0), Doc("0 never [3]")] = None


class Create(Settings):
    name: Annotated[Line, Doc("its name")]
    cron_expr: Annotated[Line, Doc("5 fields or @daily …")]
    message: Annotated[Message, Doc("the prompt")]
    targets: Annotated[Targets, Doc("[{project_id, workspace_id?}]")]


class Update(Settings):
    keeps_null: ClassVar[bool] = True

    schedule_id: ScheduleId
    name: Annotated[Line | None, Doc("its name")] = None
    cron_expr: Annotated[Line | None, Doc("5 fields or @daily …")] = None
    message: Annotated[Message | None, Doc("the prompt")] = None
    targets: Annotated[Targets | None, Doc("[{project_id, workspace_id?}]")] = None


class Get(Args):
    schedule_id: ScheduleId


class Delete(WriteArgs):
    schedule_id: ScheduleId


class Trigger(WriteArgs):
    schedule_id: ScheduleId


class List(Args):
    project_id: Annotated[Id | None, Doc("only of this project"), Only("tokens")] = None
    limit: Annotated[PageSize, Doc(f"[{DEFAULT_PAGE}; preview {_PREVIEW}]")] = DEFAULT_PAGE
    cursor: Annotated[Cursor | None, Doc("where the page before ended")] = None


class History(Args):
    schedule_id: ScheduleId
    status: Annotated[Line | None, Doc("e.g. failed, missed")] = None
    limit: Annotated[PageSize, Doc("")] = DEFAULT_PAGE
    cursor: Annotated[Cursor | None, Doc("")] = None


class Preview(Args):
    cron_expr: Annotated[Line, Doc("")]
    timezone: Annotated[Line | None, Doc("")] = None
    limit: Annotated[PageSize, Doc("")] = _PREVIEW


def _schedules(call: Call) -> Schedules:
    return call.shared.services.schedules


def _given(args: Settings) -> dict[str, Any]:
    """The settings among the arguments; where null was sent, their defaults."""
    sent = args.model_fields_set & Settings.model_fields.keys() - WriteArgs.model_fields.keys()
    values = {name: getattr(args, name) for name in sent}
    return {name: _DEFAULTS[name] if value is None else value for name, value in values.items()}


async def create(call: Call, args: Create) -> Json:
    wanted = ScheduleArgs(
        name=args.name,
        cron_expr=args.cron_expr,
        message=args.message,
        targets=parse_targets(call.principal, args.targets),
        **_given(args),
    )
    return _shown(await _schedules(call).create(call.principal, wanted), args.detail)


async def update(call: Call, args: Update) -> Json:
    changes = _given(args)
    for name in args.model_fields_set & {"name", "cron_expr", "message", "targets"}:
        value = getattr(args, name)
        if value is None:
            raise invalid(name, "has no default to go back to")
        changes[name] = parse_targets(call.principal, value) if name == "targets" else value
    if not changes:
        raise invalid(None, "schedule update needs something to change.", hint="For example cron_expr or enabled.")
    changed = await _schedules(call).update(call.principal, args.schedule_id, ScheduleChanges(**changes))
    return _shown(changed, args.detail)


async def get(call: Call, args: Get) -> Json:
    return _shown(await _schedules(call).get(call.principal, args.schedule_id), args.detail)


async def list_schedules(call: Call, args: List) -> Json:
    page = await _schedules(call).list_page(
        call.principal, project_id=args.project_id, limit=args.limit, cursor=args.cursor
    )
    if args.detail == "full":
        return page
    return {**page, "schedules": [_item(one) for one in page["schedules"]]}


async def delete(call: Call, args: Delete) -> Json:
    return await _schedules(call).delete(call.principal, args.schedule_id)


async def trigger(call: Call, args: Trigger) -> Json:
    done = await _schedules(call).trigger(call.principal, args.schedule_id)
    return done if args.detail == "full" else {**done, "runs": [_brief_run(one) for one in done.get("runs", ())]}


async def history(call: Call, args: History) -> Json:
    if args.status is not None and args.status not in list(RunStatus):
        raise invalid("status", f"must be one of {', '.join(RunStatus)}, not {shown(args.status)}")
    page = await _schedules(call).history(
        call.principal, args.schedule_id, limit=args.limit, cursor=args.cursor, status=args.status
    )
    if args.detail == "full":
        return page
    return {**page, "runs": [_brief_run(one) for one in page["runs"]]}


async def preview(call: Call, args: Preview) -> Json:
    return await _schedules(call).preview(args.cron_expr, args.timezone or "UTC", args.limit)


def _shown(schedule: Json, detail: str) -> Json:
    if detail == "full":
        return schedule
    return {**schedule, "targets": [_brief_target(one) for one in schedule.get("targets", ())]}


def _item(schedule: Json) -> Json:
    kept: Json = {name: schedule[name] for name in _ITEM if name in schedule}
    return {**_cut(kept, "message"), "targets": [_brief_target(one) for one in schedule.get("targets", ())]}


def _brief_target(target: Json) -> Json:
    return {**target, "last_run": _brief_run(target["last_run"])} if target.get("last_run") else target


def _brief_run(run: Json) -> Json:
    """The record of a run with the beginning of what the agent said."""
    return _cut(run, "output")


def _cut(shape: Json, name: str) -> Json:
    text = shape.get(name)
    if not isinstance(text, str) or len(text) <= _BRIEF_CHARACTERS:
        return shape
    size = {f"{name}_bytes": len(text.encode()), **shape}
    return {**size, name: text[:_BRIEF_CHARACTERS], f"{name}_truncated": True}


TOOL = Tool(
    name="schedule",
    doc=(
        "Schedules: a message sent by the clock, each time to the same session of each target. trigger runs it now; "
        "history has every run; preview shows when an expression is due. update: null means back to the default."
    ),
    results=[
        Schedule,
        ScheduleList,
        RunList,
        TriggerResult,
        SchedulePreview,
        {
            "deleted": {"type": "boolean"},
            "message_truncated": {"type": "boolean"},
            "message_bytes": {"type": "integer"},
        },
    ],
    actions=[
        Action("schedule", "create", Create, create, Target.TARGETS, prose=prose.created),
        Action(
            "schedule", "list", List, list_schedules, Target.LISTED, prose=prose.schedules, page="limit",
            items="schedules",
        ),
        Action("schedule", "get", Get, get, Target.SCHEDULE, prose=prose.schedule),
        Action("schedule", "update", Update, update, Target.SCHEDULE, prose=prose.schedule),
        Action("schedule", "delete", Delete, delete, Target.SCHEDULE, prose=prose.deleted),
        Action("schedule", "trigger", Trigger, trigger, Target.SCHEDULE, prose=prose.triggered),
        Action("schedule", "history", History, history, Target.SCHEDULE, prose=prose.runs, page="limit", items="runs"),
        Action("schedule", "preview", Preview, preview, prose=prose.preview),
    ],
)  # fmt: skip
