"""From a task to its outcome: find or make the project, spawn, watch, report."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from oubliette.cli.client import Daemon
from oubliette.cli.output import note
from oubliette.cli.problems import FAILED, OK, CliError
from oubliette.cli.render import TurnView, boot_text, open_screen
from oubliette.errors import OublietteError
from oubliette.home import Home

Json = dict[str, Any]
BOOT_POLL_SECONDS = 0.4
_BEFORE_BOOT = frozenset({"status", "turn_queued", "turn_started", "system"})
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


def watch_turn(daemon: Daemon, spawned: Json, home: Home | None = None) -> TurnView:
    """Show a turn live until it is over. Raises KeyboardInterrupt through, with the screen closed."""
    screen = open_screen()
    view = TurnView(screen, turn=spawned["turn"])
    booted = threading.Event()
    tell = partial(screen.working, tell=True)
    threading.Thread(target=tell_boot, args=(daemon, spawned, tell, booted, home), daemon=True).start()
    try:
        since = spawned.get("last_event_index", -1)
        for received in daemon.events(spawned["session_id"], since=since, deltas=True):
            if received.data.get("type") not in _BEFORE_BOOT:
                booted.set()
            view.show(received.kind, received.data)
            if view.completion is not None or _over(received.data):
                break
    finally:
        booted.set()
        screen.close()
    return view


def tell_boot(
    daemon: Daemon, spawned: Json, tell: Callable[[str], None], booted: threading.Event, home: Home | None
) -> None:
    """Tell what the container does until the first word of the agent. A thread: the main one waits for events."""
    place: Json = {"project_id": spawned.get("project_id"), "workspace_id": spawned.get("workspace_id")}
    while not booted.wait(BOOT_POLL_SECONDS):
        try:
            container = daemon.call("container", action="status", **place)
        except OublietteError:
            return  # the events will say what is wrong
        what = boot_text(container)
        if not what and home is not None and container.get("state") == "absent" and not _has_toolkit(home):
            what = "fetching the agent, this once"
        if what and not booted.is_set():
            tell(what)


def _has_toolkit(home: Home) -> bool:
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in home.toolkit.iterdir())


def _over(event: Json) -> bool:
    """A session that was ended before its turn began has no completion to wait for."""
    return event.get("type") == "status" and event.get("status", {}).get("to") in {"completed", "failed", "cancelled"}


def exit_code(view: TurnView) -> int:
    """0 when the turn did what it was asked to."""
    done = view.completion or {}
    return OK if done.get("outcome") == "completed" else FAILED
