"""What the scripted model reads: a request of any of the four wires as one plain conversation. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from oubliette.core.model import Json
from oubliette.gateway.models import Wire


@dataclass(frozen=True, slots=True)
class Picture:
    """An image or document that the request carried."""

    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """The model wants a tool run."""

    id: str
    name: str
    arguments: Json


@dataclass(frozen=True, slots=True)
class Said:
    """One step of the conversation. ``results`` are the texts of tool results, in order."""

    role: Literal["user", "assistant", "tool"]
    texts: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    results: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole request. ``settings`` are the parameters that it carried (model, reasoning, limits)."""

    system: str
    said: tuple[Said, ...]
    tools: tuple[str, ...]
    settings: Json = field(default_factory=dict)
    streaming: bool = False
    characters: int = 0


def read_request(wire: Wire, body: Json, *, streaming: bool) -> Conversation:
    """The conversation in ``body``. Takes what it understands and skips the rest."""
    reader = {
        Wire.ANTHROPIC: _anthropic,
        Wire.OPENAI: _openai,
        Wire.GOOGLE: _google,
        Wire.CHAT: _chat,
    }[wire]
    system, said, tools = reader(body)
    conversation_fields = {"messages", "input", "contents", "system", "systemInstruction", "instructions", "tools"}
    return Conversation(
        system=system,
        said=tuple(_steps(said)),
        tools=tuple(name for name in tools if isinstance(name, str)),
        settings={name: value for name, value in body.items() if name not in conversation_fields},
        streaming=streaming,
        characters=_characters(body),
    )


def _steps(said: Iterable[Said]) -> Iterator[Said]:
    """Neighbours of one role, which some wires write as several messages, are one step."""
    current: Said | None = None
    for one in said:
        if current is not None and current.role == one.role and one.role != "user":
            current = replace(
                current,
                texts=current.texts + one.texts,
                calls=current.calls + one.calls,
                results=current.results + one.results,
                pictures=current.pictures + one.pictures,
            )
            continue
        if current is not None:
            yield current
        current = one
    if current is not None:
        yield current


_Read = tuple[str, list[Said], list[Any]]


def _anthropic(body: Json) -> _Read:
    said: list[Said] = []
    for message in _objects(body.get("messages")):
        parts = _parts(message.get("content"))
        if message.get("role") == "assistant":
            calls = [
                Call(str(part.get("id")), str(part.get("name")), _arguments(part.get("input")))
                for part in parts
                if part.get("type") == "tool_use"
            ]
            said.append(Said("assistant", _texts(parts, "text"), tuple(calls)))
            continue
        for part in parts:
            if part.get("type") == "tool_result":
                inner = _parts(part.get("content"))
                result = "\n".join(_texts(inner, "text"))
                said.append(Said("tool", results=(result,), pictures=_anthropic_pictures(inner)))
        if any(part.get("type") != "tool_result" for part in parts):
            said.append(Said("user", _texts(parts, "text"), pictures=_anthropic_pictures(parts)))
    system = "\n".join(_texts(_parts(body.get("system")), "text"))
    return system, said, [tool.get("name") for tool in _objects(body.get("tools"))]


def _anthropic_pictures(parts: list[Json]) -> tuple[Picture, ...]:
    sources = [part.get("source") for part in parts if part.get("type") in {"image", "document"}]
    return tuple(
        _picture(str(source.get("media_type")), source.get("data"))
        for source in sources
        if isinstance(source, dict) and source.get("type") == "base64"
    )


def _openai(body: Json) -> _Read:
    said: list[Said] = []
    system = [str(body["instructions"])] if body.get("instructions") else []
    items = body.get("input")
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else _objects(items):
        match item.get("type", "message"):
            case "message" if item.get("role") in {"system", "developer"}:
                system.extend(_texts(_parts(item.get("content")), "text", "input_text"))
            case "message":
                parts = _parts(item.get("content"))
                texts = _texts(parts, "text", "input_text", "output_text")
                said.append(Said(_role(item), texts, pictures=_openai_pictures(parts)))
            case "reasoning":
                said.append(Said("assistant"))
            case "function_call":
                call = Call(str(item.get("call_id")), str(item.get("name")), _arguments(item.get("arguments")))
                said.append(Said("assistant", calls=(call,)))
            case "function_call_output":
                parts = _parts(item.get("output"))
                result = "\n".join(_texts(parts, "text", "input_text", "output_text"))
                said.append(Said("tool", results=(result,), pictures=_openai_pictures(parts)))
    return "\n".join(system), said, [tool.get("name") for tool in _objects(body.get("tools"))]


