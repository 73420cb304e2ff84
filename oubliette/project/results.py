"""The results folder: where a child leaves files for its parent, in the agent's state and not in the work tree.

An agent writes there, so it is only looked into through ``files``: no link followed, bounded. Functions block.
Paths are as ``session wait`` lists them: ``results/<name>``, without the session's own folder.
"""

from __future__ import annotations

from pathlib import Path

from oubliette.core.model import Json
from oubliette.errors import RequestError
from oubliette.project import files
from oubliette.project.files import Content
from oubliette.project.walk import Bounds

FOLDER = "results"
MAX_LISTED = 100
"""So many files are listed."""

_MAX_LOOKED_AT = 2_000
_LOOK_SECONDS = 2.0


def inside(session_id: str) -> str:
    """Where a session finds its folder, in its container."""
    return f"/state/{FOLDER}/{session_id}"


def list_results(state: Path, session_id: str) -> list[Json]:
    """[{path, bytes}], sorted; at most 100 regular files. ``state`` is the host's directory of the agent's state."""
    bounds = Bounds(entries=_MAX_LOOKED_AT, seconds=_LOOK_SECONDS)
    try:
        listing = files.list_files(state, f"{FOLDER}/{session_id}/**", max_entries=_MAX_LOOKED_AT, bounds=bounds)
    except RequestError:
        return []  # there is no state yet
    start = f"{FOLDER}/{session_id}/"
    found = [one for one in listing.entries if one.kind == "file"]
    return [{"path": f"{FOLDER}/{one.path.removeprefix(start)}", "bytes": one.size_bytes} for one in found[:MAX_LISTED]]


def read_result(state: Path, session_id: str, path: str, max_bytes: int) -> Content:
    """The beginning of one of them. Raises RequestError invalid_argument or not_found."""
    names = files.parts_of(path)
    if names[0] == FOLDER and len(names) > 1:
        names = names[1:]
    return files.read(state, "/".join((FOLDER, session_id, *names)), max_bytes)
