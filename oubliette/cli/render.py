"""A turn as people see it: events and previews folded into lines on a screen, live in a terminal, plain in a pipe.

Everything here came from an agent, a model or a file, and is made safe by the screen that prints it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

from oubliette.cli.output import tokens_and_cost
from oubliette.safe_text import safe_line, safe_text

Json = dict[str, Any]
Style = Literal["plain", "dim", "good", "bad", "head"]

ARGUMENT_CHARACTERS = 100
OUTPUT_LINES = 4
_CHANGE = {"added": "A", "modified": "M", "deleted": "D", "renamed": "R"}
_TELLING = ("command", "filePath", "path", "pattern", "url", "query", "message", "description")
"""Arguments that say best what a tool call does, in that order."""


class Screen(Protocol):
    """Where a turn is shown. Text given to it may hold anything."""

    def line(self, text: str, style: Style = "plain") -> None:
        """Something that stays."""

    def working(self, what: str, *, tell: bool = False) -> None:
        """What is going on right now; replaces what was said before. ``tell``: worth a line where nothing moves."""

    def preview(self, part: str, text: str) -> None:
        """More text of a part that is being written."""

    def settled(self, part: str) -> None:
        """The part is complete: its preview goes."""

    def close(self) -> None:
        """Nothing follows."""


class PlainScreen:
    """Lines as they become final."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last = ""

    def line(self, text: str, style: Style = "plain") -> None:
        self._write(safe_text(text))

    def working(self, what: str, *, tell: bool = False) -> None:
        if tell and what != self._last:
            self._write(f"· {safe_line(what)}")
            self._last = what

    def preview(self, part: str, text: str) -> None:
        """A pipe gets the whole text once it is complete."""

    def settled(self, part: str) -> None:
        """There was no preview."""

    def close(self) -> None:
        """Every line is written already."""


