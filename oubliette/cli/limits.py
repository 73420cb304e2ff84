"""``limits``: what a tree of sessions has left, or what a new one may use."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from oubliette.cli.follow import project_id_of
from oubliette.cli.output import say, say_json
from oubliette.cli.place import connect

Json = dict[str, Any]
_NAMES = {
    "depth": "depth",
    "agents": "agents",
    "active": "at work",
    "tokens": "tokens",
    "cost_usd": "USD",
    "cost_usd_today": "USD today",
}


def limits(
    ctx: typer.Context,
    session: Annotated[str | None, typer.Option(help="Of the tree of this session.")] = None,
    project: Annotated[str | None, typer.Option(help="Of this project (name or id).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show limits and what is used of them: of a session's tree, of a project, or the defaults."""
    daemon = connect(ctx)
    project_id = project_id_of(daemon, project) if project else None
    found = daemon.call("config_limits", session_id=session, project_id=project_id)
    if as_json:
        say_json(found)
        return
    say(str(found.get("root_id") or found.get("project_id") or "defaults of this daemon"))
    for line in limit_lines(found):
        say(f"  {line}")


def limit_lines(found: Json) -> list[str]:
    """``agents     4 of 50, 46 left``."""
    lines = []
    for name, words in _NAMES.items():
        limit = found.get(name)
        if not limit:
            continue
        most = f"{limit['limit']:,}" if "limit" in limit else "no limit"
        said = f"{limit['used']:,} of {most}" if "used" in limit else most
        said += f", {limit['remaining']:,} left" if "remaining" in limit else ""
        said += f", {limit['reserved']:,} reserved" if limit.get("reserved") else ""
        lines.append(f"{words:<10} {said}")
    return lines
