"""Each provider's wire through everything: the real daemon, the real OpenCode in a sandbox, a provider on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.gateway.models import Wire
from tests.daemon.harness import Daemon, Json, open_daemon
from tests.daemon.shared import entered_in_a_thread
from tests.gateway.upstream import Asked, Provider, open_provider

pytestmark = [pytest.mark.daemon, pytest.mark.agent, pytest.mark.engine]

KEY = "sk-planted-9b41c7e2d05f8a36"
WIRES = list(Wire)
MODELS = {
    Wire.ANTHROPIC: "claude-opus-4-6",
    Wire.OPENAI: "gpt-5.4",
    Wire.GOOGLE: "gemini-3.8-flash",
    Wire.CHAT: "qwen-coder",
}
PATHS = {
    Wire.ANTHROPIC: "/v1/messages",
    Wire.OPENAI: "/v1/responses",
    Wire.GOOGLE: "/v1beta/models/gemini-3.8-flash:streamGenerateContent?alt=sse",
    Wire.CHAT: "/v1/chat/completions",
}
PRICE = {"input": 3, "output": 15, "cache_read": 0.3, "cache_write": 3.75}
COST_USD = (800 * 3 + 50 * 15 + 200 * 0.3) / 1e6
"""Of one request with ``@usage 800 50 200``."""
LIMIT_SECONDS = 110


@dataclass
class World:
    """A daemon with one project, and the provider that its four aliases lead to."""

    daemon: Daemon
    provider: Provider
    project_id: str
    capabilities: list[str]

    async def spawn(self, wire: Wire, message: str, **more: Any) -> str:
        """A new session of that wire's alias."""
        spawned = await self.daemon.call(
            "session",
            action="spawn",
            project_id=self.project_id,
            message=message,
            model=wire.value,
            title="providers",
            new_session=True,
            **more,
        )
        return str(spawned["session_id"])

    async def completion(self, session_id: str) -> tuple[Json, list[Json]]:
        """The one completion of a session of one turn, and all its events."""
        await self.daemon.settle(session_id, timeout_seconds=LIMIT_SECONDS)
        log = await self.daemon.events(session_id)
        [completion] = [event for event in log if event["type"] == "completion"]
        assert [event["type"] for event in log[log.index(completion) + 1 :]] == ["status"]
        return completion, log


def config(provider: Provider) -> Json:
    return {
        "server": {"address": "127.0.0.1:0"},
        "runtime": "bubblewrap",
        "credentials": {
            "providers": {
                "credentials": {
                    f"my-{wire}": {"provider": wire.value, "api_key": KEY, "base_url": provider.base_url(wire)}
                    for wire in WIRES
                }
            }
        },
        "models": {
            "models": {
                wire.value: {
                    "model": MODELS[wire],
                    "provider": f"my-{wire}",
                    "images": True,
                    "cost": PRICE,
                    "extraHeaders": {"X-Team": f"blue-{wire}", "User-Agent": "ours/1", "Authorization": "Bearer no"},
                }
                for wire in WIRES
            }
        },
    }


@asynccontextmanager
async def open_world(home: Path) -> AsyncIterator[World]:
    async with open_provider(key=KEY) as provider, open_daemon(home, config(provider)) as daemon:
        project = await daemon.call("project", action="create", name="providers")
        await daemon.call("container", action="start", project_id=project["project_id"], wait_seconds=40)
        files = list((home / "run" / "c").glob("*/opencode.json"))
        providers = [one for file in files for one in json.loads(file.read_text())["provider"].values()]
        keys = {one["options"]["apiKey"] for one in providers} - {"none"}
        yield World(daemon, provider, project["project_id"], sorted(keys))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("providers") / "home"
    home.mkdir()
    with entered_in_a_thread(partial(open_world, home)) as world:
        yield world


@pytest.fixture
def world(shared: World) -> World:
    """The provider has forgotten what it was asked before."""
    shared.provider.asked.clear()
    shared.provider.next.clear()
    return shared


