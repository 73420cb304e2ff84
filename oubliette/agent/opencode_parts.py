"""OpenCode's parts, asks and errors as the bodies of our events (SHAPES). Pure.

What arrives here was written inside the container: nothing about its form is taken for granted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oubliette.core.model import Json

MAX_OUTPUT_BYTES = 1 << 20
"""Of a tool's output; head and tail are kept. OpenCode itself cuts at 50 KB, MCP servers do not."""
MAX_ASK_CHARACTERS = 4_000
MAX_PATTERNS = 50
MAX_QUESTIONS = 20
MAX_OPTIONS = 50
MAX_NUMBER = 10**15
STAMP = "_session"
"""What plugin.js adds to the arguments of our own tools; nobody needs to see it."""
INTERRUPTED = "The tool was interrupted: the agent ended before it answered."


def text_at(value: Any, *keys: str) -> str:
    """The string under that path of keys, or an empty one."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""


def object_at(value: Any, *keys: str) -> Json:
    """The object under that path of keys, or an empty one."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


def list_at(value: Any, key: str) -> list[Any]:
    """The list under that key, or an empty one."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, list) else []


def number_at(value: Any, *keys: str) -> float | None:
    """The number under that path of keys, if it is one that a time or a status may be."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -MAX_NUMBER < value < MAX_NUMBER else None


def tool_identity(part: Mapping[str, Any]) -> Json:
    """``id`` and ``name``. A call of a tool that does not exist is stored by OpenCode as one of ``invalid``."""
    name = text_at(part, "tool")
    if name == "invalid":
        name = text_at(part, "state", "input", "tool") or name
    return {"id": text_at(part, "callID") or text_at(part, "id"), "name": name}


def tool_call_body(part: Mapping[str, Any]) -> Json:
    """SHAPES' ``tool_call``."""
    given = object_at(part, "state", "input")
    given.pop(STAMP, None)
    return {"part": text_at(part, "id"), "tool": {**tool_identity(part), "input": given}}


def tool_result_body(part: Mapping[str, Any]) -> Json:
    """SHAPES' ``tool_result``, whatever the state: a call that never ended counts as interrupted."""
    state = object_at(part, "state")
    status = text_at(state, "status")
    tool = tool_identity(part)
    title = text_at(state, "title")
    if title:
        tool["title"] = title[:200]
    if status == "completed":
        refused = text_at(part, "tool") == "invalid"  # OpenCode counts it as done: it told the model that it cannot be
        tool |= {"status": "error" if refused else "completed", **capped("output", text_at(state, "output"))}
    else:
        shown = text_at(state, "error") if status == "error" else INTERRUPTED
        tool |= {"status": "error", **capped("output", shown)}
    start, end = number_at(state, "time", "start"), number_at(state, "time", "end")
    if start is not None and end is not None and end >= start:
        tool["duration_ms"] = int(end - start)
    return {"part": text_at(part, "id"), "tool": tool}


def capped(name: str, text: str, limit: int = MAX_OUTPUT_BYTES) -> Json:
    """``{name: text}``; of a longer one head and tail, with ``_truncated`` and ``_bytes``."""
    size = len(text) if text.isascii() else len(text.encode(errors="replace"))
    if size <= limit:
        return {name: text}
    raw = text.encode(errors="replace")
    half = limit // 2
    head, tail = raw[:half].decode(errors="ignore"), raw[-half:].decode(errors="ignore")
    return {name: f"{head}\n…\n{tail}", f"{name}_truncated": True, f"{name}_bytes": size}


def todo_body(part: Mapping[str, Any]) -> Json | None:
    """SHAPES' ``todo`` out of a finished ``todowrite``; None when it holds none."""
    items = list_at(object_at(part, "state", "metadata"), "todos") or list_at(
        object_at(part, "state", "input"), "todos"
    )
    found = [
        {"id": text_at(item, "id") or str(number), "text": text_at(item, "content"), "status": text_at(item, "status")}
        for number, item in enumerate(items, 1)
        if isinstance(item, Mapping)
    ]
    return {"data": {"items": found}} if items else None


def permission_body(asked: Mapping[str, Any]) -> Json:
    """SHAPES' ``permission``."""
    patterns = [one[:MAX_ASK_CHARACTERS] for one in list_at(asked, "patterns") if isinstance(one, str)][:MAX_PATTERNS]
    metadata = object_at(asked, "metadata")
    told = text_at(metadata, "command") or text_at(metadata, "url") or text_at(metadata, "filepath")
    diff = text_at(metadata, "diff")
    shown = "\n".join(part for part in (told, diff) if part) or ", ".join(patterns)
    body: Json = {
        "action": text_at(asked, "permission"),
        "patterns": patterns,
        "text": shown[:MAX_ASK_CHARACTERS],
        "options": ["once", "always", "reject"],
    }
    tool_id = text_at(asked, "tool", "callID")
    if tool_id:
        body["tool_id"] = tool_id
    return body


def questions_body(asked: Mapping[str, Any]) -> list[Json]:
    """SHAPES' ``questions``: ids ``q1``, ``q2``…, options ``o1``, ``o2``… in the agent's own order."""
    found: list[Json] = []
    for number, question in enumerate(list_at(asked, "questions")[:MAX_QUESTIONS], 1):
        options = [
            {"id": f"o{place}", "label": text_at(option, "label"), "description": text_at(option, "description")}
            for place, option in enumerate(list_at(question, "options")[:MAX_OPTIONS], 1)
        ]
        found.append(
            {
                "id": f"q{number}",
                "text": (text_at(question, "question") or text_at(question, "header"))[:MAX_ASK_CHARACTERS],
                "options": options,
                "multiple": bool(object_at(question).get("multiple")),
                "free_text": object_at(question).get("custom") is not False,
            }
        )
    return found


def answers_of(asked: Mapping[str, Any], answers: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """What OpenCode wants: for each question in order the labels of what was chosen, or the free text."""
    given: list[list[str]] = []
    for question in questions_body(asked):
        labels = {option["id"]: option["label"] for option in question["options"]}
        given.append([labels.get(choice, choice) for choice in answers.get(question["id"], ())])
    return given


ABORTED = "MessageAbortedError"
_MODEL_ERRORS = frozenset({"APIError", "ProviderAuthError", "ContextOverflowError", "MessageOutputLengthError"})


def error_body(error: Mapping[str, Any]) -> Json:
    """SHAPES' error object for an error of OpenCode's: ``model_error`` with the provider's status in the message when
    the model's side refused, else ``agent_error``. Stack traces are left out."""
    name = text_at(error, "name") or "UnknownError"
    message = text_at(error, "data", "message").partition("\n    at ")[0].strip()[:MAX_ASK_CHARACTERS]
    status = number_at(error, "data", "statusCode")
    if name in _MODEL_ERRORS:
        prefix = f"The model provider answered {status:.0f}: " if status is not None else ""
        retryable = bool(object_at(error, "data").get("isRetryable"))
        return {"code": "model_error", "message": prefix + (message or name), "retryable": retryable}
    return {"code": "agent_error", "message": message or name, "retryable": False}
