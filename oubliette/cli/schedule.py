"""``schedule``: messages that are sent by the clock."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from oubliette.cli.client import Daemon
from oubliette.cli.follow import project_id_of
from oubliette.cli.output import ago, note, say, say_json, say_table, tokens_and_cost
from oubliette.cli.place import connect
from oubliette.cli.problems import FAILED, CliError
from oubliette.cli.project import parsed_settings
from oubliette.cli.schedule_times import both, short
from oubliette.cli.schedule_words import limits, run_word, said, state, word

Json = dict[str, Any]
POLL_SECONDS = 1.0
PAGE = 200
_GOING = frozenset({"claimed", "queued", "running"})

app = typer.Typer(name="schedule", help="Schedules: messages sent by the clock.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Schedule = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Its id, sched_…, or its name.")]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="PROJECT[:WORKSPACE]", help="Where it runs, name or id; may be repeated."),
]
Cron = Annotated[str | None, typer.Option("--cron", metavar="EXPR", help='When: five fields or a macro, "0 3 * * *".')]
Message = Annotated[str | None, typer.Option("--message", help="What to tell the agent; - reads it from stdin.")]
Timezone = Annotated[str | None, typer.Option(help="Of the expression, e.g. Europe/Berlin; without it UTC.")]
Overlap = Annotated[str | None, typer.Option(help="While its last run still goes on: skip, queue or parallel.")]
Sessions = Annotated[str | None, typer.Option(help="resume: the same session every run; new: a new one.")]
Misfire = Annotated[str | None, typer.Option(help="What was due while the daemon was off: skip or once.")]
Jitter = Annotated[int | None, typer.Option(metavar="SECONDS", min=0, help="Start up to so much later.")]
Model = Annotated[str | None, typer.Option(help="An alias.")]
MaxCost = Annotated[float | None, typer.Option(metavar="USD", help="Of one run.")]
Timeout = Annotated[float | None, typer.Option(metavar="MINUTES", help="Of one run's turn.")]
PauseAfter = Annotated[int | None, typer.Option(metavar="FAILURES", min=0, help="Pause after so many; 0 never.")]


@app.command("create")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name.")],
    cron: Annotated[str, typer.Option("--cron", metavar="EXPR", help='When: five fields or a macro, "0 3 * * *".')],
    message: Annotated[str, typer.Option("--message", help="What to tell the agent; - reads it from stdin.")],
    target: Annotated[
        list[str],
        typer.Option("--target", metavar="PROJECT[:WORKSPACE]", help="Where it runs, name or id; may be repeated."),
    ],
    timezone: Timezone = None,
    overlap: Overlap = None,
    sessions: Sessions = None,
    misfire: Misfire = None,
    jitter: Jitter = None,
    model: Model = None,
    max_cost: MaxCost = None,
    timeout: Timeout = None,
    pause_after: PauseAfter = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Do not run it by itself yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a schedule."""
    daemon = connect(ctx)
    made = daemon.call(
        "schedule",
        action="create",
        name=name,
        cron_expr=cron,
        message=_text(message),
        targets=_targets(daemon, target),
        timezone=timezone,
        overlap_behavior=overlap,
        session_behavior=sessions,
        misfire=misfire,
        jitter_seconds=jitter,
        model=model,
        max_cost_usd=max_cost,
        timeout_minutes=timeout,
        pause_after_failures=pause_after,
        enabled=False if disabled else None,
    )
    if as_json:
        say_json(made)
        return
    say(str(made["schedule_id"]))
    zone = made.get("timezone")
    when = f"next run {both(made['next_run_at'], zone)}" if made.get("next_run_at") else state(made)
    note(f"{made.get('cron_text') or cron}; {when}")


