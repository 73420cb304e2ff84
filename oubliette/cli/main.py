"""The ``oubliette`` command: options for all, one module per command group, and how errors end it.

Nothing heavy is imported here: the groups import what they need when they run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from oubliette.cli import (
    config,
    container,
    demo,
    doctor,
    init,
    limits,
    mcp,
    project,
    run,
    schedule,
    serve,
    session,
    token,
    workspace,
)
from oubliette.cli.place import Invocation, home_of, initialised
from oubliette.cli.problems import FAILED, INTERRUPTED, OK, USAGE, exit_code_of
from oubliette.errors import OublietteError
from oubliette.safe_text import safe_line

app = typer.Typer(
    name="oubliette",
    help="Run coding agents without a screen. Without a command: serve in the foreground.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for command in (
    init.init,
    serve.serve,
    run.run,
    demo.demo,
    serve.stop,
    serve.status,
    doctor.doctor,
    limits.limits,
    mcp.mcp,
    serve.logs,
):
    app.command()(command)
for group in (project.app, session.app, workspace.app, container.app, schedule.app, token.app, config.app):
    app.add_typer(group)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"oubliette {version('oubliette')}")
        except PackageNotFoundError:
            print("oubliette (a source tree that is not installed)")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _before_all(
    ctx: typer.Context,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="The home, instead of OUBLIETTE_HOME or ~/.oubliette.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    ctx.obj = Invocation(directory, debug)
    if ctx.invoked_subcommand is None:
        raise typer.Exit(serve.serve_here(initialised(home_of(ctx))))


def _hoisted(arguments: list[str]) -> list[str]:
    """``--dir P`` and ``--debug`` may stand anywhere before ``--``: they are put in front of the command."""
    front: list[str] = []
    rest: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        if argument == "--":
            rest += [argument, *pending]
        elif argument == "--dir":
            front += [argument, *([value] if (value := next(pending, None)) is not None else [])]
        elif argument == "--debug" or argument.startswith("--dir="):
            front.append(argument)
        else:
            rest.append(argument)
    return front + rest


def run_command(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. Every error becomes one line on stderr."""
    arguments = _hoisted(arguments)
    debug = "--debug" in arguments
    try:
        code = app(arguments, prog_name="oubliette", standalone_mode=False)
        sys.stdout.flush()
    except OublietteError as error:
        if debug:
            raise
        _complain(error.message, error.hint)
        return exit_code_of(error)
    except typer.Abort:
        _complain("aborted", "")
        return INTERRUPTED
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "oubliette"
        _complain(error.format_message(), f"{path} --help" if error.exit_code == USAGE else "")
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe has had enough. Its end of stdout is gone: keep the interpreter from flushing into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if debug:
            raise
        _complain(
            f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), "--debug shows more"
        )
        return FAILED
    return code if isinstance(code, int) else OK


def _complain(message: str, hint: str) -> None:
    """Configuration errors may be several lines' worth; each stays on its own."""
    print(f"oubliette: {safe_line(message)}" + (f"\n  {safe_line(hint)}" if hint else ""), file=sys.stderr, flush=True)


def main() -> None:
    """The console script."""
    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
