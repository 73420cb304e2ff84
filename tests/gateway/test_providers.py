"""Each wire from a client's request to the provider and back."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from oubliette.core.model import EventType
from oubliette.gateway.models import Wire
from tests.gateway.upstream import Misbehaviour
from tests.gateway.world import ALIASES, CAPABILITY, KEY, MODELS, WIRES, World, open_world, request_body, sdk_headers

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ENCODED = base64.b64encode(PNG).decode()
IMAGE: dict[Wire, dict[str, Any]] = {
    Wire.ANTHROPIC: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ENCODED}},
    Wire.OPENAI: {"type": "input_image", "image_url": f"data:image/png;base64,{ENCODED}"},
    Wire.GOOGLE: {"inlineData": {"mimeType": "image/png", "data": ENCODED}},
    Wire.CHAT: {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{ENCODED}"}},
}
UPSTREAM_PATH = {
    Wire.ANTHROPIC: "/v1/messages",
    Wire.OPENAI: "/v1/responses",
    Wire.GOOGLE: "/v1beta/models/gemini-3.8-flash:streamGenerateContent?alt=sse",
    Wire.CHAT: "/v1/chat/completions",
}
KEY_HEADER = {Wire.ANTHROPIC: ("x-api-key", KEY), Wire.GOOGLE: ("x-goog-api-key", KEY)}
COST = {
    # 1,000 read (200 of them from the cache), 50 written, at the prices of the facts, or of the config for the last
    Wire.ANTHROPIC: 800 * 5 + 200 * 0.5 + 50 * 25,
    Wire.OPENAI: 800 * 2.5 + 200 * 0.25 + 50 * 15,
    Wire.GOOGLE: 800 * 0.75 + 200 * 0.075 + 50 * 3.75,
    Wire.CHAT: 800 * 1 + 200 * 0.1 + 50 * 4,
}


async def settled(world: World) -> list[dict[str, Any]]:
    with trio.fail_after(5):
        await world.gateway.settled("gogol_1")
        return await world.rows()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_request_reaches_its_provider_with_the_key_and_comes_back_metered(
    world: World, wire: Wire, stream: bool
) -> None:
    with trio.fail_after(10):
        answer = await world.ask(wire, '@say on it\n@usage 800 50 200\n@tool bash {"command": "ls -l"}', stream=stream)
    assert answer.status_code == 200
    assert "on it" in answer.text
    assert "bash" in answer.text
    assert "ls -l" in answer.text.replace('\\"', '"') or "ls" in answer.text
    [asked] = world.provider.asked
    path = (
        UPSTREAM_PATH[wire]
        if stream
        else UPSTREAM_PATH[wire].replace("streamGenerateContent?alt=sse", "generateContent")
    )
    assert asked.path == path
    name, value = KEY_HEADER.get(wire, ("authorization", f"Bearer {KEY}"))
    assert asked.headers[name] == value
    if wire is not Wire.GOOGLE:
        assert asked.body["model"] == MODELS[wire]
    assert CAPABILITY not in json.dumps([asked.headers, asked.body])
    assert KEY not in answer.text

    [row] = await settled(world)
    assert (row["input_tokens"], row["output_tokens"], row["cache_read_tokens"]) == (800, 50, 200)
    assert row["cost_microusd"] == pytest.approx(COST[wire], abs=1)
    assert row["cost_complete"] == 1
    assert (row["session_id"], row["turn"], row["alias"], row["model"]) == ("gogol_1", 1, ALIASES[wire], MODELS[wire])
    [event] = world.events
    assert event.type is EventType.USAGE
    assert event.turn == 1
    assert event.body["usage"]["requests"] == 1
    assert event.body["usage"]["cost_usd"] == pytest.approx(COST[wire] / 1e6, abs=1e-6)


@pytest.mark.parametrize("wire", WIRES)
async def test_an_image_arrives_as_it_was(world: World, wire: Wire) -> None:
    body = request_body(wire, "@images", more=[IMAGE[wire]])
    answer = await world.ask(wire, body=body)
    assert f"image/png {len(PNG)} bytes sha256 {hashlib.sha256(PNG).hexdigest()}" in answer.text


@pytest.mark.parametrize("wire", WIRES)
async def test_only_listed_headers_pass_in_either_direction(world: World, wire: Wire) -> None:
    body = json.dumps({"error": {"message": "no"}}).encode()
    shown = [
        ("content-type", "application/json"),
        ("set-cookie", "a=b"),
        ("x-ratelimit-remaining-requests", "3"),
        ("openai-organization", "org-secret"),
        ("request-id", "req_1"),
        ("location", "https://evil"),
    ]
    world.provider.next.append(Misbehaviour(400, body, shown))
    answer = await world.ask(
        wire,
        headers={
            "cookie": "a=b",
            "openai-organization": "x",
            "x-forwarded-for": "1.1.1.1",
            "anthropic-beta": "files-api-1",
        },
    )
    [asked] = world.provider.asked
    assert not {"cookie", "openai-organization", "x-forwarded-for", "anthropic-beta", "x-session-id"} & set(
        asked.headers
    )
    assert asked.headers["user-agent"] == "oubliette"
    assert not {"set-cookie", "openai-organization", "location"} & set(answer.headers)
    assert answer.headers["x-ratelimit-remaining-requests"] == "3"
    assert answer.headers["request-id"] == "req_1"


async def test_betas_of_the_alias_and_harmless_ones_of_the_agent_are_merged(tmp_path: Path) -> None:
    extra = {"anthropic-beta": "context-1m-2025-08-07", "x-team": "blue", "x-api-key": "no", "host": "evil"}
    async with open_world(tmp_path, models={"opus": {"extraHeaders": extra}}) as world:
        betas = "fine-grained-tool-streaming-2025-05-14, mcp-client-2025-04-04,context-1m-2025-08-07"
        await world.ask(Wire.ANTHROPIC, headers={"anthropic-beta": betas})
        headers = world.provider.asked[0].headers
    assert headers["anthropic-beta"] == "context-1m-2025-08-07,fine-grained-tool-streaming-2025-05-14"
    assert headers["x-team"] == "blue"
    assert headers["x-api-key"] == KEY
    assert headers["host"].startswith("127.0.0.1")
    assert headers["anthropic-version"] == "2023-06-01"


@pytest.mark.parametrize("wire", WIRES)
async def test_a_providers_error_passes_without_the_key(world: World, wire: Wire) -> None:
    world.provider.key = "another-key-altogether-1234"
    answer = await world.ask(wire)
    assert answer.status_code == 401
    assert "Incorrect API key provided" in answer.text
    assert "[key removed]" in answer.text
    assert KEY not in answer.text
    assert "****" not in answer.text
    [row] = await settled(world)
    assert row["error"] == "HTTP 401"
    assert (row["input_tokens"], row["cost_microusd"], row["cost_complete"]) == (0, 0, 1)
    assert not world.events


@pytest.mark.parametrize("wire", WIRES)
async def test_a_key_never_reaches_the_agent_even_in_a_good_answer(world: World, wire: Wire) -> None:
    answer = await world.ask(wire, f"@stream 9 1\n@say the key is {KEY}, really")
    assert KEY not in answer.text
    assert "[key removed]" in answer.text or KEY not in "".join(answer.text)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("status", [429, 503, 529])
async def test_overload_passes_with_its_retry_after(world: World, wire: Wire, status: int) -> None:
    world.provider.fail_next(wire, status, "slow down", retry_after="7")
    answer = await world.ask(wire)
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "7"
    assert "slow down" in answer.text
    assert (await world.ask(wire)).status_code == 200
    assert [row["error"] for row in await settled(world)] == [f"HTTP {status}", None]


@pytest.mark.parametrize("wire", WIRES)
async def test_a_stream_that_the_provider_cuts_is_cut_for_the_agent_and_metered(world: World, wire: Wire) -> None:
    with pytest.raises(httpx.RemoteProtocolError), trio.fail_after(10):
        await world.ask(wire, "@usage 800 50\n@say " + "a long part of an answer " * 10 + "\n@cut")
    [row] = await settled(world)
    assert "broke off" in row["error"]
    assert row["cost_complete"] == 0
    assert row["output_tokens"] >= 60
    assert row["input_tokens"] > 0
    assert row["cost_microusd"] > 0
    assert world.events[0].body["usage"]["cost_complete"] is False


@pytest.mark.parametrize("wire", WIRES)
async def test_a_provider_that_cannot_be_reached_is_an_error_to_try_again(tmp_path: Path, wire: Wire) -> None:
    async with open_world(tmp_path, models={ALIASES[wire]: {"baseUrl": "http://127.0.0.1:9/v1"}}) as world:
        answer = await world.ask(wire)
        assert answer.status_code == 502
        assert "cannot be reached" in answer.text
        assert "127.0.0.1" not in answer.text
        [row] = await settled(world)
        assert (row["cost_microusd"], row["cost_complete"]) == (0, 1)


@pytest.mark.parametrize("wire", WIRES)
async def test_redirects_are_not_followed(world: World, wire: Wire) -> None:
    world.provider.next.append(Misbehaviour(307, b"", [("location", "http://127.0.0.1:9/")]))
    answer = await world.ask(wire)
    assert answer.status_code == 502
    assert len(world.provider.asked) == 1


@pytest.mark.parametrize("wire", WIRES)
async def test_refusals_are_in_the_providers_own_words(world: World, wire: Wire) -> None:
    answer = await world.ask(wire, alias="nobody")
    error = answer.json()["error"]
    assert answer.status_code == 404
    assert "nobody" in error["message"]
    if wire is Wire.ANTHROPIC:
        assert answer.json()["type"] == "error"
        assert error["type"] == "not_found_error"
    elif wire is Wire.GOOGLE:
        assert (error["code"], error["status"]) == (404, "NOT_FOUND")
    else:
        assert error["type"] == "invalid_request_error"
    assert not world.provider.asked


async def test_every_other_path_and_method_is_refused(world: World) -> None:
    paths = [
        "/",
        "/v1/messages",
        "/anthropic/v1/messages/count_tokens",
        "/anthropic/v1/messages/",
        "/anthropic//v1/messages",
        "/anthropic/v1/%6dessages",
        "/anthropic/v1/files",
        "/openai/v1/responses/resp_1",
        "/openai/v1/conversations",
        "/openai/v1/chat/completions",
        "/google/v1beta/models/flash:countTokens",
        "/google/v1beta/models/a/b:generateContent",
        "/google/v1beta/files",
        "/openai-compatible/v1/models",
        "/health",
    ]
    async with httpx.AsyncClient(trust_env=False, headers={"authorization": f"Bearer {CAPABILITY}"}) as client:
        for path in paths:
            answer = await client.post(f"http://127.0.0.1:{world.port}{path}", json={})
            assert answer.status_code == 404, path
            assert answer.json()["error"]
        for method in ("GET", "PUT", "DELETE", "OPTIONS"):
            answer = await client.request(method, world.url(Wire.ANTHROPIC))
            assert answer.status_code == 405, method
    assert not world.provider.asked


@pytest.mark.parametrize("wire", WIRES)
async def test_without_the_containers_capability_nothing_is_read(world: World, wire: Wire) -> None:
    for capability in ("-", "x", KEY, CAPABILITY + "x", CAPABILITY[:-1]):
        answer = await world.ask(wire, capability=capability)
        assert answer.status_code == 401
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(f"{world.url(wire)}?key={CAPABILITY}", json={})
        assert answer.status_code == 401
        twice = [("x-api-key", "no"), ("x-api-key", CAPABILITY)]
        assert (await client.post(world.url(wire), json={}, headers=twice)).status_code == 401
    assert not world.provider.asked
    assert not await world.rows()


@pytest.mark.parametrize("wire", WIRES)
async def test_a_model_of_another_wire_is_refused(world: World, wire: Wire) -> None:
    other = next(alias for kind, alias in ALIASES.items() if kind is not wire)
    answer = await world.ask(wire, alias=other)
    assert answer.status_code == 404
    assert not world.provider.asked


@pytest.mark.parametrize("wire", WIRES)
async def test_an_alias_may_stand_behind_the_models_real_name(world: World, wire: Wire) -> None:
    answer = await world.ask(wire, alias=f"{MODELS[wire]}@{ALIASES[wire]}")
    assert answer.status_code == 200
    [row] = await settled(world)
    assert (row["alias"], row["model"]) == (ALIASES[wire], MODELS[wire])


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("alias", ["scripted", "scripted-anthropic", "scripted-openai", "scripted-google"])
async def test_the_scripted_model_answers_on_every_wire_and_is_free(world: World, wire: Wire, alias: str) -> None:
    answer = await world.ask(wire, "@say no network at all\n@usage 5 6", alias=alias)
    assert "no network at all" in answer.text
    assert not world.provider.asked
    [row] = await settled(world)
    assert (row["provider"], row["input_tokens"], row["cost_microusd"], row["cost_complete"]) == ("scripted", 5, 0, 1)


async def test_a_scripted_alias_may_have_a_price(tmp_path: Path) -> None:
    models = {"play": {"model": "scripted-openai", "provider": "scripted", "cost": {"input": 3, "output": 7}}}
    async with open_world(tmp_path, models=models) as world:
        await world.ask(Wire.OPENAI, "@usage 10 10\n@say x", alias="play")
        [row] = await settled(world)
    assert row["cost_microusd"] == 100


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"model": 5}', 400),
        (b"{}", 400),
        (b'{"model": "opus", "model": "five"}', 400),
        (b'{"model": "opus", "x": ' + b"[" * 200 + b"]" * 200 + b"}", 400),
        (b'{"model": "opus", "x": [' + b"1," * 500_000 + b"1]}", 413),
    ],
)
async def test_a_body_that_is_no_plain_request_is_refused_and_the_connection_lives(
    world: World, body: bytes, status: int
) -> None:
    async with httpx.AsyncClient(trust_env=False, headers=sdk_headers(Wire.ANTHROPIC)) as client:
        headers = {"content-type": "application/json"}
        answer = await client.post(world.url(Wire.ANTHROPIC), content=body, headers=headers)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
        again = await client.post(world.url(Wire.ANTHROPIC), json=request_body(Wire.ANTHROPIC, "@say fine"))
        assert "fine" in again.text


async def test_compressed_and_other_bodies_are_refused(world: World) -> None:
    for headers in ({"content-encoding": "gzip"}, {"content-type": "text/plain"}):
        answer = await world.ask(Wire.CHAT, headers=headers)
        assert answer.status_code == 400
