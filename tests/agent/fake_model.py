"""A model for these tests: an openai-compatible server on loopback that plays the script found in the prompt.

The script is the JSON in the newest user message, ``{"turns": [step, ...]}``: request number *n* of that turn (counted
by the assistant messages since) is answered with step *n*. A step may hold ``think``, ``say``, ``call`` (a list of
``[name, arguments]``), ``status`` with ``body``, ``hang``, ``cut`` (how often the connection breaks before it works),
``delay`` (seconds between pieces), ``finish``. Sessions are told apart, so twenty may talk at once.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
import trio

PIECE = 7
"""Characters of text in one streamed piece."""


def script(*turns: dict[str, Any], text: str = "") -> str:
    """A prompt that makes the model play ``turns``; ``text`` is prose before it."""
    return text + json.dumps({"turns": list(turns)})


@dataclass
class Request:
    """One request of the agent, as it arrived. Times are ``trio.current_time()``."""

    body: dict[str, Any]
    headers: dict[str, str]
    path: str
    at: float
    first_byte_at: float = 0.0
    session_id: str = ""

    @property
    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.body["messages"]
        return found

    @property
    def tools(self) -> set[str]:
        return {tool["function"]["name"] for tool in self.body.get("tools", ())}


@dataclass
class FakeModel:
    """What was asked, and where it listens. ``release`` ends every step that hangs."""

    port: int = 0
    requests: list[Request] = field(default_factory=list)
    release: trio.Event = field(default_factory=trio.Event)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def tries(self, request: Request) -> int:
        """How often this very step was asked for already, this time included."""
        return sum(len(one.messages) == len(request.messages) for one in self.of(request.session_id))

    def of(self, session_id: str) -> list[Request]:
        return [request for request in self.requests if request.session_id == session_id]


def texts_of(message: dict[str, Any]) -> list[str]:
    """The texts of a chat message, whichever way its content is spelled."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [str(part.get("text", "")) for part in content or () if part.get("type") == "text"]


def step_of(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The step that this request is answered with."""
    newest = max(number for number, message in enumerate(messages) if message["role"] == "user")
    answered = sum(message["role"] == "assistant" for message in messages[newest:])
    for text in texts_of(messages[newest]):
        start = text.find('{"turns"')
        if start >= 0:
            turns = json.JSONDecoder().raw_decode(text[start:])[0]["turns"]
            step: dict[str, Any] = turns[answered] if answered < len(turns) else {"say": "end of script"}
            return step
    return {"say": "no script"}


def pieces_of(step: dict[str, Any]) -> list[dict[str, Any]]:
    """The deltas of a step."""
    found: list[dict[str, Any]] = []
    for key, name in (("think", "reasoning_content"), ("say", "content")):
        text = step.get(key, "")
        found += [{name: text[at : at + PIECE]} for at in range(0, len(text), PIECE)]
    for index, (name, arguments) in enumerate(step.get("call", ())):
        spelled = json.dumps(arguments)
        middle = len(spelled) // 2
        head = {"index": index, "id": f"call_{index}_{name}", "type": "function"}
        found.append({"tool_calls": [{**head, "function": {"name": name, "arguments": ""}}]})
        for part in (spelled[:middle], spelled[middle:]):
            found.append({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    return found


async def _receive(stream: trio.abc.Stream, http: h11.Connection) -> Any:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(bytes(await stream.receive_some(65536)))
    return event


async def _serve(model: FakeModel, stream: trio.abc.Stream) -> None:
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    async with stream:
        while True:
            head = await _receive(stream, http)
            if not isinstance(head, h11.Request):
                return
            body = bytearray()
            while isinstance(event := await _receive(stream, http), h11.Data):
                body += event.data
            if not isinstance(event, h11.EndOfMessage):
                return
            headers = {name.decode(): value.decode() for name, value in head.headers}
            request = Request(json.loads(body), headers, head.target.decode(), trio.current_time())
            request.session_id = headers.get("x-session-id", "")
            model.requests.append(request)
            if not await _answer(model, stream, http, request):
                return
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()


async def _answer(model: FakeModel, stream: trio.abc.Stream, http: h11.Connection, request: Request) -> bool:
    """Play one step. False: the connection is to be cut."""

    async def send(event: Any) -> None:
        data = http.send(event)
        if data:
            await stream.send_all(data)

    step = step_of(request.messages)
    if "status" in step:
        body = json.dumps(step.get("body", {"error": {"message": "scripted failure"}})).encode()
        kind = [("content-type", "application/json"), ("content-length", str(len(body)))]
        await send(h11.Response(status_code=step["status"], headers=kind))
        await send(h11.Data(data=body))
        await send(h11.EndOfMessage())
        return True
    await send(h11.Response(status_code=200, headers=[("content-type", "text/event-stream")]))
    if step.get("hang"):
        await model.release.wait()

    async def chunk(delta: dict[str, Any], **more: Any) -> None:
        answer = {
            "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": None, **more}],
        }  # fmt: skip
        await send(h11.Data(data=b"data: " + json.dumps(answer).encode() + b"\n\n"))

    await chunk({"role": "assistant", "content": ""})
    for delta in pieces_of(step):
        request.first_byte_at = request.first_byte_at or trio.current_time()
        await chunk(delta)
        if step.get("delay"):
            await trio.sleep(step["delay"])
    if model.tries(request) <= step.get("cut", 0):
        return False
    await chunk({}, finish_reason=step.get("finish", "tool_calls" if "call" in step else "stop"))
    usage = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    usage |= {"usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18, **step.get("usage", {})}}
    await send(h11.Data(data=b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n"))
    await send(h11.EndOfMessage())
    return True


@asynccontextmanager
async def open_fake_model(port: int = 0) -> AsyncIterator[FakeModel]:
    """A model on that port (0: one of its own), gone when the context ends."""
    model = FakeModel()

    async def handle(stream: trio.SocketStream) -> None:
        try:
            await _serve(model, stream)
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            return  # the agent cut the request, as it does at every abort

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
        model.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield model
        nursery.cancel_scope.cancel()
