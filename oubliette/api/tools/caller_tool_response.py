"""The ``caller_tool_response`` tool: what a client's own tool has to say to the agent that called it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

from oubliette.api.tools import prose
from oubliette.api.tools.fields import Doc, Id, WriteArgs, check_json, invalid
from oubliette.api.tools.gate import Target
from oubliette.api.tools.registry import Action, Call, Tool
from oubliette.core.caller_results import CallerResult, failure_of, result_of
from oubliette.core.limits import MAX_BODY_BYTES
from oubliette.core.model import Json
from oubliette.core.shapes import Resolution


def _sendable(value: Any, info: ValidationInfo) -> Any:
    check_json(value, info.field_name or "result", MAX_BODY_BYTES)
    return value


class Respond(WriteArgs):
    session_id: Annotated[Id, Doc("whose agent called")]
    request_id: Annotated[Id, Doc("from pending or the caller_tool_request event")]
    result: Annotated[
        Annotated[str | list[dict[str, Any]] | dict[str, Any], AfterValidator(_sendable)] | None,
        Doc("text, an object, or a list of MCP content (text, image, resource)"),
    ] = None
    error: Annotated[Annotated[str, AfterValidator(_sendable)] | None, Doc("instead: why it failed")] = None


def _said(args: Respond) -> CallerResult:
    if (args.result is None) == (args.error is None):
        both = "and error exclude each other" if args.error is not None else "or error is needed"
        raise invalid("result", both)
    return result_of(args.result) if args.result is not None else failure_of(args.error or "")


async def respond(call: Call, args: Respond) -> Json:
    callers = call.shared.services.tree.callers
    return await callers.respond(call.principal, args.session_id, args.request_id, _said(args))


TOOL = Tool(
    name="caller_tool_response",
    doc=(
        "Answers a call of a tool that you declared with caller_tools: result or error, once, before it expires. "
        "The agent waits for it."
    ),
    results=[Resolution, {"session_id": {"type": "string"}}],
    actions=[Action("caller_tool_response", "", Respond, respond, Target.SESSION, prose=prose.answered)],
)
