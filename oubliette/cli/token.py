"""``token``: who may call. Through the daemon while it runs, on the store itself while it does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from oubliette.cli.output import ago, note, say, say_json, say_table
from oubliette.cli.place import home_of, initialised, running_daemon
from oubliette.home import Home

if TYPE_CHECKING:
    from oubliette.store.database import Tx

T = TypeVar("T")
Json = dict[str, Any]
PAGE = 500

app = typer.Typer(name="token", help="Who may call the daemon.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def on_store(home: Home, unit: Callable[[Tx], T], *, write: bool) -> T:
    """Run a unit on the store of a stopped daemon; a write takes the home's lock. Raises HomeLockedError."""
    import trio

    from oubliette.store.database import open_store

    async def run() -> T:
        async with open_store(home.database, publish=lambda _events: None) as store:
            return await (store.write(unit) if write else store.read(unit))

    if write:
        with home.lock():
            return trio.run(run)
    home.create()
    return trio.run(run)


def create_token(home: Home, name: str, scope: str, expires_in_days: float | None = None) -> Json:
    """Make a token; its shape with the ``secret``."""
    daemon = running_daemon(home)
    if daemon is not None:
        return daemon.call("token", action="create", name=name, scope=scope, expires_in_days=expires_in_days)
    from oubliette import clock
    from oubliette.core import tokens as values
    from oubliette.core.access import parse_scope
    from oubliette.core.principals import LOCAL
    from oubliette.errors import RequestError
    from oubliette.store import projects, tokens

    parsed = parse_scope(scope)
    secret = values.secret_of(clock.fresh_hex(values.SECRET_HEX))
    row = values.new_token(
        clock.fresh_hex(values.ID_HEX),
        name=name,
        scope=parsed,
        kind="client",
        at=clock.now(),
        by=LOCAL.as_json(),
        expires_in_days=expires_in_days,
    )

    def unit(tx: Tx) -> None:
        if parsed.project_id is not None and projects.get(tx, parsed.project_id) is None:
            raise RequestError("not_found", "The scope names a project that does not exist.", field="scope")
        tokens.create(tx, row, values.secret_hash(secret))

    on_store(home, unit, write=True)
    return {**values.token_shape(row), "secret": secret}


def list_tokens(home: Home) -> list[Json]:
    """Every token, newest first, revoked ones included."""
    daemon = running_daemon(home)
    found: list[Json] = []
    cursor: str | None = None
    while daemon is not None:
        page = daemon.call("token", action="list", limit=100, cursor=cursor)
        found += page["tokens"]
        cursor = page.get("next_cursor")
        if cursor is None:
            return found
    from oubliette.core.tokens import token_shape
    from oubliette.store import tokens

    while True:
        rows, cursor = on_store(home, partial(tokens.list_page, limit=PAGE, cursor=cursor), write=False)
        found += [token_shape(row) for row in rows]
        if cursor is None:
            return found


def revoke_token(home: Home, id_or_name: str) -> Json:
    """Revoke by id or name; the token as it is then."""
    daemon = running_daemon(home)
    if daemon is not None:
        return daemon.call("token", action="revoke", token_id=id_or_name)
    from oubliette import clock
    from oubliette.core.tokens import token_shape
    from oubliette.errors import RequestError
    from oubliette.store import tokens

    def unit(tx: Tx) -> Json:
        row = tokens.get(tx, id_or_name)
        if row is None:
            raise RequestError("not_found", f"There is no token {id_or_name!r}.", hint="See: oubliette token list")
        tokens.revoke(tx, row.token_id, clock.now())
        return token_shape(tokens.get(tx, row.token_id) or row)

    return on_store(home, unit, write=True)


@app.command("create")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for, e.g. laptop.")],
    scope: Annotated[str, typer.Option(help="admin, admin:ro, project:<id> or project:<id>:ro.")],
    expires_in_days: Annotated[float | None, typer.Option(min=0, help="Without it: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and show its secret, once."""
    made = create_token(initialised(home_of(ctx)), name, scope, expires_in_days)
    if as_json:
        say_json(made)
        return
    say(made["secret"])
    note(f"{made['token_id']} ({made['name']}, {made['scope']}): this secret is not shown again")


@app.command("list")
def list_(
    ctx: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Revoked ones too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List tokens, newest first."""
    found = [one for one in list_tokens(initialised(home_of(ctx))) if everything or "revoked_at" not in one]
    if as_json:
        say_json({"tokens": found})
        return
    say_table(
        ("ID", "NAME", "SCOPE", "LAST USED", "STATE"),
        [(one["token_id"], one["name"], one["scope"], ago(one.get("last_used_at")), _state(one)) for one in found],
        empty="no tokens; make one: oubliette token create NAME --scope admin",
    )


@app.command("revoke")
def revoke(
    ctx: typer.Context,
    token: Annotated[str, typer.Argument(help="Its id or its name.")],
    as_json: AsJson = False,
) -> None:
    """Revoke a token; what goes on in its name ends."""
    gone = revoke_token(initialised(home_of(ctx)), token)
    if as_json:
        say_json(gone)
    else:
        note(f"revoked {gone['token_id']} ({gone['name']})")


def _state(token: Json) -> str:
    if "revoked_at" in token:
        return f"revoked {ago(token['revoked_at'])}"
    return f"until {token['expires_at'][:10]}" if "expires_at" in token else "good"
