"""``run``: one task, shown live; the exit code says how it ended."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from oubliette.cli.child import borrowed_daemon
from oubliette.cli.client import Daemon
from oubliette.cli.follow import exit_code, project_for, watch_turn
from oubliette.cli.output import note, say_json
from oubliette.cli.place import home_of, initialised
from oubliette.cli.problems import FAILED, INTERRUPTED, OK, CliError
from oubliette.errors import OublietteError
from oubliette.home import Home

WAIT_SECONDS = 40


def run(
    ctx: typer.Context,
    task: Annotated[str, typer.Argument(help='What the agent is to do; "-" reads it from stdin.')],
    project: Annotated[str | None, typer.Option(help="Name or id; without it the current directory's name.")] = None,
    model: Annotated[str | None, typer.Option(help="Alias of a model; scripted needs no key.")] = None,
    autonomy: Annotated[str | None, typer.Option(help="off, high, medium or low.")] = None,
    reasoning: Annotated[str | None, typer.Option(help="off, low, medium, high or max.")] = None,
    title: Annotated[str | None, typer.Option(help="Of the session.")] = None,
    timeout_minutes: Annotated[float | None, typer.Option(help="Time limit of the turn.")] = None,
    max_cost_usd: Annotated[float | None, typer.Option(help="Budget.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the session open for further messages.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing live.")] = False,
) -> None:
    """Give an agent one task in a project of its own, watch it work, end its session.

    Exit code 0 when the turn completed, 1 when it failed or was stopped. Starts a daemon for the task when none runs.
    """
    home = initialised(home_of(ctx))
    message = sys.stdin.read() if task == "-" else task
    if not message.strip():
        raise CliError("there is no task", hint='oubliette run "what to do"')
    with borrowed_daemon(home) as (daemon, ours):
        spawned = daemon.call(
            "session",
            action="spawn",
            project_id=project_for(daemon, project, Path.cwd()),
            message=message,
            new_session=True,
            title=title,
            model=model,
            autonomy_level=autonomy,
            reasoning_level=reasoning,
            timeout_minutes=timeout_minutes,
            max_cost_usd=max_cost_usd,
            source="cli",
        )
        code = follow(daemon, spawned, keep=keep, as_json=as_json, home=home)
        if ours:
            _stop_container(daemon, spawned)
    raise typer.Exit(code)


def _stop_container(daemon: Daemon, spawned: dict[str, Any]) -> None:
    """A container outlives its daemon, and with nobody to put it to sleep it would run for ever."""
    place = {"project_id": spawned["project_id"], "workspace_id": spawned["workspace_id"]}
    try:
        if not daemon.call("session", action="list", status="running", **place)["sessions"]:
            daemon.call("container", action="stop", **place)
    except OublietteError as error:
        note(f"the container could not be stopped: {error.message}")


def follow(
    daemon: Daemon, spawned: dict[str, Any], *, keep: bool, as_json: bool = False, home: Home | None = None
) -> int:
    """Watch the turn to its end, end the session unless it is kept; returns the exit code. Ctrl-C stops the agent."""
    session_id = spawned["session_id"]
    try:
        if as_json:
            code = wait_silently(daemon, session_id)
        else:
            view = watch_turn(daemon, spawned, home)
            view.summarise(session_id=session_id)
            code = exit_code(view)
    except KeyboardInterrupt:
        note("stopping the agent")
        daemon.call("session", action="interrupt" if keep else "cancel", session_id=session_id)
        return INTERRUPTED
    if keep:
        note(f'to go on: oubliette session message {session_id} "…"')
    else:
        try:
            daemon.call("session", action="end", session_id=session_id)
        except OublietteError as error:
            note(f"the session could not be ended: {error.message}")
    return code


def wait_silently(daemon: Daemon, session_id: str) -> int:
    """Print the session as JSON once its turn is over; returns the exit code."""
    while True:
        result = daemon.call("session", action="wait", session_ids=[session_id], wait_seconds=WAIT_SECONDS)
        if result.get("done"):
            session = result["sessions"][0]
            say_json(session)
            return OK if session.get("outcome") == "completed" else FAILED
