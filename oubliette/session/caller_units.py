"""The writes about caller tools: declared, called, answered, taken back. Each function is one unit of the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from oubliette.core.caller_tools import CallerTools, check_arguments, full_name
from oubliette.core.events import system_event
from oubliette.core.limits import MAX_CALLER_CALLS, MAX_CALLERS_PER_PROJECT, MAX_CALLERS_PER_SESSION
from oubliette.core.model import Json, RequestKind, RequestRow, SessionRow
from oubliette.core.principals import Principal
from oubliette.errors import Limit, RequestError
from oubliette.session.ask_units import open_request, resolve_request
from oubliette.session.attenuation import caller_of
from oubliette.store import caller_tools, events, requests, sessions, turns
from oubliette.store.caller_tools import CallerToolsRow
from oubliette.store.database import Tx

WITHDRAWN = "The tool was withdrawn by its caller."
CALLER_GONE = "The caller is gone: its token was revoked or has expired."
RESTARTED = "The daemon was restarted."


def declare(tx: Tx, row: SessionRow, sender: Principal, caller: CallerTools, at: datetime) -> None:
    """From now on this is the caller's list in that session; calls of tools that are not in it any more end.

    Raises RequestError: somebody else uses that caller_id in the session, or there are too many callers.
    """
    known = caller_tools.get(tx, row.session_id, caller.caller_id)
    if known is not None and known.principal_id != sender.id and not sender.scope.is_admin:
        raise RequestError(
            "conflict",
            f"Another token has declared tools as {caller.caller_id} in this session.",
            hint="Choose another caller_id.",
            field="caller_id",
        )
    tools = [dict(tool) for tool in caller.tools]
    if known is None and not tools:
        return
    if known is not None and known.tools == tools and known.principal_id == sender.id:
        return
    if tools:
        _check_room(tx, row, caller.caller_id)
        caller_tools.put(tx, CallerToolsRow(row.session_id, caller.caller_id, sender.id, tools, at))
    else:
        caller_tools.delete(tx, row.session_id, caller.caller_id)
    names = [str(tool["name"]) for tool in tools]
    _changed(tx, row.session_id, caller.caller_id, names, at)
    _end_calls(tx, row.session_id, caller.caller_id, lambda name: name not in names, WITHDRAWN, at)


def _check_room(tx: Tx, row: SessionRow, caller_id: str) -> None:
    mine = {one.caller_id for one in caller_tools.of_session(tx, row.session_id)} - {caller_id}
    near = set(caller_tools.caller_ids(tx, row.project_id)) - {caller_id}
    for name, limit, others, where in (
        ("callers_per_session", MAX_CALLERS_PER_SESSION, mine, "this session"),
        ("callers_per_project", MAX_CALLERS_PER_PROJECT, near, "the project's open sessions"),
    ):
        if len(others) >= limit:
            raise RequestError(
                "limit_reached",
                f"{len(others)} callers have tools in {where}, which is all there may be.",
                hint="Use a caller_id that is known there, or end sessions that are done.",
                field="caller_id",
                limit=Limit(name, limit, len(others)),
            )


def withdraw(tx: Tx, principal_id: str, at: datetime) -> int:
    """The token has ended: its tools go, and the calls that wait for it end. Returns how many declarations went."""
    gone = caller_tools.of_principal(tx, principal_id)
    for declared in gone:
        caller_tools.delete(tx, declared.session_id, declared.caller_id)
        row = sessions.get(tx, declared.session_id)
        if row is not None and row.open:
            _changed(tx, row.session_id, declared.caller_id, [], at, why="token_ended")
            _end_calls(tx, row.session_id, declared.caller_id, lambda _name: True, CALLER_GONE, at)
    return len(gone)


def _changed(tx: Tx, session_id: str, caller_id: str, names: list[str], at: datetime, why: str | None = None) -> None:
    data: Json = {"caller_id": caller_id, "tools": names, **({"why": why} if why else {})}
    running = turns.running(tx, session_id)
    event = system_event("caller_tools_changed", turn=running.turn if running else None, data=data)
    events.append(tx, session_id, replace(event, ts=at))


def _end_calls(
    tx: Tx, session_id: str, caller_id: str, ended: Callable[[str], bool], message: str, at: datetime
) -> None:
    for request in caller_tools.pending_calls(tx, session_id):
        body = body_of(request)
        if body["caller_id"] == caller_id and ended(str(body["name"])):
            cancel_call(tx, request.request_id, message, at)


# --- calls


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that an agent makes. ``seconds`` is how long its caller has to answer."""

    request_id: str
    session_id: str
    caller_id: str
    name: str
    arguments: Json
    seconds: float