@app.command("list")
def list_(
    ctx: typer.Context,
    project: Annotated[str | None, typer.Option(help="Only of this project (name or id).")] = None,
    limit: Annotated[int, typer.Option(min=1, max=PAGE, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List schedules, newest first."""
    daemon = connect(ctx)
    project_id = project_id_of(daemon, project) if project else None
    found = daemon.call("schedule", action="list", project_id=project_id, limit=limit)
    if as_json:
        say_json(found)
        return
    say_table(
        ("SCHEDULE", "STATE", "WHEN", "NEXT", "LAST", "TARGETS", "NAME"),
        [
            (
                one["schedule_id"],
                word(one),
                one.get("cron_text") or one.get("cron_expr"),
                short(one.get("next_run_at"), one.get("timezone")),
                ago(one.get("last_run_at")),
                len(one.get("targets") or []),
                one.get("name"),
            )
            for one in found["schedules"]
        ],
        empty="no schedules",
    )
    for one in found["schedules"]:
        if one.get("notice"):
            note(f"{one['schedule_id']}: {one['notice'].get('text')}")
    if "next_cursor" in found:
        note(f"there are more; --limit {min(PAGE, limit * 5)} shows them")


@app.command("get")
def get(ctx: typer.Context, schedule: Schedule, as_json: AsJson = False) -> None:
    """Show a schedule: when it runs next, where, in which sessions, and how its last runs ended."""
    daemon = connect(ctx)
    found = daemon.call("schedule", action="get", schedule_id=_id_of(daemon, schedule), detail="full")
    if as_json:
        say_json(found)
    else:
        _show(found)


def _show(found: Json) -> None:
    zone = found.get("timezone")
    say(f"{found['schedule_id']}  {found.get('name')}  {state(found)}")
    notice = found.get("notice") or {}
    for label, value in (
        ("notice", notice.get("text")),
        ("when", f"{found.get('cron_expr')} {zone}: {found.get('cron_text', '')}"),
        ("last run", both(found.get("last_run_at"), zone)),
        ("next run", None if found.get("next_runs") else both(found.get("next_run_at"), zone)),
        *(("next run" if not number else "", both(at, zone)) for number, at in enumerate(found.get("next_runs") or ())),
        ("sessions", found.get("session_behavior")),
        ("overlap", found.get("overlap_behavior")),
        ("missed", found.get("misfire")),
        ("jitter", f"{found['jitter_seconds']} s" if found.get("jitter_seconds") else None),
        ("model", found.get("model")),
        ("limits", limits(found)),
        ("failures", f"{found['consecutive_failures']} in a row" if found.get("consecutive_failures") else None),
        ("made by", (found.get("created_by") or {}).get("name")),
    ):
        if value:
            say(f"  {label:<10} {value}")
    for target in found.get("targets") or []:
        last = target.get("last_run") or {}
        where = f"{target.get('project_id')}:{target.get('workspace_id', '')}".rstrip(":")
        ended = f"{run_word(last)} {ago(last.get('ended_at') or last.get('planned_at'))}" if last else "has not run"
        say(f"  target     {where}  {target.get('session_id', 'no session yet')}  {ended}")
    say()
    say(str(found.get("message", "")))


@app.command("update")
def update(
    ctx: typer.Context,
    schedule: Schedule,
    name: Annotated[str | None, typer.Option(help="Its name.")] = None,
    cron: Cron = None,
    message: Message = None,
    target: Targets = None,
    timezone: Timezone = None,
    overlap: Overlap = None,
    sessions: Sessions = None,
    misfire: Misfire = None,
    jitter: Jitter = None,
    model: Model = None,
    max_cost: MaxCost = None,
    timeout: Timeout = None,
    pause_after: PauseAfter = None,
    enable: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Run by itself (which ends a pause), or not.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any argument of the tool; null goes back to the default."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change a schedule. --enable ends a pause."""
    daemon = connect(ctx)
    asked: Json = {
        "name": name,
        "cron_expr": cron,
        "message": _text(message) if message is not None else None,
        "targets": _targets(daemon, target) if target else None,
        "timezone": timezone,
        "overlap_behavior": overlap,
        "session_behavior": sessions,
        "misfire": misfire,
        "jitter_seconds": jitter,
        "model": model,
        "max_cost_usd": max_cost,
        "timeout_minutes": timeout,
        "pause_after_failures": pause_after,
        "enabled": enable,
    }
    changes = {key: value for key, value in asked.items() if value is not None} | parsed_settings(settings)
    if not changes:
        raise CliError("there is nothing to change", hint="oubliette schedule update --help")
    nulls = [key for key, value in changes.items() if value is None]
    changed = daemon.call("schedule", nulls=nulls, action="update", schedule_id=_id_of(daemon, schedule), **changes)
    if as_json:
        say_json(changed)
        return
    note(f"changed {', '.join(changes)}; {state(changed)}")
    if changed.get("next_run_at"):
        note(f"next run {both(changed['next_run_at'], changed.get('timezone'))}")


@app.command("delete")
def delete(
    ctx: typer.Context,
    schedule: Schedule,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a schedule with its history. Its sessions stay."""
    daemon = connect(ctx)
    schedule_id = _id_of(daemon, schedule)
    if not yes and not typer.confirm(f"Delete {schedule} with its history?"):
        raise CliError("nothing was deleted")
    daemon.call("schedule", action="delete", schedule_id=schedule_id)
    note(f"deleted {schedule_id}")


@app.command("trigger")
def trigger(
    ctx: typer.Context,
    schedule: Schedule,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until the runs are over; exit code 1 unless all succeed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a schedule now, on all of its targets."""
    daemon = connect(ctx)
    schedule_id = _id_of(daemon, schedule)
    started = daemon.call("schedule", action="trigger", schedule_id=schedule_id)
    runs = _wait(daemon, schedule_id, started["run_ids"]) if wait else started.get("runs", [])
    if as_json:
        say_json({**started, "runs": runs})
    else:
        for run_id in started["run_ids"]:
            run = next((one for one in runs if one["run_id"] == run_id), {"run_id": run_id})
            say("  ".join(str(part) for part in (run_id, run_word(run), run.get("session_id", "")) if part))
            if wait and run.get("output"):
                say(str(run["output"]))
    if wait and any(run.get("status") != "succeeded" for run in runs):
        raise typer.Exit(FAILED)


@app.command("history")
def history(
    ctx: typer.Context,
    schedule: Schedule,
    status: Annotated[str | None, typer.Option(help="Only such runs, e.g. failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=PAGE, help="How many at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the runs of a schedule, newest first; skipped and missed ones too."""
    daemon = connect(ctx)
    schedule_id = _id_of(daemon, schedule)
    found = daemon.call("schedule", action="history", schedule_id=schedule_id, status=status, limit=limit)
    if as_json:
        say_json(found)
        return
    zone = daemon.call("schedule", action="get", schedule_id=schedule_id).get("timezone")
    say_table(
        ("RUN", "PLANNED", "HOW", "STATUS", "SESSION", "TURN", "USAGE", "OUTPUT"),
        [
            (
                run["run_id"],
                short(run.get("planned_at"), zone),
                run.get("trigger"),
                run_word(run),
                run.get("session_id"),
                run.get("turn"),
                tokens_and_cost(run["usage"]) if run.get("usage") else None,
                said(run),
            )
            for run in found["runs"]
        ],
        empty="no runs",
    )
    if "next_cursor" in found:
        note(f"there are more; --limit {min(PAGE, limit * 5)} shows them")


@app.command("preview")
def preview(
    ctx: typer.Context,
    cron: Annotated[str, typer.Argument(metavar="EXPR", help='Five fields or a macro, e.g. "30 2 * * mon-fri".')],
    timezone: Timezone = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=PAGE, help="How many runs.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show when an expression is due, without making a schedule."""
    found = connect(ctx).call("schedule", action="preview", cron_expr=cron, timezone=timezone, limit=count)
    if as_json:
        say_json(found)
        return
    say(str(found.get("cron_text", cron)))
    for at in found.get("next_runs", ()):
        say(f"  {both(at, found.get('timezone'))}")


def _text(message: str) -> str:
    return sys.stdin.read() if message == "-" else message


def _targets(daemon: Daemon, wanted: list[str]) -> list[Json]:
    """``project``, ``project:workspace``: the project by name or id."""
    found = []
    for one in wanted:
        project, _, workspace = one.partition(":")
        found.append(
            {"project_id": project_id_of(daemon, project), **({"workspace_id": workspace} if workspace else {})}
        )
    return found


def _id_of(daemon: Daemon, wanted: str) -> str:
    """The id of a schedule given by id or exact name. Raises CliError when there is none, or several."""
    if wanted.startswith("sched_"):
        return wanted
    matching: list[str] = []
    cursor: str | None = None
    while True:
        page = daemon.call("schedule", action="list", limit=PAGE, cursor=cursor)
        matching += [str(one["schedule_id"]) for one in page["schedules"] if one.get("name") == wanted]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    if not matching:
        raise CliError(f"there is no schedule {wanted}", hint="See: oubliette schedule list")
    if len(matching) > 1:
        raise CliError(f"{len(matching)} schedules are named {wanted}", hint=f"Use the id: {', '.join(matching)}")
    return matching[0]


def _wait(daemon: Daemon, schedule_id: str, run_ids: list[str]) -> list[Json]:
    """The runs once they are over. Raises CliError when the history does not hold all of them any more."""
    while True:
        runs = _found(daemon, schedule_id, run_ids)
        if all(run.get("status") not in _GOING for run in runs):
            missing = len(run_ids) - len(runs)
            if missing:
                raise CliError(f"how {missing} of {len(run_ids)} runs ended is not in the history any more")
            return runs
        time.sleep(POLL_SECONDS)


def _found(daemon: Daemon, schedule_id: str, run_ids: list[str]) -> list[Json]:
    """Those runs, from as many pages of the history as they are spread over."""
    found: list[Json] = []
    cursor: str | None = None
    while True:
        page = daemon.call("schedule", action="history", schedule_id=schedule_id, limit=PAGE, cursor=cursor)
        found += [run for run in page["runs"] if run["run_id"] in run_ids]
        cursor = page.get("next_cursor")
        if cursor is None or len(found) == len(run_ids):
            return found
