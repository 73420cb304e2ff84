"""``demo``: a real agent in a real sandbox with the built-in model. No key, no engine, no network needed."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from oubliette.cli.child import borrowed_daemon
from oubliette.cli.client import Daemon
from oubliette.cli.follow import exit_code, watch_turn
from oubliette.cli.init import make_home
from oubliette.cli.output import note, say
from oubliette.cli.place import Invocation, home_of
from oubliette.cli.problems import INTERRUPTED
from oubliette.cli.run import wait_silently
from oubliette.errors import OublietteError
from oubliette.home import Home, user_directory

TASK = r"""Write a small program, run it, and tell me what it found.
(The built-in model has no mind of its own: it follows these lines.)
@stream 24 20
@say I will write a short program that looks for perfect numbers, and run it.
@tool write {"filePath": "perfect.py", "content": "def perfect(n):\n    return n == sum(d for d in range(1, n) if n % d == 0)\n\n\nprint(*[n for n in range(2, 1000) if perfect(n)])\n"}
@tool bash {"command": "python3 perfect.py && uname -sr && id -un", "description": "run the program"}
@say It ran in the sandbox, as a user of its own and without a network, and printed:
@echo-last-tool 300
"""  # noqa: E501


def demo(
    ctx: typer.Context,
    runtime: Annotated[str, typer.Option(help="What to run the sandbox with; auto tries all.")] = "",
    tree: Annotated[bool, typer.Option("--tree", help="An agent with children, shown as a tree.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the project there to look at.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing live.")] = False,
) -> None:
    """Watch an agent write a file, run it and answer, in a sandbox, in a home of the demo's own.

    With --tree: five children, of which one has a child of its own, one fails and one is cancelled. Exit code 0 when
    all went as it was meant to, the failure and the cancelled one included.

    The first run fetches the agent; later ones take seconds.
    """
    home = _demo_home(ctx)
    if make_home(home):
        note(f"the demo lives in {home.root}")
    runtime = (
        runtime or os.environ.get("CONTAINER_RUNTIME", "") or ("bubblewrap" if sys.platform == "linux" else "auto")
    )
    with borrowed_daemon(home, environment={"CONTAINER_RUNTIME": runtime}) as (daemon, _ours):
        code = _show(daemon, home, tree=tree, keep=keep, as_json=as_json)
    if code == 0 and not as_json:
        say()
        say('Your own: oubliette init, add a model to its configuration, then: oubliette run "what to do"')
    raise typer.Exit(code)


def _demo_home(ctx: typer.Context) -> Home:
    """The given home, else one in the user's cache, so that what was fetched is there the next time."""
    if (ctx.find_object(Invocation) or Invocation()).directory is not None:
        return home_of(ctx)
    cache = os.environ.get("XDG_CACHE_HOME")
    return Home((Path(cache) if cache else user_directory(os.environ) / ".cache") / "oubliette" / "demo", "demo")


def _show(daemon: Daemon, home: Home, *, tree: bool, keep: bool, as_json: bool) -> int:
    project = daemon.call("project", action="create", name=f"demo-{secrets.token_hex(4)}")
    project_id = str(project["project_id"])
    try:
        if tree:
            from oubliette.cli.demo_tree import show_tree

            code = show_tree(daemon, home, project_id, as_json=as_json)
        else:
            code = _show_turn(daemon, home, project_id, as_json=as_json)
        if keep:
            note(f"the project stays: {home.workspace_dir(project_id, str(project['default_workspace_id']))}")
        return code
    except KeyboardInterrupt:
        note("stopping")
        return INTERRUPTED
    finally:
        if not keep:
            try:
                daemon.call("project", action="delete", project_id=project_id, force=True)
            except OublietteError as error:
                note(f"the demo's project could not be deleted: {error.message}")


def _show_turn(daemon: Daemon, home: Home, project_id: str, *, as_json: bool) -> int:
    spawned = daemon.call(
        "session", action="spawn", project_id=project_id, message=TASK, title="demo", model="scripted", source="demo"
    )
    if as_json:
        return wait_silently(daemon, str(spawned["session_id"]))
    view = watch_turn(daemon, spawned, home)
    view.summarise()
    return exit_code(view)
