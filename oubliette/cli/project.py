"""``project``: settings, credentials and workspaces under one name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from oubliette.cli.follow import find_project, project_id_of
from oubliette.cli.output import ago, note, say, say_json, say_table, tokens_and_cost
from oubliette.cli.place import connect
from oubliette.cli.problems import CliError

app = typer.Typer(name="project", help="Projects: settings, credentials, workspaces.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Project = Annotated[str, typer.Argument(metavar="PROJECT", help="Name or id.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other argument of the project tool; VALUE may be JSON."),
]
_COLUMNS = ("PROJECT", "NAME", "STATE", "MODEL", "SESSIONS", "MADE")


@app.command("create")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name.")],
    description: Annotated[str | None, typer.Option(help="What it is.")] = None,
    remote_url: Annotated[str | None, typer.Option(help="Clone this repository (https or ssh).")] = None,
    branch: Annotated[str | None, typer.Option(help="Which branch to clone.")] = None,
    model: Annotated[str | None, typer.Option(help="Default model of its sessions.")] = None,
    network: Annotated[str | None, typer.Option(help="none or bridge.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Make a project. Its container starts in the background; failures show in `project get`."""
    asked = {"description": description, "remote_url": remote_url, "branch": branch, "model": model, "network": network}
    made = connect(ctx).call("project", action="create", **{**asked, "name": name, **parsed_settings(settings)})
    if as_json:
        say_json(made)
    else:
        say(str(made["project_id"]))
        note(f"{made.get('name', name)}: {made.get('state', 'made')}")


@app.command("list")
def list_(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Option(help="Only names that contain this.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List projects, newest first."""
    found = connect(ctx).call("project", action="list", name_contains=name, limit=limit)
    if as_json:
        say_json(found)
        return
    say_table(
        _COLUMNS,
        [
            (
                one["project_id"],
                one["name"],
                one["state"],
                one.get("model"),
                (one.get("counts") or {}).get("sessions"),
                ago(one.get("created_at")),
            )
            for one in found["projects"]
        ],
        empty="no projects",
    )
    if "next_cursor" in found:
        note(f"there are more; --limit {limit * 5} shows them")


@app.command("get")
def get(ctx: typer.Context, project: Project, as_json: AsJson = False) -> None:
    """Show a project."""
    daemon = connect(ctx)
    found = daemon.call("project", action="get", project_id=project_id_of(daemon, project), detail="full")
    if as_json:
        say_json(found)
        return
    say(f"{found['project_id']}  {found.get('name')}  {found.get('state')}")
    error = found.get("error") or {}
    for label, value in (
        ("about", found.get("description")),
        ("remote", found.get("remote_url")),
        ("model", found.get("model")),
        ("container", " ".join(str(found[key]) for key in ("runtime", "container_type", "network") if key in found)),
        ("usage", tokens_and_cost(found["usage"]) if found.get("usage") else None),
        ("error", " ".join(str(error[key]) for key in ("message", "hint") if error.get(key))),
    ):
        if value:
            say(f"  {label:<10} {value}")
    for container in found.get("containers") or []:
        say(f"  container  {container.get('container_id')} {container.get('state')}")


@app.command("update")
def update(ctx: typer.Context, project: Project, settings: Settings = None, as_json: AsJson = False) -> None:
    """Change settings: `project update shop --set model=opus --set allowed_models='["opus"]'`."""
    changes = parsed_settings(settings)
    if not changes:
        raise CliError("there is nothing to change", hint="--set KEY=VALUE")
    daemon = connect(ctx)
    nulls = [key for key, value in changes.items() if value is None]
    changed = daemon.call("project", nulls=nulls, action="update", project_id=project_id_of(daemon, project), **changes)
    if as_json:
        say_json(changed)
    else:
        note(f"changed {', '.join(changes)}")


@app.command("delete")
def delete(
    ctx: typer.Context,
    project: Project,
    force: Annotated[bool, typer.Option("--force", help="Cancel its sessions first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a project with its workspaces and history."""
    daemon = connect(ctx)
    found = find_project(daemon, project)
    if found is None:
        raise CliError(f"there is no project {project}", hint="See: oubliette project list")
    if not yes and not typer.confirm(f"Delete {found.get('name')} with everything in its workspaces?"):
        raise CliError("nothing was deleted")
    daemon.call("project", action="delete", project_id=found["project_id"], force=force or None)
    note(f"deleted {found.get('name')} ({found['project_id']})")


@app.command("options")
def options(
    ctx: typer.Context,
    project: Annotated[str | None, typer.Argument(metavar="[PROJECT]", help="Name or id.")] = None,
) -> None:
    """What a project may choose from: models, credentials, container types, limits. JSON."""
    daemon = connect(ctx)
    project_id = project_id_of(daemon, project) if project else None
    say_json(daemon.call("project", action="options", project_id=project_id))


def parsed_settings(settings: list[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` pairs; a VALUE that is JSON is that, everything else is text."""
    import json

    parsed: dict[str, Any] = {}
    for item in settings or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise typer.BadParameter("--set takes KEY=VALUE")
        try:
            parsed[key.replace("-", "_")] = json.loads(value)
        except ValueError:
            parsed[key.replace("-", "_")] = value
    return parsed