class TurnView:
    """Follows one turn, or everything with ``turn`` None. ``completion`` is set when the turn is over."""

    def __init__(self, screen: Screen, *, turn: int | None = None) -> None:
        self._screen = screen
        self._turn = turn
        self._tools: dict[str, str] = {}
        self._started = time.monotonic()
        self._shown: dict[str, Callable[[Json], None]] = {
            "status": self._status,
            "system": self._system,
            "turn_queued": self._turn_queued,
            "turn_started": self._turn_started,
            "reasoning": self._reasoning,
            "message": self._message,
            "tool_call": self._tool_call,
            "tool_result": self._tool_result,
            "todo": self._todo,
            "permission_request": self._permission_request,
            "question": self._question,
            "caller_tool_request": self._caller_tool_request,
            "request_resolved": self._request_resolved,
            "child_spawned": self._child_spawned,
            "child_ended": self._child_ended,
            "error": self._error,
            "files": self._files,
            "completion": self._completion,
        }
        self.files: list[Json] = []
        self.completion: Json | None = None
        self.asks: list[Json] = []

    def show(self, kind: str, data: Json) -> None:
        """One message of the event stream."""
        if kind == "delta":
            if self._mine(data) and data.get("kind") in {"text", "reasoning"}:
                self._screen.preview(str(data.get("part", "")), str(data.get("text", "")))
            return
        show = self._shown.get(str(data.get("type", kind)))
        if show is not None and self._mine(data):
            show(data)

    def _mine(self, data: Json) -> bool:
        return self._turn is None or data.get("turn") in {None, self._turn}

    # --- one method for each type of event

    def _status(self, event: Json) -> None:
        status = event.get("status", {})
        to, reason = status.get("to"), status.get("reason")
        if to in {"waiting", "paused"}:
            self._screen.line(f"· {to}" + (f": {reason}" if reason else "") + _limit(event), "dim")
        if to in {"starting", "running", "waiting", "paused"}:
            self._screen.working({"starting": "starting", "running": "thinking"}.get(to, to))

    def _system(self, event: Json) -> None:
        code, data = str(event.get("code", "")), event.get("data") or {}
        if code == "container_starting":
            self._screen.working(boot_text({"state": "starting", **data}), tell=True)
        elif code in {"container_ready", "woken"}:
            self._screen.working("thinking")
        else:
            what = data.get("message") or data.get("detail") or ""
            self._screen.line(f"· {code.replace('_', ' ')}" + (f": {what}" if what else ""), "dim")

    def _turn_queued(self, _event: Json) -> None:
        self._screen.working("waiting for its turn", tell=True)

    def _turn_started(self, event: Json) -> None:
        if self._turn is None:
            self._screen.line(f"> {event.get('text', '')}", "head")

    def _reasoning(self, event: Json) -> None:
        self._screen.settled(str(event.get("part", "")))
        self._screen.line(f"~ {safe_line(str(event.get('text', '')), 160)}", "dim")

    def _message(self, event: Json) -> None:
        self._screen.settled(str(event.get("part", "")))
        if event.get("role") == "assistant" and event.get("text"):
            self._screen.line(str(event["text"]))

    def _tool_call(self, event: Json) -> None:
        tool = event.get("tool") or {}
        what = tool_line(tool)
        self._tools[str(tool.get("id"))] = what
        self._screen.line(f"→ {what}", "head")
        self._screen.working(f"running {tool.get('name', 'a tool')}")

    def _tool_result(self, event: Json) -> None:
        tool = event.get("tool") or {}
        what = self._tools.pop(str(tool.get("id")), None)
        took = f" in {tool['duration_ms'] / 1000:.1f} s" if "duration_ms" in tool else ""
        good = tool.get("status") == "completed"
        name = "" if what is not None else f" {tool.get('name', '')}"  # its call was shown before we looked
        self._screen.line(
            f"{'✓' if good else '✗'}{name} {'done' if good else 'failed'}{took}", "good" if good else "bad"
        )
        for line in _brief(str(tool.get("output") or "")):
            self._screen.line(f"  {line}", "dim")
        self._screen.working("thinking")

    def _todo(self, event: Json) -> None:
        marks = {"completed": "[x]", "in_progress": "[~]", "cancelled": "[-]"}
        for item in (event.get("data") or {}).get("items", []):
            self._screen.line(
                f"  {marks.get(item.get('status'), '[ ]')} {safe_line(str(item.get('text', '')), 120)}", "dim"
            )

    def _permission_request(self, event: Json) -> None:
        request = event.get("request") or {}
        self.asks.append(request)
        permission = request.get("permission") or {}
        self._screen.line(f"? may it: {permission.get('action', '')} {permission.get('text', '')}", "head")
        self._ask_hint(request)

    def _question(self, event: Json) -> None:
        request = event.get("request") or {}
        self.asks.append(request)
        for question in request.get("questions") or []:
            options = ", ".join(
                str(option.get("label") or option.get("id")) for option in question.get("options") or []
            )
            self._screen.line(f"? {question.get('text', '')}" + (f" ({options})" if options else ""), "head")
        self._ask_hint(request)

    def _caller_tool_request(self, event: Json) -> None:
        """Not among the asks: the caller's own client answers it."""
        request = event.get("request") or {}
        call = request.get("caller_tool") or {}
        self._screen.line(f"? {call.get('caller_id', '')} is asked for {call.get('name', '')}", "head")
        self._ask_hint(request)

    def _ask_hint(self, request: Json) -> None:
        expiry = f"until {request.get('expires_at', '')}: then {request.get('on_expiry', '')}"
        self._screen.line(f"  request {request.get('request_id')}, {expiry}", "dim")
        self._screen.working("waiting for an answer")

    def _request_resolved(self, event: Json) -> None:
        resolution = event.get("resolution") or {}
        self._screen.line(f"  {resolution.get('how', 'resolved')}: {resolution.get('reply', '')}".rstrip(": "), "dim")
        self._screen.working("thinking")

    def _child_spawned(self, event: Json) -> None:
        child = event.get("child") or {}
        self._screen.line(f"+ {child.get('session_id')} {child.get('title', '')}", "head")

    def _child_ended(self, event: Json) -> None:
        child = event.get("child") or {}
        self._screen.line(f"- {child.get('session_id')} {child.get('outcome', '')}", "dim")

    def _error(self, event: Json) -> None:
        self._screen.line(f"! {error_line(event.get('error') or {})}", "bad")

    def _files(self, event: Json) -> None:
        self.files = list(event.get("files") or [])

    def _completion(self, event: Json) -> None:
        self.completion = event
        self._screen.working("")

    # --- the end

    def summarise(self, *, session_id: str | None = None) -> None:
        """Outcome, time, tokens, money and changed files of the turn that is over."""
        done = self.completion or {}
        outcome = str(done.get("outcome", "unknown"))
        parts = [f"{outcome} in {time.monotonic() - self._started:.1f} s"]
        if done.get("usage"):
            parts.append(tokens_and_cost(done["usage"]))
        self._screen.line("")
        if done.get("error"):
            self._screen.line(f"! {error_line(done['error'])}", "bad")
        for file in self.files:
            counts = " ".join(f"{sign}{file[key]}" for sign, key in (("+", "added"), ("-", "removed")) if key in file)
            self._screen.line(
                f"  {_CHANGE.get(str(file.get('change')), '?')} {safe_line(str(file.get('path')))} {counts}".rstrip()
            )
        self._screen.line(" · ".join(parts), "good" if outcome == "completed" else "bad")
        if session_id is not None:
            self._screen.line(session_id, "dim")


