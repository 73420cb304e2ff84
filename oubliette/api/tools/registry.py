"""One table of everything a caller can do: the tools, their schemas, and the one way in which an action runs.

Order of a call: arguments are checked, the target's project is looked up, the permission table is asked, then the
handler runs. What a caller may not see does not exist for it. A handler never answers to the wire: it returns the
result object, and every door renders the same ``Outcome`` of it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pydantic import BaseModel

from oubliette.api import errors
from oubliette.api.keys import Remember
from oubliette.api.metrics import CALL_SECONDS, CALLS
from oubliette.api.shared import Shared
from oubliette.api.tools import arguments, reply
from oubliette.api.tools.fields import Args, WriteArgs, invalid, shown
from oubliette.api.tools.gate import NOWHERE, Place, Target, locate
from oubliette.api.tools.schema import ToolSchema, input_schema, output_schema, usable
from oubliette.core import access
from oubliette.core.limits import RESULT_CHARACTERS
from oubliette.core.model import Json
from oubliette.core.principals import Principal
from oubliette.errors import RequestError
from oubliette.log import get_logger

log = get_logger(__name__)
Progress = Callable[[float, float | None, str], Awaitable[None]]

READ_SUFFIX: Final = "_read"
_ARGUMENT_SPELLINGS: Final[Mapping[str, str]] = {"prompt": "message"}
"""Argument names that are understood and not listed."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call as its handler sees it. ``progress`` is None when the caller did not ask for it."""

    shared: Shared
    principal: Principal
    request_id: str
    progress: Progress | None = None
    place: Place = NOWHERE
    remember: Remember | None = None
    """Of a write with a ``request_key``: to be called with the result in the unit that makes it durable."""

    @property
    def project_id(self) -> str:
        """The project that the call is about. RequestError: none was named and the principal has none of its own."""
        if self.place.project_id is None:
            raise RequestError("invalid_argument", "project_id is needed.", field="project_id")
        return self.place.project_id


@dataclass(frozen=True, slots=True)
class Action:
    """One row of the table.

    ``settle`` waits for work that goes on behind the answer; it may be cancelled freely. ``prose`` None: the text is
    the compact JSON. ``page`` names the argument that asks for fewer items when a result is too long, and ``items``
    the member that holds them.
    """

    tool: str
    name: str
    args: type[Args]
    run: Callable[[Call, Any], Awaitable[Json]]
    target: Target = Target.NONE
    settle: Callable[[Call, Any, Json], Awaitable[Json]] | None = None
    prose: Callable[[Json], str] | None = None
    page: str | None = None
    items: str = ""
    unkept: frozenset[str] = frozenset()
    """Members of the result that are shown once and never stored for a retry."""

    @property
    def key(self) -> str:
        """Its name in the permission table."""
        return f"{self.tool}.{self.name}" if self.name else self.tool

    @property
    def writes(self) -> bool:
        return issubclass(self.args, WriteArgs)


