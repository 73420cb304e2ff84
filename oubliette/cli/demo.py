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
    keep: Annotated[bool, typer.Option("--keep", help="Leave the project there to look at.")] = False,
) -> None:
    """Watch an agent write a file, run it and answer, in a sandbox, in a home of the demo's own.

    The first run fetches the agent; later ones take seconds.
    """
    home = _demo_home(ctx)
    if make_home(home):
        note(f"the demo lives in {home.root}")
    runtime = (
        runtime or os.environ.get("CONTAINER_RUNTIME", "") or ("bubblewrap" if sys.platform == "linux" else "auto")
    )
    with borrowed_daemon(home, environment={"CONTAINER_RUNTIME": runtime}) as (daemon, _ours):
        code = _show(daemon, home, keep)
    if code == 0:
        say()
        say('Your own: oubliette init, add a model to its configuration, then: oubliette run "what to do"')
    raise typer.Exit(code)


def _demo_home(ctx: typer.Context) -> Home:
    """The given home, else one in the user's cache, so that what was fetched is there the next time."""
    if (ctx.find_object(Invocation) or Invocation()).directory is not None:
        return home_of(ctx)
    cache = os.environ.get("XDG_CACHE_HOME")
    return Home((Path(cache) if cache else user_directory(os.environ) / ".cache") / "oubliette" / "demo", "demo")


def _show(daemon: Daemon, home: Home, keep: bool) -> int:
    project = daemon.call("project", action="create", name=f"demo-{secrets.token_hex(4)}")
    project_id = str(project["project_id"])
    try:
        spawned = daemon.call(
            "session",
            action="spawn",
            project_id=project_id,
            message=TASK,
            title="demo",
            model="scripted",
            source="demo",
        )
        view = watch_turn(daemon, spawned, home)
        view.summarise()
        if keep:
            note(f"the project stays: {home.workspace_dir(project_id, str(spawned['workspace_id']))}")
        return exit_code(view)
    except KeyboardInterrupt:
        note("stopping")
        return INTERRUPTED
    finally:
        if not keep:
            try:
                daemon.call("project", action="delete", project_id=project_id, force=True)
            except OublietteError as error:
                note(f"the demo's project could not be deleted: {error.message}")
