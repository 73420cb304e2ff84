"""``session update``: another title, model or way of working; other limits of the tree; queued messages dropped."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from oubliette.api.tools.fields import Doc, Id, JsonObject, Line, WriteArgs
from oubliette.api.tools.prose import fact, lines, status_words, untrusted
from oubliette.api.tools.registry import Call
from oubliette.core.model import Autonomy, Json, Reasoning
from oubliette.errors import RequestError
from oubliette.session.update import UpdateArgs


class Update(WriteArgs):
    session_id: Annotated[Id, Doc("which session")]
    title: Annotated[Line | None, Doc("default: the message's first words")] = None
    model: Annotated[Line | None, Doc("alias, see project options")] = None
    autonomy_level: Annotated[Autonomy | None, Doc("off asks nothing, low asks most")] = None
    reasoning_level: Annotated[Reasoning | None, Doc("how long the model thinks")] = None
    timeout_minutes: Annotated[float | None, Field(gt=0, le=10080), Doc("of the turn")] = None
    max_cost_usd: Annotated[float | None, Field(gt=0, le=100_000), Doc("budget of its whole tree")] = None
    limits: Annotated[JsonObject | None, Doc("of its tree, e.g. {max_tokens_per_session: 1000000}")] = None
    drop_queued: Annotated[bool, Doc("forget messages that wait")] = False


async def update(call: Call, args: Update) -> Json:
    limits: dict[str, Any] = dict(args.limits or {})
    if args.max_cost_usd is not None:
        if "max_cost_usd" in limits:
            raise RequestError("invalid_argument", "max_cost_usd is given twice.", field="max_cost_usd")
        limits["max_cost_usd"] = args.max_cost_usd
    return await call.shared.services.tree.update(
        call.principal,
        UpdateArgs(
            session_id=args.session_id,
            title=args.title,
            model=args.model,
            autonomy=args.autonomy_level,
            reasoning=args.reasoning_level,
            timeout_minutes=args.timeout_minutes,
            limits=limits or None,
            drop_queued=args.drop_queued,
        ),
    )


def words(result: Json) -> str:
    """The result as a person reads it; the title, which anybody may have written, last."""
    return lines(
        f"Session: {result['session_id']}",
        f"Status: {status_words(result)}",
        fact("Model", f"{result['model']}, autonomy {result['autonomy']}, reasoning {result['reasoning']}"),
        fact("Limits", ", ".join(f"{name} {value:g}" for name, value in sorted(result["limits"].items()))),
        fact("Dropped", result.get("dropped")),
        untrusted(fact("Title", result["title"])),
    )
