"""``init``: make a home that runs as it stands, and say how to use it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from oubliette.cli.output import note, say, say_json
from oubliette.cli.place import home_of
from oubliette.cli.problems import CliError
from oubliette.home import Home, write_private

EXAMPLE = "oubliette.example.jsonc"


def example_config() -> str:
    """The commented configuration that ``init`` writes."""
    from importlib.resources import files

    packaged = files("oubliette.cli").joinpath("templates", EXAMPLE)
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).resolve().parents[2] / "config" / EXAMPLE).read_text(encoding="utf-8")  # a source tree


def make_home(home: Home, *, overwrite: bool = False) -> bool:
    """Directories, marker and, unless there is one, the configuration. True when the configuration was written."""
    home.create()
    home.mark(os.environ)
    if home.initialised and not overwrite:
        return False
    write_private(home.config_file, example_config())
    return True


def claude_line(url: str, secret: str) -> str:
    """The command that adds this daemon to Claude Code."""
    return f'claude mcp add --transport http oubliette {url}/mcp --header "Authorization: Bearer {secret}"'


def init(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; keep what is there.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write the configuration anew; the old one is kept as .bak.")] = False,
    token_name: Annotated[str, typer.Option("--token", help="Name of the admin token to make.")] = "admin",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Make the home: directories, a commented configuration that runs as it stands, an admin token."""
    from oubliette.cli.token import live_token, make_token, store_of
    from oubliette.config import load_config

    home = home_of(ctx)
    fresh = not home.initialised
    if not fresh and not force and not yes and not typer.confirm(f"{home.root} is initialised. Keep it and go on?", default=True):
        raise CliError("nothing was changed")
    if force and not fresh:
        home.config_file.replace(home.config_file.with_suffix(".jsonc.bak"))
    wrote = make_home(home)
    home.check()
    config, warnings = load_config(home.config_file, os.environ)
    for warning in warnings:
        note(warning)
    url = f"{'https' if config.server.tls else 'http'}://{_reachable(config.server.host)}:{config.server.port}"
    with nullcontext() if home.holder() else home.lock():
        existing = None if home.holder() not in {None, os.getpid()} else live_token(home, token_name)
        secret = "" if existing else make_token(ctx, home, token_name, "admin", None)["secret"]
    del store_of
    if as_json:
        line = claude_line(url, secret) if secret else None
        say_json({"home": str(home.root), "config": str(home.config_file), "wrote_config": wrote, "url": url}
                 | ({"token": secret, "claude_code": line} if secret else {}))  # fmt: skip
        return
    say(f"{'Made' if fresh else 'Kept'} {home.root}")
    say(f"  configuration  {home.config_file}{'' if wrote else ' (kept)'}")
    say("  models         none yet: add one there, or try: oubliette demo" if not config.usable_models() else
        f"  models         {', '.join(config.usable_models())}")  # fmt: skip
    if not secret:
        say(f'  token          "{token_name}" exists already; a new one: oubliette token create NAME --scope admin')
        return
    say(f"  token          {secret}")
    say('                 shown once; revoke it with: oubliette token revoke ' + token_name)
    say()
    say("Start it:                oubliette serve --daemon")
    say("Add it to Claude Code:")
    say(claude_line(url, secret))


def _reachable(host: str) -> str:
    """The host by which this machine reaches a daemon that listens on ``host``."""
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
