"""Requests of Google's generateContent and streamGenerateContent."""

from __future__ import annotations

from typing import Any

from oubliette.core.model import Json
from oubliette.gateway.models import ResolvedModel
from oubliette.gateway.rebuild import (
    Rebuilt,
    bounded,
    each,
    kept_tools,
    known_fields,
    note,
    refuse_stored,
    with_parts,
    words,
)

_NAMES = {
    "system_instruction": "systemInstruction",
    "tool_config": "toolConfig",
    "generation_config": "generationConfig",
    "safety_settings": "safetySettings",
    "cached_content": "cachedContent",
    "inline_data": "inlineData",
    "file_data": "fileData",
    "function_call": "functionCall",
    "function_response": "functionResponse",
    "thought_signature": "thoughtSignature",
    "function_declarations": "functionDeclarations",
    "max_output_tokens": "maxOutputTokens",
}
"""The same fields in protobuf's spelling, which the API takes as well; one spelling leaves no way around a rule."""
_FIELDS = words("contents systemInstruction tools toolConfig generationConfig safetySettings")
_GENERATION = words(
    "temperature topP topK maxOutputTokens stopSequences seed presencePenalty frequencyPenalty responseMimeType"
    " responseSchema responseJsonSchema responseLogprobs logprobs thinkingConfig mediaResolution"
)
_PARTS = words("text inlineData functionCall functionResponse thought thoughtSignature videoMetadata")


def rebuild(body: Json, model: ResolvedModel, *, streaming: bool) -> Rebuilt:
    """The model's name stands in the path, not here; ``maxOutputTokens`` is bounded."""
    body = _one_spelling(body)
    refuse_stored(body, "cachedContent")
    removed: list[str] = []
    hosted = model.hosted_tools
    out = known_fields({name: value for name, value in body.items() if name != "model"}, _FIELDS, removed)
    generation = _one_spelling(body.get("generationConfig"))
    generation = known_fields(generation, _GENERATION, removed)
    if "maxOutputTokens" in generation or model.known or model.output_cap:
        generation["maxOutputTokens"] = bounded(generation.get("maxOutputTokens"), model.max_output_tokens)
    out["generationConfig"] = generation
    out["contents"] = each(_listed(body.get("contents")), lambda content: _content(content, removed, hosted=hosted))
    if isinstance(body.get("systemInstruction"), dict):
        out["systemInstruction"] = _content(body["systemInstruction"], removed, hosted=hosted)
    if "tools" in out:
        out["tools"] = kept_tools(body["tools"], lambda tool: tool if hosted else _tool(tool), removed)
        if not out["tools"]:
            del out["tools"]
            out.pop("toolConfig", None)
    return Rebuilt(out, streaming, removed)


def _one_spelling(value: Any) -> Json:
    if not isinstance(value, dict):
        return {}
    return {_NAMES.get(str(name), str(name)): inner for name, inner in value.items()}


def _listed(value: Any) -> Any:
    """The API takes one object where a list is meant; as a list there is one way to look at it."""
    return [value] if isinstance(value, dict) else value


def _parts(value: Json, removed: list[str]) -> Json:
    if "parts" in value:
        value = value | {"parts": _listed(value["parts"])}
    return with_parts(value, "parts", lambda part: _part(_one_spelling(part), removed))


def _tool(tool: Json) -> Json | None:
    """One entry may hold several kinds of tools: only function declarations are run by the agent."""
    declarations = _one_spelling(tool).get("functionDeclarations")
    return {"functionDeclarations": declarations} if declarations else None


def _content(content: Json, removed: list[str], *, hosted: bool) -> Json:
    if hosted:
        return content
    return _parts(content, removed)


def _part(part: Json, removed: list[str]) -> Json:
    strange = sorted(set(part) - _PARTS)
    if strange:
        removed.append(f"part {strange[0]}"[:80])
        what = "a file that was not sent along" if "fileData" in strange else f"a {strange[0][:40]} part"
        return {"text": note(what)}
    response = part.get("functionResponse")
    if isinstance(response, dict):
        return part | {"functionResponse": _parts(response, removed)}
    return part
