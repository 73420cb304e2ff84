"""The built-in model: it does what the newest user message's directives say. docs/scripted-model.md describes them.

Stateless: which step of the script comes next is how many times the assistant has spoken since the message with the
script. The one thing remembered is how often a step has failed on purpose, for ``@fail 429 x1``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from oubliette.core.model import Json, ModelUsage
from oubliette.errors import RequestError
from oubliette.gateway.rebuild import words
from oubliette.gateway.scripted_request import Conversation, Said

MAX_STEPS = 1_000
MAX_QUOTE = 20_000
REMEMBERED_STEPS = 1_000

DIRECTIVES = words(
    "say reason tool tools tools? stream delay usage fail cut repeat echo-last-tool quote recall images system settings"
)
_LINE = re.compile(r"^[ \t]*@([a-z][a-z-]*\??)(?:[ \t]+(.*?))?[ \t]*$")

AGENT_NOTES = (
    "<system-reminder>",
    "Attached media from tool result:",
    "Continue if you have next steps",
    "The following tool was executed by the user",
)
"""How user messages begin that the agent writes by itself in the middle of a turn."""


@dataclass(frozen=True, slots=True)
class Text:
    """Visible text, sent in ``pieces`` with a pause after each."""

    text: str
    pieces: int = 1
    pause_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Thought:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: Json


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Fail:
    """The request fails with this HTTP status."""

    status: int
    message: str
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """The stream ends without its end."""

    times: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    usage: ModelUsage


Action = Text | Thought | ToolCall | Pause | Fail | Cut | Tokens


@dataclass(slots=True)
class Answer:
    """One assistant step. ``failure`` set: nothing else counts."""

    actions: list[Action] = field(default_factory=list)
    usage: ModelUsage = field(default_factory=ModelUsage)
    failure: Fail | None = None

    @property
    def calls(self) -> bool:
        return any(isinstance(action, ToolCall) for action in self.actions)


class Scripted:
    """Answers conversations. One object serves everybody."""

    def __init__(self) -> None:
        self._failed: OrderedDict[bytes, int] = OrderedDict()

    def answer(self, conversation: Conversation, session: str = "") -> Answer:
        """What the model says next. ``session`` keeps apart the failures of equal scripts."""
        answer = Answer(self._actions(conversation, session))
        failure = next((action for action in answer.actions if isinstance(action, Fail)), None)
        answer.failure = failure
        answer.usage = _usage(conversation, answer.actions)
        return answer

    def _actions(self, conversation: Conversation, session: str) -> list[Action]:
        if (housekeeping := _housekeeping(conversation)) is not None:
            return [Text(housekeeping)]
        index = _script_message(conversation.said)
        if index is None:
            first = _first_line(conversation.said)
            return [Text(f"I am the scripted model: I follow directives such as @say and @tool. You wrote: {first}")]
        try:
            steps = _steps(conversation, conversation.said[index])
        except RequestError as error:
            return [Text(f"The script cannot be followed: {error.message}")]
        done = sum(one.role == "assistant" for one in conversation.said[index + 1 :])
        if done >= len(steps):
            return [Text("The script is finished.")]
        key = hashlib.sha256(repr((session, index, conversation.said[index].texts, done)).encode()).digest()
        return list(self._still_failing(steps[done], key))

    def _still_failing(self, actions: list[Action], key: bytes) -> Iterator[Action]:
        """The actions, without the failures that have happened often enough."""
        for place, action in enumerate(actions):
            if isinstance(action, Fail | Cut) and action.times is not None:
                name = key + bytes([place % 256])
                times = self._failed.pop(name, 0)
                self._failed[name] = times + 1
                if len(self._failed) > REMEMBERED_STEPS:
                    self._failed.popitem(last=False)
                if times >= action.times:
                    continue
            yield action
            if isinstance(action, Fail | Cut):
                return


def _housekeeping(conversation: Conversation) -> str | None:
    """Answers to what the agent asks for itself."""
    system = conversation.system[:400].lower()
    if "title generator" in system:
        return f"Scripted: {_first_line(conversation.said)}"[:50]
    if "summarization" in system or "summarize what was done" in system:
        spoken = len(conversation.said)
        return f"## Goal\n- Follow the script of the newest message.\n\n## Done\n- {spoken} messages so far."
    return None


def _is_prompt(said: Said) -> bool:
    text = next((text for text in said.texts if text.strip()), "")
    return said.role == "user" and bool(text) and not text.lstrip().startswith(AGENT_NOTES)


def _script_message(said: tuple[Said, ...]) -> int | None:
    """The newest prompt, when it has directives. A note of the agent in mid-turn is no prompt."""
    for index in range(len(said) - 1, -1, -1):
        if _is_prompt(said[index]):
            return index if any(_directives(text) for text in said[index].texts) else None
    return None


def _first_line(said: tuple[Said, ...]) -> str:
    prompts = [one for one in said if _is_prompt(one)]
    lines = [line.strip() for text in (prompts[-1].texts if prompts else ()) for line in text.splitlines()]
    return next((line for line in lines if line and not line.startswith("@")), next(iter(filter(None, lines)), ""))[
        :200
    ]


def _directives(text: str) -> list[tuple[str, str]]:
    """``(name, argument)`` of each directive line; other lines are for people."""
    found = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, argument = match[1], match[2] or ""
        if name in DIRECTIVES:
            found.append((name, argument))
        elif close := difflib.get_close_matches(name, DIRECTIVES, 1, 0.8):
            found.append(("?", f"there is no @{name}; did you mean @{close[0]}?"))
    return found if any(name != "?" for name, _ in found) else []


def _script(said: Said) -> list[tuple[str, str]]:
    """The directives of the message's last text that has any: a prompt whose turn failed may stand before it, because
    some wires join neighbouring messages of the user."""
    return next(filter(None, map(_directives, reversed(said.texts))), [])


def _repeated(directives: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """``@repeat n`` does the next directive n times, with ``%i%`` counting from 1."""
    times = 1
    for name, argument in directives:
        if name == "repeat":
            times = min(MAX_STEPS, int(_number(name, argument.split(" ")[0])))
            continue
        for number in range(1, times + 1):
            yield name, argument.replace("%i%", str(number)) if times > 1 else argument
        times = 1


def _steps(conversation: Conversation, script: Said) -> list[list[Action]]:
    """The script as assistant steps: each ends with its tool calls, the last one with text."""
    steps: list[list[Action]] = [[]]
    pieces, pause = 1, 0.0
    for name, argument in _repeated(_script(script)):
        step = steps[-1]
        match name:
            case "?":
                raise RequestError("invalid_argument", argument)
            case "say":
                step.append(Text(argument.replace("\\n", "\n"), pieces, pause))
            case "reason":
                step.append(Thought(argument.replace("\\n", "\n")))
            case "tool":
                tool, _, arguments = argument.partition(" ")
                step.append(ToolCall(tool, _object(name, arguments)))
                steps.append([])
            case "tools":
                step.extend(_calls(argument))
                steps.append([])
            case "stream":
                count, milliseconds, *_ = [*argument.split(), "0", "0"]
                pieces, pause = max(1, int(_number(name, count))), _number(name, milliseconds) / 1000
            case "delay":
                step.append(Pause(_number(name, argument)))
            case "usage":
                step.append(Tokens(_tokens(argument)))
            case "fail":
                step.append(_fail(argument))
            case "cut":
                times = _times(argument)
                step.append(Cut(times))
            case _:
                step.append(Text(_quoted(name, argument, conversation), pieces, pause))
        if len(steps) > MAX_STEPS:
            raise RequestError("invalid_argument", f"a script may have {MAX_STEPS} steps")
    if not any(isinstance(action, Text | Fail | Cut) for action in steps[-1]):
        steps[-1].append(Text("Done.", pieces, pause))
    return steps


def _quoted(name: str, argument: str, conversation: Conversation) -> str:
    """The directives that say something about the request itself."""
    match name:
        case "echo-last-tool":
            results = [result for one in conversation.said for result in one.results]
            most = int(_number(name, argument)) if argument else MAX_QUOTE
            return results[-1][: min(most, MAX_QUOTE)] if results else "(there is no tool result)"
        case "quote":
            results = [result for one in conversation.said for result in one.results]
            return quoted_fields(results[-1] if results else "", argument.split())[:MAX_QUOTE]
        case "recall":
            prompts = [" ".join(one.texts) for one in conversation.said if _is_prompt(one)]
            number = int(_number(name, argument or "1"))
            wanted = prompts[number - 1 : number] if number > 0 else prompts[number:][:1]
            return f"user message {number} was: {wanted[0][:500]}" if wanted else f"there is no user message {number}"
        case "images":
            pictures = [picture for one in conversation.said for picture in one.pictures]
            lines = [
                f"{picture.media_type} {len(picture.data)} bytes sha256 {hashlib.sha256(picture.data).hexdigest()}"
                for picture in pictures
            ]
            return "\n".join([f"images: {len(pictures)}", *lines])
        case "system":
            return _system(argument, conversation.system)
        case "settings":
            return json.dumps(conversation.settings, sort_keys=True)[:MAX_QUOTE]
        case _:
            return "tools: " + ", ".join(conversation.tools)


def quoted_fields(result: str, paths: list[str]) -> str:
    """A line for each object of a JSON text that has the first of ``paths``: what it has at all of them."""
    if not paths:
        raise RequestError("invalid_argument", "@quote takes the names of fields, such as final_text")
    try:
        value: object = json.loads(result)
    except (ValueError, RecursionError):
        return "(the last tool result is not JSON)"
    lines = []
    waiting = [value]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, dict):
            if _at(one, paths[0]):
                lines.append("- " + ": ".join(filter(None, (_at(one, path) for path in paths))))
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return "\n".join(lines) or f"(the last tool result has no {paths[0]})"


def _at(value: object, path: str) -> str:
    """What is at ``a.b.c`` inside; empty when there is nothing."""
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value.strip() if isinstance(value, str) else "" if value is None else json.dumps(value)


def _system(argument: str, system: str) -> str:
    what, _, rest = argument.partition(" ")
    if what == "find":
        at = system.find(rest)
        return f"system has: {system[max(0, at - 40) : at + len(rest) + 80]}" if at >= 0 else f"system has no {rest!r}"
    start = int(_number("system", what or "0"))
    return system[start : start + min(MAX_QUOTE, int(_number("system", rest or "200")))]


def _fail(argument: str) -> Fail:
    """``@fail STATUS [xN] [message]``."""
    status, _, rest = argument.partition(" ")
    times = _times(rest.split(" ")[0])
    message = rest.partition(" ")[2] if times is not None else rest
    number = int(_number("fail", status))
    if not 400 <= number <= 599:
        raise RequestError("invalid_argument", "@fail takes an HTTP status from 400 to 599")
    return Fail(number, message or "the script says so", times)


def _times(word: str) -> int | None:
    return int(word[1:]) if re.fullmatch(r"x\d{1,4}", word) else None


def _tokens(argument: str) -> ModelUsage:
    """``@usage input output [cache_read] [cache_write] [reasoning]``."""
    numbers = [int(_number("usage", word)) for word in argument.split()]
    given = [*numbers, 0, 0, 0, 0, 0]
    return ModelUsage(
        input_tokens=given[0],
        output_tokens=given[1],
        cache_read_tokens=given[2],
        cache_write_tokens=given[3],
        reasoning_tokens=given[4],
    )


def _calls(argument: str) -> list[ToolCall]:
    """``@tools [{"name": …, "arguments": {…}}, …]``."""
    try:
        listed = json.loads(argument)
        calls = [ToolCall(str(one["name"]), dict(one.get("arguments") or {})) for one in listed]
        if not calls:
            raise ValueError("an empty list")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError("invalid_argument", '@tools takes a list of {"name": …, "arguments": {…}}') from error
    return calls


def _object(name: str, text: str) -> Json:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise RequestError("invalid_argument", f"the arguments of @{name} are not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError("invalid_argument", f"the arguments of @{name} must be a JSON object")
    return value


def _number(name: str, text: str) -> float:
    try:
        return min(abs(float(text)), 1e9) * (-1 if text.startswith("-") and name == "recall" else 1)
    except ValueError as error:
        raise RequestError("invalid_argument", f"@{name} takes a number, not {text[:40]!r}") from error


def _usage(conversation: Conversation, actions: list[Action]) -> ModelUsage:
    """What ``@usage`` says, else a quarter of the characters."""
    for action in actions:
        if isinstance(action, Tokens):
            return action.usage
    written = 0
    for action in actions:
        if isinstance(action, Text | Thought):
            written += len(action.text)
        elif isinstance(action, ToolCall):
            written += len(action.name) + len(json.dumps(action.arguments))
    return ModelUsage(input_tokens=-(-conversation.characters // 4), output_tokens=max(1, -(-written // 4)))
