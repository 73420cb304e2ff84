"""Requests of Anthropic's Messages API."""

from __future__ import annotations

from typing import Any

from oubliette.core.model import Json
from oubliette.gateway.models import ResolvedModel
from oubliette.gateway.rebuild import Rebuilt, bounded, each, kept_tools, kind_of, known_fields, note, with_parts, words

_FIELDS = words(
    "model messages system max_tokens temperature top_p top_k stop_sequences stream tools tool_choice thinking"
    " output_config output_format cache_control"
)
_HOSTED_FIELDS = ("container", "mcp_servers")
_TOOL_FIELDS = words("name description input_schema cache_control type strict eager_input_streaming input_examples")
_BLOCKS = words("text image document tool_use tool_result thinking redacted_thinking search_result")
_SENT_ALONG = frozenset({"base64", "text", "content"})
"""Sources that carry their content; ``url`` would be fetched and ``file`` is stored at the provider."""
_LEAST_THINKING = 1_024


def rebuild(body: Json, model: ResolvedModel) -> Rebuilt:
    """``max_tokens`` is bounded, a thinking budget fitted below it."""
    removed: list[str] = []
    hosted = model.hosted_tools
    out = known_fields(body, (*_FIELDS, *(_HOSTED_FIELDS if hosted else ())), removed)
    out["model"] = model.model
    out["max_tokens"] = bounded(body.get("max_tokens"), model.max_output_tokens)
    out["stream"] = body.get("stream") is True

    def block(value: Json) -> Json | None:
        return value if hosted else _block(value, removed)

    out["system"] = each(body.get("system"), block)
    if not out["system"]:
        del out["system"]
    out["messages"] = each(body.get("messages"), lambda message: with_parts(message, "content", block))
    if "tools" in out:
        out["tools"] = kept_tools(body["tools"], lambda tool: tool if hosted else _tool(tool), removed)
        names = {tool.get("name") for tool in out["tools"]}
        choice = out.get("tool_choice")
        forced = choice.get("name") if isinstance(choice, dict) else None
        if not out["tools"] or (forced is not None and forced not in names):
            out.pop("tool_choice", None)
        if not out["tools"]:
            del out["tools"]
    _fit_thinking(out)
    return Rebuilt(out, out["stream"], removed)


def _tool(tool: Json) -> Json | None:
    """Tools without a type or of type custom are run by the agent; every other type is Anthropic's own."""
    if kind_of(tool, "custom") != "custom":
        return None
    return {name: value for name, value in tool.items() if name in _TOOL_FIELDS}


def _block(block: Json, removed: list[str]) -> Json | None:
    kind = kind_of(block)
    if kind not in _BLOCKS:
        removed.append(f"block {kind}"[:80])
        return {"type": "text", "text": note(f"a {str(kind)[:40]} block")}
    if kind in {"image", "document"}:
        source = block.get("source")
        how = kind_of(source) if isinstance(source, dict) else None
        if how not in _SENT_ALONG:
            removed.append(f"{kind} by {how}"[:80])
            return {"type": "text", "text": note(f"a {kind} that was not sent along")}
        if how == "content" and isinstance(source, dict):
            return block | {"source": with_parts(source, "content", lambda inner: _block(inner, removed))}
    return with_parts(block, "content", lambda inner: _block(inner, removed))


def _fit_thinking(out: Json) -> None:
    thinking: Any = out.get("thinking")
    if not isinstance(thinking, dict) or "budget_tokens" not in thinking:
        return
    if out["max_tokens"] <= _LEAST_THINKING:
        del out["thinking"]
    else:
        out["thinking"] = thinking | {"budget_tokens": bounded(thinking["budget_tokens"], out["max_tokens"] - 1)}
