"""``init``: make a home that runs as it stands, and say how to use it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from oubliette.cli.output import note, say, say_json
from oubliette.cli.place import home_of
from oubliette.cli.problems import CliError
from oubliette.cli.token import create_token, list_tokens
from oubliette.home import Home, write_private

if TYPE_CHECKING:
    from oubliette.config import Config

EXAMPLE = "oubliette.example.jsonc"


def example_config() -> str:
    """The commented configuration that ``init`` writes."""
    from importlib.resources import files

    return files("oubliette.cli").joinpath("templates", EXAMPLE).read_text(encoding="utf-8")


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
    force: Annotated[
        bool, typer.Option("--force", help="Write the configuration anew; the old one becomes .bak.")
    ] = False,
    named: Annotated[str, typer.Option("--token", help="Name of the admin token to make.")] = "admin",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Make the home: directories, a commented configuration that runs as it stands, an admin token."""
    from oubliette.config import load_config

    home = home_of(ctx)
    fresh = not home.initialised
    question = f"{home.root} is initialised. Keep what is there and go on?"
    if not (fresh or force or yes or typer.confirm(question, default=True)):
        raise CliError("nothing was changed")
    if force and not fresh:
        home.config_file.replace(home.config_file.with_suffix(".jsonc.bak"))
    wrote = make_home(home)
    home.check()
    config, warnings = load_config(home.config_file, os.environ)
    for warning in warnings:
        note(warning)
    url = url_of(config)
    taken = any(one["name"] == named and "revoked_at" not in one for one in list_tokens(home))
    secret = "" if taken else create_token(home, named, "admin")["secret"]
    if as_json:
        made = {"token": secret, "claude_code": claude_line(url, secret)} if secret else {}
        paths = {"home": str(home.root), "config": str(home.config_file)}
        say_json({**paths, "wrote_config": wrote, "url": url, **made})
        return
    models = ", ".join(config.usable_models()) or "none yet: add one there; oubliette demo needs none"
    say(f"{'Made' if fresh else 'Kept'} {home.root}")
    say(f"  configuration  {home.config_file}{'' if wrote else ' (kept)'}")
    say(f"  models         {models}")
    if not secret:
        say(f'  token          "{named}" exists; another: oubliette token create NAME --scope admin')
        return
    say(f"  token          {secret}")
    say(f"                 shown once; oubliette token revoke {named} ends it")
    say()
    say("Start the daemon: oubliette serve --daemon")
    say("Add Oubliette to Claude Code:")
    say(claude_line(url, secret))


def address_of(home: Home) -> str:
    """Where the daemon of this home is: what the running one says, else what its configuration says."""
    from oubliette.config import load_config

    said = home.running()
    return str(said["url"]) if said is not None else url_of(load_config(home.config_file, os.environ)[0])


def url_of(config: Config) -> str:
    """The URL by which this machine reaches a daemon with that configuration."""
    host = config.server.host
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if config.server.tls else 'http'}://{name}:{config.server.port}"