def _openai_pictures(parts: list[Json]) -> tuple[Picture, ...]:
    urls = [part.get("image_url") or part.get("file_data") for part in parts]
    return tuple(_from_data_url(url) for url in urls if isinstance(url, str) and url.startswith("data:"))


def _chat(body: Json) -> _Read:
    said: list[Said] = []
    system: list[str] = []
    for message in _objects(body.get("messages")):
        parts = _parts(message.get("content"))
        texts = _texts(parts, "text")
        if message.get("role") in {"system", "developer"}:
            system.extend(texts)
        elif message.get("role") == "tool":
            said.append(Said("tool", results=("\n".join(texts),), pictures=_chat_pictures(parts)))
        else:
            functions = [(call.get("id"), call.get("function")) for call in _objects(message.get("tool_calls"))]
            calls = [
                Call(str(call_id), str(function.get("name")), _arguments(function.get("arguments")))
                for call_id, function in functions
                if isinstance(function, dict)
            ]
            said.append(Said(_role(message), texts, tuple(calls), pictures=_chat_pictures(parts)))
    functions_offered = [tool.get("function") for tool in _objects(body.get("tools"))]
    return "\n".join(system), said, [offer.get("name") for offer in functions_offered if isinstance(offer, dict)]


def _chat_pictures(parts: list[Json]) -> tuple[Picture, ...]:
    holders = [part.get("image_url") or part.get("file") for part in parts]
    urls = [holder.get("url") or holder.get("file_data") for holder in holders if isinstance(holder, dict)]
    return tuple(_from_data_url(url) for url in urls if isinstance(url, str) and url.startswith("data:"))


def _google(body: Json) -> _Read:
    said: list[Said] = []
    for content in _objects(body.get("contents")):
        parts = _objects(content.get("parts"))
        texts = tuple(str(part["text"]) for part in parts if "text" in part and not part.get("thought"))
        if content.get("role") == "model":
            calls = [
                Call(str(call.get("id", "")), str(call.get("name")), _arguments(call.get("args")))
                for call in (part.get("functionCall") for part in parts)
                if isinstance(call, dict)
            ]
            said.append(Said("assistant", texts, tuple(calls)))
            continue
        pictures = tuple(
            _picture(str(inline.get("mimeType") or inline.get("mime_type")), inline.get("data"))
            for inline in (part.get("inlineData") for part in parts)
            if isinstance(inline, dict)
        )
        responses = [part["functionResponse"] for part in parts if isinstance(part.get("functionResponse"), dict)]
        if responses:
            results = tuple(_google_result(response.get("response")) for response in responses)
            said.append(Said("tool", results=results, pictures=() if texts else pictures))
        if texts or not responses:
            said.append(Said("user", texts, pictures=pictures))
    system = "\n".join(
        str(part["text"])
        for part in _objects((body.get("systemInstruction") or {}).get("parts"))
        if isinstance(part.get("text"), str)
    )
    names = [
        offer.get("name")
        for tool in _objects(body.get("tools"))
        for offer in _objects(tool.get("functionDeclarations"))
    ]
    return system, said, names


def _google_result(response: Any) -> str:
    if isinstance(response, dict):
        for name in ("content", "output", "result"):
            if isinstance(response.get(name), str):
                return str(response[name])
    return json.dumps(response, ensure_ascii=False)


def _role(message: Json) -> Literal["user", "assistant"]:
    return "assistant" if message.get("role") == "assistant" else "user"


def _objects(value: Any) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _parts(content: Any) -> list[Json]:
    """Content is a text or a list of parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else _objects(content)


def _texts(parts: list[Json], *kinds: str) -> tuple[str, ...]:
    return tuple(str(part.get("text", "")) for part in parts if part.get("type") in kinds)


def _arguments(value: Any) -> Json:
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except ValueError:
            return {"": value}
    return value if isinstance(value, dict) else {}


def _from_data_url(url: str) -> Picture:
    head, _, data = url.partition(",")
    return _picture(head.removeprefix("data:").partition(";")[0], data)


def _picture(media_type: str, data: Any) -> Picture:
    try:
        return Picture(media_type, base64.b64decode(data if isinstance(data, str) else "", validate=False))
    except (binascii.Error, ValueError):
        return Picture(media_type, b"")


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 1
