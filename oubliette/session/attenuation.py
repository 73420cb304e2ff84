"""What a session may give to those below it: at most what it has at that moment. Checked in the unit that writes.

What it asks for beyond that is refused and named; what it does not ask for it passes on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from oubliette.agent.permissions import is_covered, names_tool
from oubliette.core.model import Autonomy, Json, Reasoning, SessionRow, TurnRow
from oubliette.errors import RequestError
from oubliette.session import units
from oubliette.session.requests import SpawnArgs, TurnArgs
from oubliette.session.status import require_session
from oubliette.store import turns
from oubliette.store.database import Tx

_FREEDOM = (Autonomy.LOW, Autonomy.MEDIUM, Autonomy.HIGH, Autonomy.OFF)
"""From the one that asks most to the one that asks nothing."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A session that calls, with what it has: its settings under those of its running turn."""

    row: SessionRow
    settings: Json
    minutes_left: float
    """Of its turn's time limit."""

    @property
    def autonomy(self) -> Autonomy:
        return Autonomy(self.settings["autonomy"])

    def may_use(self, tool: str) -> bool:
        allowed = self.settings.get("tools_allowed")
        hidden = any(names_tool(one, tool) for one in self.settings.get("tools_disallowed") or ())
        return not hidden and (allowed is None or is_covered(tool, allowed))


def caller_of(tx: Tx, session_id: str, seconds_left: float | None = None) -> Caller:
    """Raises RequestError when the session is being ended or has ended: then nothing of it may start.

    ``seconds_left`` comes from the running turn's own clock; without one the limit of a whole turn counts.
    """
    row = require_session(tx, session_id)
    if row.ending is not None or not row.open:
        raise RequestError("conflict", "This session is being ended or has ended.", hint="Stop here.")
    turn = turns.running(tx, session_id)
    seconds = seconds_left if seconds_left is not None else _limit_seconds(row, turn)
    return Caller(row, _settings(row, turn), seconds / 60)


def child(caller: Caller, args: SpawnArgs, workspaces: Collection[str] = ()) -> SpawnArgs:
    """The spawn that was asked for, within what the caller has. Raises RequestError permission_denied.

    ``workspaces`` are those that the caller may use besides its own."""
    row = caller.row
    refused = (
        ("project_id", args.project_id not in (None, row.project_id)),
        ("workspace_id", args.workspace_id not in (None, row.workspace_id, *workspaces)),
        ("create_workspace", args.create_workspace),
        ("max_cost_usd", args.max_cost_usd is not None),
        ("caller_tools", args.turn.caller is not None),
    )
    for name, chosen in refused:
        if chosen:
            raise _refused(name, f"A session may not choose {name} for its children.")
    given = args.turn
    turn = replace(
        given,
        model=given.model or caller.settings["model"],
        autonomy=given.autonomy or caller.autonomy,
        reasoning=given.reasoning or Reasoning(caller.settings["reasoning"]),
    )
    return replace(
        args,
        turn=_within(caller, turn, {}),
        project_id=row.project_id,
        workspace_id=args.workspace_id or row.workspace_id,
        parent_id=row.session_id,
        new_session=True,
    )


def message(caller: Caller, target: SessionRow, asked: TurnArgs) -> TurnArgs:
    """The message to a session below the caller: its turn has at most what the caller has, whatever its session was
    given at its spawn. Raises RequestError permission_denied."""
    if asked.caller is not None:
        raise _refused("caller_tools", "A session may not choose caller_tools for those below it.")
    return _within(caller, asked, _settings(target, None))


def refuse_freedom(tx: Tx, session_id: str, target: SessionRow, asked: TurnArgs) -> None:
    """An agent that its scope brings to sessions above and beside it says what it likes to those of its own tree, and
    gives them nothing: they ask, and may, what they were given by others. Raises RequestError permission_denied."""
    if require_session(tx, session_id).root_id != target.root_id:
        return
    for name, given in (
        ("autonomy_level", asked.autonomy),
        ("tools_allowed", asked.tools_allowed),
        ("tools_disallowed", asked.tools_disallowed),
        ("timeout_minutes", asked.timeout_minutes),
    ):
        if given is not None:
            raise _refused(name, f"An agent may not choose {name} for sessions above or beside it in its own tree.")


def _within(caller: Caller, asked: TurnArgs, own: Mapping[str, Any]) -> TurnArgs:
    """``own`` holds what the session that takes the message would use where the message says nothing."""
    return replace(
        asked,
        autonomy=_autonomy(caller, asked.autonomy, own.get("autonomy")),
        tools_allowed=_allowed(caller, asked.tools_allowed, own.get("tools_allowed")),
        tools_disallowed=_disallowed(caller, asked.tools_disallowed, own.get("tools_disallowed")),
        timeout_minutes=_minutes(caller, asked.timeout_minutes),
        at_most_minutes=caller.minutes_left,
    )


def _autonomy(caller: Caller, asked: Autonomy | None, own: str | None) -> Autonomy | None:
    have = _FREEDOM.index(caller.autonomy)
    if asked is not None and _FREEDOM.index(asked) > have:
        raise _refused(
            "autonomy_level", f"The autonomy {asked} asks less than the caller's own, which is {caller.autonomy}."
        )
    if asked is None and own is not None and _FREEDOM.index(Autonomy(own)) > have:
        return caller.autonomy
    return asked


def _allowed(caller: Caller, asked: Sequence[str] | None, own: Sequence[str] | None) -> Sequence[str] | None:
    for tool in asked or ():
        if any(names_tool(one, tool) for one in caller.settings.get("tools_disallowed") or ()):
            raise _refused("tools_allowed", f"The caller may not use {tool!r} itself.")
    limit: Sequence[str] | None = caller.settings.get("tools_allowed")
    if limit is None:
        return asked
    if asked is None:
        return limit if own is None else [tool for tool in own if is_covered(tool, limit)]
    for tool in asked:
        if not is_covered(tool, limit):
            raise _refused("tools_allowed", f"The caller may not use {tool!r} itself; it has {', '.join(limit)}.")
    return asked


def _disallowed(caller: Caller, asked: Sequence[str] | None, own: Sequence[str] | None) -> Sequence[str] | None:
    denied: Sequence[str] = caller.settings.get("tools_disallowed") or ()
    wanted = asked if asked is not None else own
    if not denied:
        return asked
    return list(dict.fromkeys([*denied, *(wanted or ())]))


def _minutes(caller: Caller, asked: float | None) -> float | None:
    if asked is not None and asked > caller.minutes_left:
        raise _refused("timeout_minutes", f"The caller's own turn has {caller.minutes_left:.1f} minutes left.")
    return asked


def _settings(row: SessionRow, turn: TurnRow | None) -> Json:
    chosen = {"model": row.model, "autonomy": row.autonomy, "reasoning": row.reasoning}
    return {**chosen, **row.settings, **(turn.overrides if turn is not None else {})}


def _limit_seconds(row: SessionRow, turn: TurnRow | None) -> float:
    return units.deadline_of(row, turn).total_seconds()


def _refused(field: str, why: str) -> RequestError:
    return RequestError(
        "permission_denied", why, hint="What is spawned or messaged gets at most what the caller has.", field=field
    )