def picture(side: int) -> bytes:
    """A PNG of that many pixels each way."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + bytes(value % 256 for x in range(side) for value in (x * 7, y * 5, 90)) for y in range(side)
    )
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def writing(wire: Wire) -> tuple[str, Json]:
    """Name and arguments of the tool that makes a file. The agent gives models that are called gpt-5 another one."""
    if wire is Wire.OPENAI:
        patch = f"*** Begin Patch\n*** Add File: {wire}.txt\n+made by {wire}\n*** End Patch"
        return "apply_patch", {"patchText": patch}
    return "write", {"filePath": f"{wire}.txt", "content": f"made by {wire}\n"}


def images_in(asked: Asked) -> list[bytes]:
    """The PNG images of a request, spelled as its provider wants them."""
    body = asked.body
    parts: list[Json]
    if asked.wire is Wire.GOOGLE:
        parts = [part for one in body["contents"] for part in one["parts"]]
        found = [part["inlineData"] for part in parts if "inlineData" in part]
        assert all(one["mimeType"] == "image/png" for one in found)
        return [base64.b64decode(one["data"]) for one in found]
    said = body["input"] if asked.wire is Wire.OPENAI else body["messages"]
    parts = [part for one in said if isinstance(one.get("content"), list) for part in one["content"]]
    if asked.wire is Wire.ANTHROPIC:
        sources = [part["source"] for part in parts if part["type"] == "image"]
        assert all((one["type"], one["media_type"]) == ("base64", "image/png") for one in sources)
        return [base64.b64decode(one["data"]) for one in sources]
    if asked.wire is Wire.OPENAI:
        urls = [part["image_url"] for part in parts if part["type"] == "input_image"]
    else:
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def assert_asked_properly(world: World, asked: Asked, wire: Wire) -> None:
    """Path, model, key and headers are ours; nothing of the container's is among them."""
    assert asked.path == PATHS[wire]
    if wire is not Wire.GOOGLE:
        assert asked.body["model"] == MODELS[wire]
    name = {Wire.ANTHROPIC: "x-api-key", Wire.GOOGLE: "x-goog-api-key"}.get(wire, "authorization")
    keys = {
        header: asked.headers[header]
        for header in ("authorization", "x-api-key", "x-goog-api-key")
        if header in asked.headers
    }
    assert keys == {name: f"Bearer {KEY}" if name == "authorization" else KEY}
    assert asked.headers["x-team"] == f"blue-{wire}"
    assert asked.headers["user-agent"] == "ours/1"
    ours = {"host", "connection", "content-length", "content-type", "accept", "accept-encoding", "user-agent", "x-team"}
    provider_own = {"anthropic-version", "anthropic-beta"} if wire is Wire.ANTHROPIC else set()
    assert set(asked.headers) <= ours | provider_own | {name}
    [capability] = world.capabilities
    assert capability not in json.dumps([asked.path, asked.headers, asked.body])


@pytest.mark.parametrize("wire", WIRES)
async def test_a_turn_with_a_tool_and_an_image_is_asked_properly_and_metered(world: World, wire: Wire) -> None:
    image = picture(40)
    name, arguments = writing(wire)
    session_id = await world.spawn(
        wire,
        "Look at this.\n@usage 800 50 200\n@images\n"
        f"@tool {name} {json.dumps(arguments)}\n"
        f'@usage 800 50 200\n@tool bash {{"command": "cat {wire}.txt && id -u", "description": "read it"}}\n'
        "@usage 800 50 200\n@echo-last-tool",
        attachments=[{"filename": "p.png", "content_type": "image/png", "data": base64.b64encode(image).decode()}],
    )
    completion, log = await world.completion(session_id)
    assert completion["outcome"] == "completed", completion

    assert len(world.provider.asked) == 3
    for asked in world.provider.asked:
        assert asked.wire is wire
        assert_asked_properly(world, asked, wire)
        assert images_in(asked) == [image]
    texts = [event["text"] for event in log if event["type"] == "message"]
    assert f"image/png {len(image)} bytes sha256 {hashlib.sha256(image).hexdigest()}" in texts[0]

    calls = [event["tool"] for event in log if event["type"] == "tool_call"]
    results = [event["tool"] for event in log if event["type"] == "tool_result"]
    assert [call["name"] for call in calls] == [name, "bash"]
    assert [result["status"] for result in results] == ["completed", "completed"]
    assert f"made by {wire}" in results[1]["output"]
    assert f"made by {wire}" in completion["text"]
    said = await world.daemon.call(
        "container", action="exec", project_id=world.project_id, command=f"cat /workspaces/*/{wire}.txt"
    )
    assert said["stdout"] == f"made by {wire}\n"

    usage = completion["usage"]
    assert usage["requests"] == 3
    assert (usage["input_tokens"], usage["output_tokens"], usage["cache_read_tokens"]) == (2400, 150, 600)
    assert usage["cost_usd"] == pytest.approx(3 * COST_USD, abs=3e-6)
    assert usage["cost_complete"] is True
    session = await world.daemon.call("session", action="get", session_id=session_id, detail="full")
    assert session["usage"] == usage
    told = [event["usage"] for event in log if event["type"] == "usage"]
    assert sum(one["requests"] for one in told) == 3
    assert sum(one["cost_usd"] for one in told) == pytest.approx(usage["cost_usd"], abs=1e-6)
    assert KEY not in json.dumps([log, session])


