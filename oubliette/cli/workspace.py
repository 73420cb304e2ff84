"""``workspace``: the directories in which agents work, and what agents left in them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any

import typer

from oubliette.cli.follow import project_id_of
from oubliette.cli.output import ago, note, say, say_json, say_table, sentences
from oubliette.cli.place import connect
from oubliette.cli.problems import FAILED, CliError

app = typer.Typer(name="workspace", help="Workspaces: the directories that agents work in.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
WorkspaceId = Annotated[str, typer.Argument(metavar="WORKSPACE", help="Its id.")]
Place = Annotated[
    str, typer.Argument(metavar="WORKSPACE", help="Its id; of a session (gogol_…): what it left in its results folder.")
]


@app.command("list")
def list_(
    ctx: typer.Context,
    project: Annotated[str | None, typer.Option(help="Only of this project (name or id).")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List workspaces, newest first."""
    daemon = connect(ctx)
    project_id = project_id_of(daemon, project) if project else None
    detail = "full" if as_json else None
    found = daemon.call("workspace", action="list", project_id=project_id, limit=limit, detail=detail)
    if as_json:
        say_json(found)
        return
    say_table(
        ("WORKSPACE", "STATE", "OPEN", "MADE", "LAST USED", "WHAT"),
        [
            (
                one["workspace_id"],
                one.get("state"),
                one.get("open_sessions"),
                ago(one.get("created_at")),
                ago(one.get("last_session_at")),
                _what(one),
            )
            for one in found["workspaces"]
        ],
        empty="no workspaces",
    )
    if "next_cursor" in found:
        note(f"there are more; --limit {min(200, limit * 5)} shows them")


def _what(one: dict[str, Any]) -> str:
    parts = ["default" if one.get("default") else "", str(one.get("external_id", "")), str(one.get("source", ""))]
    if one.get("forked_from"):
        parts.append(f"copy of {one['forked_from']}")
    return " ".join(part for part in parts if part)


@app.command("create")
def create(
    ctx: typer.Context,
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id.")],
    copy: Annotated[str | None, typer.Option("--from", help="Copy this workspace as it stands.")] = None,
    external_id: Annotated[str | None, typer.Option(help="A name of yours, unique in the project.")] = None,
    source: Annotated[str | None, typer.Option(help="Who asks, e.g. ci.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a workspace: what the project begins with, or a copy of another one. Prints its id."""
    daemon = connect(ctx)
    made = daemon.call(
        "workspace",
        action="create",
        project_id=project_id_of(daemon, project),
        from_workspace=copy,
        external_id=external_id,
        source=source,
    )
    if as_json:
        say_json(made)
    else:
        say(str(made["workspace_id"]))
    if made.get("state") == "failed":
        error = made.get("error") or {}
        note(f"it could not be made: {sentences(str(error.get('message', '')), str(error.get('hint', '')))}")
        raise typer.Exit(FAILED)
    if made.get("state") != "ready" and not as_json:
        note(f"it is still {made.get('state')}")


@app.command("delete")
def delete(
    ctx: typer.Context,
    workspace: WorkspaceId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a workspace with its files and its container; its sessions stay, as history."""
    daemon = connect(ctx)
    if not yes and not typer.confirm(f"Delete the workspace {workspace} with everything in it?"):
        raise CliError("nothing was deleted")
    gone = daemon.call("workspace", action="delete", workspace_id=workspace)
    if as_json:
        say_json(gone)
    elif gone.get("deleted"):
        note(f"deleted {workspace}")
    else:
        note(f"{workspace} is {gone.get('state')}")
    if gone.get("state") == "failed":
        raise typer.Exit(FAILED)


@app.command("files")
def files(
    ctx: typer.Context,
    place: Place,
    glob: Annotated[str | None, typer.Argument(metavar="[GLOB]", help='For example "src/**/*.py".')] = None,
    as_json: AsJson = False,
) -> None:
    """List the files of a workspace, or of what a session left for its parent."""
    found = connect(ctx).call("workspace", action="files", glob=glob, **_named(place))
    if as_json:
        say_json(found)
        return
    say_table(("BYTES", "PATH"), [_row(one) for one in found["files"]], empty="no files")
    if found.get("files_truncated"):
        note("there may be more: narrow the pattern")


def _row(one: dict[str, Any]) -> tuple[str, str]:
    kind = one.get("kind", "file")
    size = f"{one.get('size_bytes', 0):,}" if kind == "file" else kind
    return size, f"{one['path']}/" if kind == "directory" else str(one["path"])


@app.command("read")
def read(
    ctx: typer.Context,
    place: Place,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Within it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the bytes as they are into this new file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a file, at most its first MiB; what a terminal might obey is shown escaped. -o has it as it is."""
    detail = "full" if output is not None else None
    found = connect(ctx).call("workspace", action="read", path=path, detail=detail, **_named(place))
    cut = next((name for name in ("text", "base64") if found.get(f"{name}_truncated")), None)
    if output is not None:
        data = base64.b64decode(found["base64"]) if "base64" in found else str(found.get("text", "")).encode()
        try:
            with output.open("xb") as file:
                file.write(data)
        except FileExistsError:
            raise CliError(f"{output} exists already", hint="Name another file.") from None
        note(f"wrote {len(data):,} bytes to {output}")
    elif as_json:
        say_json(found)
    elif found.get("binary"):
        note(f"{path} is no text ({found['size_bytes']:,} bytes); -o FILE writes it")
        raise typer.Exit(FAILED)
    else:
        say(str(found.get("text", "")).removesuffix("\n"))
    if cut is not None:
        note(f"that is its beginning: it has {found.get('size_bytes', 0):,} bytes")
        raise typer.Exit(FAILED)


def _named(place: str) -> dict[str, str]:
    """Whether a workspace or a session is meant: session ids begin with what a workspace's never does."""
    return {"session_id" if place.startswith("gogol_") else "workspace_id": place}