@dataclass(frozen=True, slots=True)
class Tool:
    """A noun: what it is for, and what its results may hold."""

    name: str
    doc: str
    results: Sequence[type[BaseModel] | Mapping[str, Json]]
    actions: Sequence[Action]
    implied: Mapping[str, str] = field(default_factory=dict)
    """Argument whose presence names the action when ``action`` is missing."""
    destructive: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a call, the same at every door. ``code`` is set for errors."""

    data: Json
    text: str
    code: str | None = None

    @property
    def is_error(self) -> bool:
        return self.code is not None


class Registry:
    """The table. Raises KeyError for an action that the permission table does not know."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        for tool in self._tools.values():
            for action in tool.actions:
                access.require_known(action.key)
        self._listed: dict[tuple[object, ...], Sequence[ToolSchema]] = {}

    @property
    def all(self) -> Sequence[Tool]:
        return list(self._tools.values())

    # --- what there is

    def tools(self, principal: Principal, *, split: bool = False) -> Sequence[ToolSchema]:
        """The tools, actions and parameters that the principal can use. ``split``: reads and writes apart."""
        audience = (principal.kind, principal.scope.kind, principal.scope.read_only, split)
        if audience not in self._listed:
            self._listed[audience] = list(self._list(principal, split))
        return self._listed[audience]

    def _list(self, principal: Principal, split: bool) -> Iterable[ToolSchema]:
        for tool in self._tools.values():
            mine = [action for action in tool.actions if access.may_ever(principal, action.key)]
            groups = {tool.name: mine}
            if split and any(action.writes for action in mine):
                groups = {
                    tool.name: [action for action in mine if action.writes],
                    tool.name + READ_SUFFIX: [action for action in mine if not action.writes],
                }
            for name, actions in groups.items():
                if actions:
                    writes = any(action.writes for action in actions)
                    yield ToolSchema(
                        name=name,
                        description=tool.doc,
                        input=input_schema(actions, principal),
                        output=output_schema(tool.results),
                        read_only=not writes,
                        destructive=writes and tool.destructive,
                    )

    # --- doing it

    async def admits(self, call: Call, tool_name: str, raw: object) -> bool:
        """Whether the caller may do this there; False: it lacks the right, the argument or the target. What is wrong
        otherwise is left to ``call``."""
        try:
            given = arguments.as_arguments(raw)
            action = self._meant(call.principal, tool_name, given)
            args = self._arguments(call.principal, action, given)
            await locate(call.shared.services, call.principal, action.key, action.target, args)
        except RequestError as error:
            return error.code not in {"permission_denied", "not_found"}
        return True

    async def call(self, call: Call, tool_name: str, raw: object) -> Outcome:
        """Run one call to its end. Never raises but for cancellation: every failure is an Outcome."""
        started = time.monotonic()
        key = "unknown"
        try:
            given = arguments.as_arguments(raw)
            action = self._meant(call.principal, tool_name, given)
            key = action.key
            outcome = await self._run(call, action, self._arguments(call.principal, action, given))
        except RequestError as error:
            outcome = failure(error, call.request_id)
            if error.code == "permission_denied":
                call.shared.audit(call.principal, key, None, error.code, call.request_id)
        except Exception as error:  # the handler boundary: nothing a handler does ends the daemon
            log.exception("call failed", action=key, request_id=call.request_id)
            outcome = failure(error, call.request_id)
        seconds = time.monotonic() - started
        code = outcome.code or "ok"
        CALLS.labels(action=key, code=code).inc()
        CALL_SECONDS.labels(action=key).observe(seconds)
        log.info(
            "call",
            action=key,
            code=code,
            ms=round(seconds * 1000),
            principal=call.principal.id,
            request_id=call.request_id,
        )
        return outcome

    def _meant(self, principal: Principal, tool_name: str, given: dict[str, Any]) -> Action:
        """Which action is meant; takes ``action`` out of ``given``."""
        tool = self._tools.get(tool_name)
        actions = list(tool.actions) if tool is not None else []
        if tool is None and tool_name.endswith(READ_SUFFIX):
            tool = self._tools.get(tool_name.removesuffix(READ_SUFFIX))
            actions = [action for action in tool.actions if not action.writes] if tool is not None else []
        if tool is None:
            names = ", ".join(schema.name for schema in self.tools(principal))
            raise RequestError(
                "unknown_action", f"There is no tool {shown(tool_name)}.", hint=f"Tools: {names}." if names else ""
            )
        if not actions[0].name:
            return actions[0]
        names = ", ".join(a.name for a in actions if access.may_ever(principal, a.key)) or "none for this token"
        named = given.pop("action", None)
        if named is None:
            named = next((name for argument, name in tool.implied.items() if argument in given), None)
        if named is None:
            raise invalid("action", f"is needed: one of {names}")
        if not isinstance(named, str):
            raise invalid("action", f"must be a string: one of {names}")
        found = next((action for action in actions if action.name == named), None)
        if found is None:
            raise RequestError(
                "unknown_action",
                f"{tool.name} has no action {shown(named)}.",
                field="action",
                hint=f"Actions: {names}.",
            )
        return found

    def _arguments(self, principal: Principal, action: Action, given: dict[str, Any]) -> Args:
        """What the caller may say to this action, checked and converted."""
        if not access.may_ever(principal, action.key):
            access.check(principal, action.key, None)
        for old, new in _ARGUMENT_SPELLINGS.items():
            fields = action.args.model_fields
            if old in given and new not in given and old not in fields and new in fields:
                given[new] = given.pop(old)
        specs = arguments.field_specs(action.args)
        hidden = {name for name, spec in specs.items() if not usable(spec.only, principal)}
        for name in given:
            if name in hidden:
                only = specs[name].only
                raise RequestError(
                    "permission_denied",
                    f"{name} is not for this principal ({principal.scope}).",
                    field=name,
                    hint="It needs an admin token." if only == "admin" else "",
                )
        return arguments.parse(action.tool, action.name, action.args, given, hidden=hidden)

    async def _run(self, call: Call, action: Action, args: Args) -> Outcome:
        try:
            place = await locate(call.shared.services, call.principal, action.key, action.target, args)
        except RequestError as gone:
            data = await self._first_result(call, action, args, gone)
        else:
            call = replace(call, place=place)
            data = await (self._write(call, action, args) if isinstance(args, WriteArgs) else action.run(call, args))
            if action.settle is not None:
                data = {**await action.settle(call, args, data), **_deduplicated(data)}
            data = await self._sized(call, action, args, data)
        as_json = action.prose is None or call.principal.kind in {"session", "agent"}
        text = reply.compact(data) if as_json or action.prose is None else action.prose(data)
        return Outcome(data, reply.cut_text(text, args.max_chars))

    async def _first_result(self, call: Call, action: Action, args: Args, gone: RequestError) -> Json:
        """The target is not there. With a key this may be the retry of the call that took it away: it gets that call's
        result; everybody else hears ``gone``."""
        if gone.code != "not_found" or not isinstance(args, WriteArgs) or args.request_key is None:
            raise gone

        async def effect(_remember: Remember) -> Json:
            raise gone

        return await call.shared.keys.once(call.principal, action.tool, action.name, args, effect)

    async def _write(self, call: Call, action: Action, args: WriteArgs) -> Json:
        async def effect(remember: Remember | None = None) -> Json:
            done = await action.run(replace(call, remember=remember), args)
            call.shared.audit(call.principal, action.key, call.place.target, "ok", call.request_id)
            return done

        if args.request_key is None:
            return await effect()
        return await call.shared.keys.once(call.principal, action.tool, action.name, args, effect, unkept=action.unkept)

    async def _sized(self, call: Call, action: Action, args: Args, data: Json) -> Json:
        """The result within ``max_chars``: lists hold fewer items, then what is still too long is cut."""
        size = len(reply.compact(data))
        if action.page is not None:
            items = len(data.get(action.items, ()))
            while size > args.max_chars and items > 1:
                items = max(1, min(items - 1, items * args.max_chars // size))
                data = await action.run(call, args.model_copy(update={action.page: items}))
                size = len(reply.compact(data))
        return reply.fit(data, args.max_chars, whole_list=action.items)


def _deduplicated(data: Json) -> Json:
    return {"deduplicated": True} if data.get("deduplicated") else {}


def failure(error: Exception, request_id: str) -> Outcome:
    """An error as the answer to a call; it fits every output schema."""
    shape = errors.error_shape(error, request_id)
    shape = reply.fit(shape, RESULT_CHARACTERS)
    return Outcome({"error": shape}, reply.cut_text(errors.error_text(shape), RESULT_CHARACTERS), shape["code"])
