"""Requests of OpenAI's Responses API."""

from __future__ import annotations

from typing import Any

from oubliette.core.model import Json
from oubliette.gateway.models import ResolvedModel
from oubliette.gateway.rebuild import (
    Rebuilt,
    bounded,
    each,
    is_data_url,
    kind_of,
    known_fields,
    note,
    refuse_stored,
    settle_tools,
    with_parts,
    words,
)

_FIELDS = words(
    "model input instructions max_output_tokens temperature top_p top_logprobs stream stream_options tools tool_choice"
    " parallel_tool_calls max_tool_calls reasoning text include truncation prompt_cache_key"
    " prompt_cache_retention store"
)
_TOOLS = frozenset({"function", "custom"})
_ITEMS = words("message function_call function_call_output custom_tool_call custom_tool_call_output reasoning")
_PARTS = words("input_text output_text input_image input_file refusal summary_text reasoning_text")
_INCLUDES = frozenset({"reasoning.encrypted_content", "message.output_text.logprobs"})


def rebuild(body: Json, model: ResolvedModel) -> Rebuilt:
    """Nothing is stored at the provider; ``max_output_tokens`` is bounded where a bound is known."""
    refuse_stored(body, "previous_response_id", "conversation", "background", "prompt")
    removed: list[str] = []
    hosted = model.hosted_tools
    out = known_fields(body, _FIELDS, removed)
    out["model"] = model.model
    out["store"] = False
    out["stream"] = body.get("stream") is True
    if "max_output_tokens" in body or model.known or model.output_cap:
        out["max_output_tokens"] = bounded(body.get("max_output_tokens"), model.max_output_tokens)
    out["input"] = each(body.get("input"), lambda item: _item(item, removed, hosted=hosted))
    if "include" in out and not hosted:
        asked = out["include"] if isinstance(out["include"], list) else []
        out["include"] = [name for name in asked if isinstance(name, str) and name in _INCLUDES]
    if "tools" in out:
        settle_tools(
            out,
            lambda tool: tool if hosted or kind_of(tool) in _TOOLS else None,
            lambda choice, kept: hosted or _choice_stays(choice, kept),
            removed,
        )
    return Rebuilt(out, out["stream"], removed)


def _choice_stays(choice: Any, tools: list[Json]) -> bool:
    """``auto``, ``none``, ``required``, or one of the tools that are left."""
    if not isinstance(choice, dict):
        return True
    if kind_of(choice) == "allowed_tools":
        return False
    return any(tool.get("name") == choice.get("name") and tool.get("type") == choice.get("type") for tool in tools)


def _item(item: Json, removed: list[str], *, hosted: bool) -> Json | None:
    """An item of the input. A reference to a stored item has nothing behind it here and is dropped."""
    kind = kind_of(item, "message")
    if kind == "item_reference":
        removed.append("item_reference")
        return None
    if hosted:
        return item
    if kind not in _ITEMS:
        removed.append(f"item {kind}"[:80])
        return {"role": "user", "content": [{"type": "input_text", "text": note(f"a {str(kind)[:40]} item")}]}
    role = item.get("role")
    item = with_parts(item, "content", lambda part: _part(part, role, removed))
    return with_parts(item, "output", lambda part: _part(part, role, removed))


def _part(part: Json, role: Any, removed: list[str]) -> Json:
    kind = kind_of(part)
    by_address = (kind == "input_image" and not is_data_url(part.get("image_url"))) or (
        kind == "input_file" and not part.get("file_data")
    )
    stored = "file_id" in part or "file_url" in part
    if kind in _PARTS and not by_address and not stored:
        return part
    removed.append(f"part {kind}"[:80])
    text = note("a part that was not sent along" if kind in _PARTS else f"a {str(kind)[:40]} part")
    return {"type": "output_text" if role == "assistant" else "input_text", "text": text}
