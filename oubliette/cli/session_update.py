"""``session update``: another title, model or way of working; other limits of the tree; queued messages dropped."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from oubliette.cli.output import note, say_json
from oubliette.cli.place import connect
from oubliette.cli.problems import CliError


def update(
    ctx: typer.Context,
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Its id, gogol_…")],
    title: Annotated[str | None, typer.Option(help="What it is called.")] = None,
    model: Annotated[str | None, typer.Option(help="Alias of the model from its next turn on.")] = None,
    autonomy: Annotated[str | None, typer.Option(help="off, high, medium or low.")] = None,
    reasoning: Annotated[str | None, typer.Option(help="off, low, medium, high or max.")] = None,
    timeout_minutes: Annotated[float | None, typer.Option(help="How long a turn may take.")] = None,
    max_cost_usd: Annotated[
        float | None, typer.Option(help="Budget of its whole tree; a tree that is paused for it goes on.")
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option("--limit", help="NAME=VALUE of the tree, e.g. max_active_sessions=20; null: as the project."),
    ] = None,
    drop_queued: Annotated[bool, typer.Option("--drop-queued", help="Forget the messages that wait.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Change a session while it lives."""
    changes: dict[str, Any] = {
        "title": title,
        "model": model,
        "autonomy_level": autonomy,
        "reasoning_level": reasoning,
        "timeout_minutes": timeout_minutes,
        "max_cost_usd": max_cost_usd,
        "limits": _limits(limits) or None,
        "drop_queued": drop_queued or None,
    }
    if all(value is None for value in changes.values()):
        raise CliError("there is nothing to change", hint="See: oubliette session update --help")
    result = connect(ctx).call("session", action="update", session_id=session, **changes)
    if as_json:
        say_json(result)
        return
    dropped = f", {result['dropped']} messages dropped" if "dropped" in result else ""
    note(f"{session} is {result.get('status')}{dropped}")


def _limits(given: list[str] | None) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        try:
            limits[name.replace("-", "_")] = json.loads(value) if equals else None
        except ValueError:
            equals = ""
        if not equals:
            raise typer.BadParameter("--limit takes NAME=NUMBER, or NAME=null")
    return limits
