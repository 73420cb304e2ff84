"""Requests of the chat completions API, as many providers speak it."""

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
    settle_tools,
    with_parts,
    words,
)

_FIELDS = words(
    "model messages tools tool_choice parallel_tool_calls stream temperature top_p top_k min_p max_tokens"
    " max_completion_tokens stop seed frequency_penalty presence_penalty repetition_penalty logit_bias logprobs"
    " top_logprobs response_format reasoning_effort reasoning verbosity thinking enable_thinking thinking_budget"
    " preserve_thinking chat_template_kwargs chat_template_args prompt_cache_key reasoning_split tool_stream"
)
"""OpenAI's own and what servers of open models add. Not: other models to fall back to, plugins, stores, tiers."""
_PARTS = words("text image_url input_audio file refusal thinking reasoning video_url")


def rebuild(body: Json, model: ResolvedModel) -> Rebuilt:
    """Usage is asked for; the field that bounds the answer is bounded, and added where the config has a bound."""
    removed: list[str] = []
    hosted = model.hosted_tools
    out = known_fields(body, (*_FIELDS, "stream_options", *(("web_search_options",) if hosted else ())), removed)
    out["model"] = model.model
    out["stream"] = body.get("stream") is True
    out.pop("stream_options", None)
    if out["stream"]:
        out["stream_options"] = {"include_usage": True}
    limits = [name for name in ("max_completion_tokens", "max_tokens") if name in body]
    for name in limits or (["max_tokens"] if model.output_cap else []):
        out[name] = bounded(body.get(name), model.max_output_tokens)
    if not hosted:
        out["messages"] = each(
            body.get("messages"), lambda message: with_parts(message, "content", lambda part: _part(part, removed))
        )
    if "tools" in out:
        settle_tools(out, lambda tool: tool if hosted or kind_of(tool) == "function" else None, _choice_stays, removed)
    return Rebuilt(out, out["stream"], removed)


def _choice_stays(choice: Any, tools: list[Json]) -> bool:
    if not isinstance(choice, dict):
        return True
    wanted = choice.get("function")
    names = {tool["function"].get("name") for tool in tools if isinstance(tool.get("function"), dict)}
    return isinstance(wanted, dict) and wanted.get("name") in names


def _part(part: Json, removed: list[str]) -> Json:
    kind = kind_of(part)
    if kind in {"image_url", "video_url"}:
        source = part.get(kind)
        address = source.get("url") if isinstance(source, dict) else source
        fine = is_data_url(address)
    elif kind == "file":
        file = part.get("file")
        fine = isinstance(file, dict) and "file_id" not in file and is_data_url(file.get("file_data"))
    else:
        fine = kind in _PARTS
    if fine:
        return part
    removed.append(f"part {kind}"[:80])
    text = note("a part that was not sent along" if kind in _PARTS else f"a {str(kind)[:40]} part")
    return {"type": "text", "text": text}
