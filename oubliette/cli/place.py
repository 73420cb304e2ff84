"""Which home a command is about, and the way to its daemon."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import typer

from oubliette.cli.client import Daemon
from oubliette.cli.output import note
from oubliette.cli.problems import NOT_RUNNING, CliError
from oubliette.home import Home, HomeError, find_home


@dataclass(frozen=True, slots=True)
class Invocation:
    """The options that stand before every command."""

    directory: Path | None = None
    debug: bool = False


def home_of(ctx: typer.Context) -> Home:
    """The home, whether or not there is anything in it."""
    invocation = ctx.find_object(Invocation) or Invocation()
    home = find_home(invocation.directory, os.environ, Path.cwd())
    if home.note:
        note(home.note)
    return home


def initialised(home: Home) -> Home:
    """The same home, once it is sure that ``init`` was here. Raises CliError."""
    if not home.initialised:
        where = "" if home.chosen_by == "~/.oubliette" else f" --dir {home.root}"
        raise CliError(f"{home.root} is not initialised", hint=f"Run: oubliette{where} init", exit_code=NOT_RUNNING)
    return home


def running_daemon(home: Home) -> Daemon | None:
    """The daemon of this home; None when there is none. Raises CliError when it is there and cannot be talked to."""
    said = home.running()
    if said is None:
        return None
    try:
        secret = home.cli_token_file.read_text().strip()
    except OSError as error:
        raise CliError(f"the CLI's token {home.cli_token_file} cannot be read: {error.strerror}") from error
    return Daemon(str(said["url"]), secret, certificate=said.get("certificate"))


def connect(ctx: typer.Context) -> Daemon:
    """The running daemon. Raises CliError: not initialised, not running, still starting."""
    home = home_of(ctx)
    daemon = running_daemon(home)
    if daemon is not None:
        return daemon
    initialised(home)
    try:
        holder = home.holder()
    except HomeError:
        holder = None
    if holder is not None:
        raise CliError(
            f"the daemon in {home.root} is starting or stopping (pid {holder})",
            hint="Try again.",
            exit_code=NOT_RUNNING,
        )
    raise CliError(
        f"no daemon is running in {home.root}", hint="Start one: oubliette serve --daemon", exit_code=NOT_RUNNING
    )
