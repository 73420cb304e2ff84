"""``session diff`` and ``session merge``: what agents changed, and how a fork's commits get to its parent."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from oubliette.cli.output import note, say, say_json, say_table
from oubliette.cli.place import connect
from oubliette.cli.problems import FAILED

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="Its id, gogol_…")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
WAIT_SECONDS = 40


def diff(
    ctx: typer.Context,
    session: SessionId,
    since_turn: Annotated[int | None, typer.Option("--since-turn", min=1, help="Only from this turn on.")] = None,
    stat: Annotated[bool, typer.Option("--stat", help="The files only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a session changed in its workspace, as a patch."""
    found = connect(ctx).call("session", action="diff", session_id=session, since_turn=since_turn)
    if as_json:
        say_json(found)
        return
    files = found.get("files") or []
    if not files and not found.get("patch"):
        note("nothing was changed")
        return
    if stat:
        _say_files(files)
    else:
        say(str(found.get("patch", "")).removesuffix("\n"))
    if found.get("files_truncated"):
        note("there are more files")
    if found.get("patch_truncated") and not stat:
        note(f"that is its beginning: the patch has {found.get('patch_bytes', 0):,} bytes")


def _say_files(files: list[dict[str, Any]]) -> None:
    say_table(
        ("CHANGE", "ADDED", "REMOVED", "PATH"),
        [(one.get("change"), one.get("added"), one.get("removed"), one["path"]) for one in files],
    )


def merge(ctx: typer.Context, session: SessionId, as_json: AsJson = False) -> None:
    """Bring what a forked child has committed into its parent's workspace. Exit code 1 when it conflicts."""
    daemon = connect(ctx)
    while True:
        found = daemon.call("session", action="merge", session_id=session, wait_seconds=WAIT_SECONDS)
        if found.get("state") != "running":
            break
    if as_json:
        say_json(found)
    else:
        _say_merge(found)
    raise typer.Exit(0 if found.get("merged") else FAILED)


def _say_merge(found: dict[str, Any]) -> None:
    commits = int(found.get("commits") or 0)
    if found.get("merged"):
        head = f", head {found['head']}" if found.get("head") else ""
        said = f"{commits} commit{'' if commits == 1 else 's'} merged" if commits else "there was nothing to merge"
        note(said + (head if commits else ""))
        if found.get("files"):
            _say_files(found["files"])
    else:
        note("not merged: nothing was changed")
    for conflict in found.get("conflicts") or []:
        say(f"conflict  {conflict.get('kind', '')}  {conflict['path']}")
    for path in found.get("uncommitted") or []:
        note(f"not committed in the fork: {path}")
    if found.get("next"):
        note(str(found["next"]))
