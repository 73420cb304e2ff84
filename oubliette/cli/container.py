"""``container``: the sandbox around a workspace."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from oubliette.cli.follow import project_id_of
from oubliette.cli.output import ago, note, say, say_json
from oubliette.cli.place import connect
from oubliette.cli.problems import FAILED
from oubliette.safe_text import safe_text

app = typer.Typer(name="container", help="Containers: the sandboxes that agents work in.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Project = Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id.")]
Workspace = Annotated[str | None, typer.Option(help="Id; without it the default workspace.")]
WAIT_SECONDS = 40
OUTPUT_BYTES = 256 << 10
"""Of each stream; of a longer output head and tail are kept."""
TIMED_OUT = 124
"""What timeout(1) exits with."""


def _call(ctx: typer.Context, action: str, project: str, workspace: str | None, **arguments: Any) -> dict[str, Any]:
    daemon = connect(ctx)
    return daemon.call(
        "container", action=action, project_id=project_id_of(daemon, project), workspace_id=workspace, **arguments
    )


@app.command("start")
def start(
    ctx: typer.Context,
    project: Project,
    workspace: Workspace = None,
    recreate: Annotated[bool, typer.Option("--recreate", help="Make it anew.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even while turns are running.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the container, unless it runs."""
    found = _call(ctx, "start", project, workspace, recreate=recreate or None, force=force or None)
    _show(found, as_json)


@app.command("stop")
def stop(
    ctx: typer.Context,
    project: Project,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Stop the container; the next message starts it again."""
    _show(_call(ctx, "stop", project, workspace), as_json)


@app.command("status")
def status(ctx: typer.Context, project: Project, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Show the container's state."""
    _show(_call(ctx, "status", project, workspace), as_json)


@app.command("logs")
def logs(
    ctx: typer.Context,
    project: Project,
    workspace: Workspace = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the newest lines.")] = 100,
) -> None:
    """Print what the container's own process has said."""
    found = _call(ctx, "logs", project, workspace, tail=lines)
    print(safe_text(str(found.get("text", ""))), flush=True)


@app.command("exec", context_settings={"ignore_unknown_options": True})
def exec_(
    ctx: typer.Context,
    project: Project,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND…", help="Program and arguments; one word: for the shell.")
    ],
    workspace: Workspace = None,
    working_dir: Annotated[str | None, typer.Option("--workdir", "-w", help="Where to run it.")] = None,
    timeout_seconds: Annotated[float, typer.Option("--timeout", help="Kill it after that many seconds.")] = 120,
    as_json: AsJson = False,
) -> None:
    """Run a command in the container; its output and exit code become this command's."""
    daemon = connect(ctx)
    place: dict[str, Any] = {"project_id": project_id_of(daemon, project), "workspace_id": workspace}
    found = daemon.call(
        "container",
        action="exec",
        command=command[0] if len(command) == 1 else command,
        working_dir=working_dir,
        timeout_seconds=timeout_seconds,
        max_output_bytes=OUTPUT_BYTES,
        wait_seconds=WAIT_SECONDS,
        **place,
    )
    while found.get("state") == "running":
        found = daemon.call("container", action="exec", exec_id=found["exec_id"], wait_seconds=WAIT_SECONDS, **place)
    if as_json:
        say_json(found)
    else:
        sys.stdout.write(safe_text(str(found.get("stdout", ""))))
        sys.stdout.flush()
        sys.stderr.write(safe_text(str(found.get("stderr", ""))))
        for stream in ("stdout", "stderr"):
            if found.get(f"{stream}_truncated"):
                note(f"{stream} was cut: it had {found.get(f'{stream}_bytes', 0):,} bytes")
        if found.get("timed_out"):
            note(f"killed after {timeout_seconds:g} s")
    raise typer.Exit(TIMED_OUT if found.get("timed_out") else int(found.get("exit_code", FAILED)) & 0xFF)


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say_json(found)
        return
    agent = found.get("agent") or {}
    say(f"{found.get('container_id', '-')}  {found.get('state')}  {ago(found.get('since'))}".rstrip())
    for label, value in (
        ("runtime", found.get("runtime")),
        ("image", found.get("image")),
        ("network", found.get("network")),
        ("agent", " ".join(str(agent[key]) for key in ("version", "state") if key in agent)),
        ("error", " ".join(str((found.get("error") or {}).get(key, "")) for key in ("message", "hint")).strip()),
    ):
        if value:
            say(f"  {label:<10} {value}")
