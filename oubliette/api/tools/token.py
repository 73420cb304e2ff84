"""The ``token`` tool: who may call."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field

from oubliette import clock
from oubliette.api.tools import prose
from oubliette.api.tools.fields import Args, Cursor, Doc, Line, PageSize, WriteArgs
from oubliette.api.tools.registry import Action, Call, Tool
from oubliette.core import access
from oubliette.core.limits import DEFAULT_PAGE
from oubliette.core.model import Json
from oubliette.core.place_shapes import Token, TokenList
from oubliette.core.principals import TokenRow
from oubliette.core.tokens import ID_HEX, SECRET_HEX, new_token, secret_hash, secret_of, token_shape
from oubliette.errors import RequestError
from oubliette.store import projects, tokens
from oubliette.store.database import Tx


class Create(WriteArgs):
    name: Annotated[Line, Doc("what it is for")]
    scope: Annotated[Line, Doc("admin, admin:ro, project:<id> or project:<id>:ro")]
    expires_in_days: Annotated[float | None, Field(gt=0, le=3650), Doc("default: never")] = None


class List(Args):
    limit: Annotated[PageSize, Doc(f"[{DEFAULT_PAGE}]")] = DEFAULT_PAGE
    cursor: Annotated[Cursor | None, Doc("next_cursor of the page before")] = None


class Revoke(WriteArgs):
    token_id: Annotated[Line | None, Doc("its id or name")] = None
    name: Annotated[Line | None, Doc("its name")] = None


async def create(call: Call, args: Create) -> Json:
    scope = access.parse_scope(args.scope)
    secret = secret_of(clock.fresh_hex(SECRET_HEX))
    row = new_token(
        clock.fresh_hex(ID_HEX),
        name=args.name,
        scope=scope,
        kind="client",
        at=call.shared.services.now(),
        by=call.principal.as_json(),
        expires_in_days=args.expires_in_days,
    )

    def unit(tx: Tx) -> None:
        if scope.project_id is not None and projects.get(tx, scope.project_id) is None:
            raise RequestError("not_found", "The scope names a project that does not exist.", field="scope")
        tokens.create(tx, row, secret_hash(secret))

    await call.shared.services.store.write(unit)
    return {**token_shape(row), "secret": secret}


async def list_tokens(call: Call, args: List) -> Json:
    rows, following = await call.shared.services.store.read(
        partial(tokens.list_page, limit=args.limit, cursor=args.cursor, bound_to=call.principal.id)
    )
    page: Json = {"tokens": [token_shape(row) for row in rows]}
    if following is not None:
        page["next_cursor"] = following
    return page


async def revoke(call: Call, args: Revoke) -> Json:
    at = call.shared.services.now()
    wanted = args.token_id or args.name
    if wanted is None:
        raise RequestError("invalid_argument", "token revoke needs token_id (an id or a name).", field="token_id")

    def unit(tx: Tx) -> TokenRow:
        row = tokens.get(tx, wanted)
        if row is None:
            raise RequestError("not_found", "There is no such token.", hint="See token list.", field="token_id")
        tokens.revoke(tx, row.token_id, at)
        return tokens.get(tx, row.token_id) or row

    row = await call.shared.services.store.write(unit)
    # A token that revokes itself still gets the answer; what else it does ends a moment later.
    call.shared.auth.revoked(row.token_id, at_once=row.token_id != call.principal.id)
    return token_shape(row)


TOOL = Tool(
    name="token",
    doc="Tokens: who may call this daemon. create shows the secret once.",
    results=[Token, TokenList],
    actions=[
        Action("token", "create", Create, create, prose=prose.token_created, unkept=frozenset({"secret"})),
        Action("token", "list", List, list_tokens, prose=prose.token_list, page="limit", items="tokens"),
        Action("token", "revoke", Revoke, revoke, prose=prose.token_revoked),
    ],
)