@pytest.mark.parametrize("wire", WIRES)
async def test_a_providers_refusal_is_the_turns_error_without_the_key(world: World, wire: Wire) -> None:
    world.provider.fail_next(wire, 401, f"Incorrect API key provided: {KEY}.")
    session_id = await world.spawn(wire, "@say never")
    completion, log = await world.completion(session_id)
    assert completion["outcome"] == "failed"
    error = completion["error"]
    assert error["code"] == "model_error"
    assert "401" in error["message"]
    assert "Incorrect API key provided" in error["message"]
    assert "[key removed]" in error["message"]
    assert KEY not in json.dumps(log)
    session = await world.daemon.call("session", action="get", session_id=session_id, detail="full")
    assert session["status"] == "idle"
    assert session["last_turn"]["error"] == error
    assert KEY not in json.dumps(session)

    await world.daemon.call("session", action="message", session_id=session_id, message="@say better now")
    again = await world.daemon.settle(session_id, timeout_seconds=LIMIT_SECONDS)
    assert (again["outcome"], again["final_text"]) == ("completed", "better now")


@pytest.mark.parametrize("wire", WIRES)
async def test_a_provider_that_is_busy_is_asked_again(world: World, wire: Wire) -> None:
    world.provider.fail_next(wire, 429, "Slow down, please.", retry_after="1")
    session_id = await world.spawn(wire, "@say at last")
    completion, log = await world.completion(session_id)
    assert (completion["outcome"], completion["text"]) == ("completed", "at last")
    assert len(world.provider.asked) == 2
    [retry] = [event for event in log if event["type"] == "system" and event["code"] == "model_retry"]
    assert retry["data"]["attempt"] == 1
    assert "Slow down" in retry["data"]["message"]
    assert completion["usage"]["requests"] == 2


@pytest.mark.parametrize("wire", WIRES)
async def test_a_tool_that_does_not_exist_is_a_failed_call(world: World, wire: Wire) -> None:
    session_id = await world.spawn(wire, '@tool fly {"height": 3}\n@say so I walk')
    completion, log = await world.completion(session_id)
    assert (completion["outcome"], completion["text"]) == ("completed", "so I walk")
    [call] = [event["tool"] for event in log if event["type"] == "tool_call"]
    [result] = [event["tool"] for event in log if event["type"] == "tool_result"]
    assert (call["name"], result["name"], result["status"]) == ("fly", "fly", "error")


@pytest.mark.parametrize("wire", WIRES)
async def test_a_stream_that_is_cut_is_asked_for_again(world: World, wire: Wire) -> None:
    session_id = await world.spawn(wire, f"Once, {wire}.\n@say half of an answer\n@cut x1\n@say and the rest")
    completion, log = await world.completion(session_id)
    assert (completion["outcome"], completion["text"]) == ("completed", "half of an answer\nand the rest")
    assert len(world.provider.asked) == 2
    assert [event["data"]["attempt"] for event in log if event.get("code") == "model_retry"] == [1]
    usage = completion["usage"]
    assert usage["requests"] == 2
    assert usage["cost_usd"] > 0
    assert usage["cost_complete"] is False  # nobody knows what the half answer cost


async def test_a_turn_whose_streams_are_all_cut_fails_in_a_minute(world: World) -> None:
    """On every wire at once: the agent asks five more times, with longer and longer pauses."""
    ended: dict[Wire, tuple[Json, list[Json]]] = {}

    async def one(wire: Wire) -> None:
        session_id = await world.spawn(wire, f"Always, {wire}.\n@say half of an answer\n@cut")
        ended[wire] = await world.completion(session_id)

    async with trio.open_nursery() as nursery:
        for wire in WIRES:
            nursery.start_soon(one, wire)
    for wire, (completion, log) in ended.items():
        assert completion["outcome"] == "failed", wire
        error = completion["error"]
        assert (error["code"], error["retryable"]) == ("model_error", True), wire
        assert "connection" in error["message"].lower(), wire
        assert completion["text"] in ("", "half of an answer"), wire
        retries = [event["data"]["attempt"] for event in log if event.get("code") == "model_retry"]
        assert retries == [1, 2, 3, 4, 5], wire
        assert sum(asked.wire is wire for asked in world.provider.asked) == 6
        assert completion["usage"]["requests"] == 6
