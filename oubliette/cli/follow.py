"""From a task to its outcome: find or make the project, spawn, watch, report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from oubliette.cli.client import Daemon
from oubliette.cli.output import note
from oubliette.cli.problems import FAILED, OK, CliError
from oubliette.cli.render import TurnView, open_screen

Json = dict[str, Any]
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def find_project(daemon: Daemon, wanted: str) -> Json | None:
    """A project by id or exact name; None when there is none. Raises CliError when several have the name."""
    if _UUID.fullmatch(wanted):
        return daemon.call("project", action="get", project_id=wanted)
    found: list[Json] = []
    cursor: str | None = None
    while True:
        page = daemon.call("project", action="list", name_contains=wanted, limit=100, cursor=cursor)
        found += [project for project in page["projects"] if project.get("name") == wanted]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    if len(found) > 1:
        ids = ", ".join(project["project_id"] for project in found)
        raise CliError(f"{len(found)} projects are named {wanted}", hint=f"Use the id: {ids}")
    return found[0] if found else None


def project_id_of(daemon: Daemon, wanted: str) -> str:
    """The id of a project given by id or name. Raises CliError when there is none."""
    project = find_project(daemon, wanted)
    if project is None:
        raise CliError(f"there is no project {wanted}", hint="See: oubliette project list")
    return str(project["project_id"])


def project_for(daemon: Daemon, wanted: str | None, cwd: Path) -> str:
    """The project to work in: the named one, else the one named after the directory; made when there is none."""
    name = wanted or re.sub(r"[^\w.-]+", "-", cwd.name).strip("-.") or "default"
    project = find_project(daemon, name)
    if project is None:
        project = daemon.call("project", action="create", name=name)
        note(f"made the project {name} ({project['project_id']})")
    return str(project["project_id"])


def watch_turn(daemon: Daemon, spawned: Json) -> TurnView:
    """Show a turn live until it is over. Raises KeyboardInterrupt through, with the screen closed."""
    screen = open_screen()
    view = TurnView(screen, turn=spawned["turn"])
    try:
        since = spawned.get("last_event_index", -1)
        for received in daemon.events(spawned["session_id"], since=since, deltas=True):
            view.show(received.kind, received.data)
            if view.completion is not None:
                break
            if received.data.get("type") == "status" and _over(received.data):
                break
    finally:
        screen.close()
    return view


def _over(event: Json) -> bool:
    """A session that was ended before its turn began has no completion to wait for."""
    return event.get("status", {}).get("to") in {"completed", "failed", "cancelled"}


def exit_code(view: TurnView) -> int:
    """0 when the turn did what it was asked to."""
    done = view.completion or {}
    return OK if done.get("outcome") == "completed" else FAILED
