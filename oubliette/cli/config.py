"""``config``: check the configuration, show what holds, print its schema."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from oubliette.cli.output import note, say, say_json, sentences
from oubliette.cli.place import home_of, initialised
from oubliette.cli.problems import FAILED

app = typer.Typer(name="config", help="The configuration file.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command("check")
def check(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List every mistake and warning with its line. Exit code 0 when there is no mistake."""
    from oubliette.config import check_config

    home = initialised(home_of(ctx))
    config, problems, warnings = check_config(home.config_file, os.environ)
    if as_json:
        errors = [{"line": one.line, "message": one.message, "hint": one.hint} for one in problems]
        say_json({"file": str(home.config_file), "ok": config is not None, "errors": errors, "warnings": warnings})
    else:
        for problem in problems:
            say(f"error: {sentences(problem.message, problem.hint)}")
        for warning in warnings:
            say(f"warning: {warning}")
        if config is not None:
            models = ", ".join(config.usable_models()) or "none"
            note(f"{home.config_file} is good; models: {models}; default: {config.default_model() or 'none'}")
    if config is None:
        raise typer.Exit(FAILED)


@app.command("show")
def show(ctx: typer.Context) -> None:
    """Print the configuration as it holds, defaults included; secrets as ***. JSON."""
    from oubliette.config import load_config

    config, warnings = load_config(initialised(home_of(ctx)).config_file, os.environ)
    for warning in warnings:
        note(warning)
    say(json.dumps(_masked(config.model_dump(mode="json", by_alias=True, exclude_none=True)), indent=2))


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of the configuration file, for editors."""
    from oubliette.config import schema as made

    say(json.dumps(made(), indent=2))


def _masked(value: Any) -> Any:
    """Pydantic's own mask is as long as ten stars; one spelling everywhere."""
    if isinstance(value, dict):
        return {key: _masked(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner) for inner in value]
    return "***" if value == "**********" else value