def open_screen() -> Screen:
    """A live screen in a terminal, plain lines otherwise."""
    import sys

    if sys.stdout.isatty():
        from oubliette.cli.live_screen import LiveScreen

        return LiveScreen()
    return PlainScreen(lambda text: print(text, flush=True))


def tool_line(tool: Json) -> str:
    """A tool call on one line: its name and the argument that says most."""
    arguments = tool.get("input") or {}
    if arguments.get("action"):  # a tool of Oubliette's
        whom = arguments.get("title") or arguments.get("session_id") or arguments.get("message") or ""
        doing = f"{arguments['action']} {whom}"
        return f"{tool.get('name', 'tool')} {safe_line(doing, ARGUMENT_CHARACTERS)}".rstrip()
    telling = next((str(arguments[name]) for name in _TELLING if arguments.get(name)), None)
    if telling is None:
        telling = str(tool.get("title") or "") or (json.dumps(arguments, ensure_ascii=False) if arguments else "")
    return f"{tool.get('name', 'tool')} {safe_line(telling, ARGUMENT_CHARACTERS)}".rstrip()


def _brief(output: str) -> list[str]:
    """The last lines of an output, each cut to a screen's width."""
    lines = [line for line in output.splitlines() if line.strip()]
    shown = [safe_line(line, 120) for line in lines[-OUTPUT_LINES:]]
    return [f"… {len(lines) - OUTPUT_LINES} lines before", *shown] if len(lines) > OUTPUT_LINES else shown


def boot_text(container: Json) -> str:
    """What is happening to a container (SHAPES' Container) that is not ready yet; empty when nothing is."""
    progress = container.get("progress") or {}
    if progress.get("what"):
        return _progress(progress)
    state = container.get("state")
    if state == "starting" and (container.get("relay") or {}).get("connected"):
        return "starting the agent"
    how = f" ({container['runtime']})" if container.get("runtime") else ""
    doing = {"pulling": "pulling the image", "building": "building the image", "creating": "making the sandbox"}
    return doing.get(str(state), "starting the sandbox") + how if state in {*doing, "starting"} else ""


def _progress(progress: Json) -> str:
    what = str(progress.get("text") or progress.get("what", ""))
    done, total = progress.get("done"), progress.get("total")
    if not done or not total:
        return what
    if progress.get("unit") == "bytes":
        return f"{what} {done / 1e6:.0f} of {total / 1e6:.0f} MB"
    return f"{what} {done} of {total} {progress.get('unit', '')}".rstrip()


def _limit(event: Json) -> str:
    """What a paused tree lacks, and what lets it go on."""
    data = event.get("data") or {}
    limit = data.get("limit")
    if not isinstance(limit, dict) or "needed" not in limit:
        return ""
    name = str(limit.get("name", ""))
    used = f"{limit.get('used', 0):g} of {limit.get('limit', 0):g} spent"
    numbers = f"{name}: {used}, the next request may take {limit['needed']:g}"
    if name == "max_cost_usd_per_day":
        return f" ({numbers}; it goes on tomorrow, UTC)"
    option = "--max-cost-usd …" if name == "max_cost_usd" else f"--limit {name}=…"
    return f" ({numbers}; raise it: oubliette session update {data.get('root_id')} {option})"


def error_line(error: Json) -> str:
    """An error object as a sentence or two."""
    return " ".join(str(error[key]) for key in ("message", "hint") if error.get(key)) or str(error.get("code", "error"))