def open_call(tx: Tx, asked: Asked, at: datetime) -> RequestRow:
    """A pending entry, its event, and the session waits. Raises RequestError when the session may not call that."""
    whole = full_name(asked.caller_id, asked.name)
    caller = caller_of(tx, asked.session_id)
    declared = caller_tools.get(tx, asked.session_id, asked.caller_id)
    tool = declared.tool(asked.name) if declared is not None else None
    if tool is None:
        raise RequestError("not_found", f"This session has no tool {whole[:80]}: its caller offers none of that name.")
    if not caller.may_use(whole):
        raise RequestError("permission_denied", f"This session may not use {whole}.")
    turn = turns.running(tx, asked.session_id)
    if turn is None:
        raise RequestError("conflict", "No turn of this session runs.", hint="Stop here.")
    check_arguments(whole, tool["input_schema"], asked.arguments)
    waiting = len(caller_tools.pending_calls(tx, asked.session_id))
    if waiting >= MAX_CALLER_CALLS:
        raise RequestError(
            "limit_reached",
            f"{waiting} calls of caller tools wait for answers already.",
            hint="Wait for some of them.",
            retryable=True,
            limit=Limit("caller_calls", MAX_CALLER_CALLS, waiting),
        )
    request = RequestRow(
        request_id=asked.request_id,
        session_id=asked.session_id,
        turn=turn.turn,
        kind=RequestKind.CALLER_TOOL,
        created_at=at,
        expires_at=at + timedelta(seconds=asked.seconds),
        on_expiry="reject",
        body={"caller_id": asked.caller_id, "name": asked.name, "arguments": asked.arguments},
        agent_ref=f"caller:{asked.request_id}",
    )
    open_request(tx, asked.session_id, request, at)
    return request


def answer_call(
    tx: Tx, session_id: str, request_id: str, principal: Principal, reply: str, at: datetime
) -> tuple[bool, RequestRow]:
    """The declaring principal, or an admin, answers: (whether this answer won, the call as it now is). ``reply`` says
    what the answer was, ``result`` or ``error``. Raises RequestError."""
    request = requests.get(tx, request_id)
    if request is None or request.session_id != session_id:
        raise RequestError(
            "not_found", "There is no such request in this session.", hint="See pending.", field="request_id"
        )
    if request.kind is not RequestKind.CALLER_TOOL:
        raise RequestError(
            "invalid_argument",
            f"That is a {request.kind}, not a call of a caller's tool.",
            hint="Use session answer.",
            field="request_id",
        )
    if request.resolution is not None:
        return False, request
    body = body_of(request)
    declared = caller_tools.get(tx, session_id, str(body["caller_id"]))
    if not principal.scope.is_admin and (declared is None or declared.principal_id != principal.id):
        whole = full_name(str(body["caller_id"]), str(body["name"]))
        raise RequestError(
            "permission_denied",
            f"Only the token that declared {whole} answers its calls.",
            hint="An admin token may answer too.",
            field="request_id",
        )
    resolution: Json = {"accepted": True, "how": "answered", "by": principal.as_json(), "reply": reply}
    return resolve_request(tx, request_id, resolution, at)


def expire_call(tx: Tx, request_id: str, message: str, at: datetime) -> tuple[bool, RequestRow]:
    """Nobody answered in time. False: somebody did after all."""
    return resolve_request(tx, request_id, {"accepted": False, "how": "expired", "message": message}, at)


def cancel_call(tx: Tx, request_id: str, message: str | None, at: datetime) -> None:
    """Nobody waits for the answer any more. Fine when it was settled, or its session is gone."""
    if requests.get(tx, request_id) is not None:
        told: Json = {"message": message} if message else {}
        resolve_request(tx, request_id, {"accepted": False, "how": "cancelled", **told}, at)


def cancel_left_over(tx: Tx, at: datetime) -> int:
    """Calls of before this daemon's start: their agents have been told that the connection broke."""
    left = caller_tools.pending_calls(tx)
    for request in left:
        cancel_call(tx, request.request_id, RESTARTED, at)
    return len(left)


def body_of(request: RequestRow) -> dict[str, Any]:
    """The ``caller_tool`` of a call."""
    if not isinstance(request.body, dict):
        raise TypeError(f"the body of request {request.request_id} is no object")
    return request.body
