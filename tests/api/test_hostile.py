"""Sixty calls that nobody should make: each gets one clear sentence and the right code at every door, and the daemon
lives on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import trio

from tests.api.rpc import messages, open_rpc
from tests.api.world import OTHER_PROJECT, PROJECT, Doors

Case = tuple[str, Any, str, str]
"""Tool, arguments, expected code, a word that the message must hold (the field, mostly)."""

SPAWN = {"action": "spawn", "project_id": PROJECT}
LOOK = {"action": "read", "project_id": PROJECT}

CASES: list[Case] = [
    # nothing, null, wrong kinds
    ("session", {}, "invalid_argument", "action"),
    ("session", {"action": None}, "invalid_argument", "action"),
    ("session", {"action": 7}, "invalid_argument", "action"),
    ("session", {"action": ["spawn"]}, "invalid_argument", "action"),
    ("session", {"action": "fly"}, "unknown_action", "'fly'"),
    ("session", {"action": ""}, "unknown_action", "no action"),
    ("session", {"action": "spawn\u0000"}, "unknown_action", "no action"),
    ("session", {"action": "spawn" * 10_000}, "unknown_action", "no action"),
    ("nothing", {"action": "spawn"}, "unknown_action", "no tool"),
    ("session.spawn", {"message": "x"}, "unknown_action", "no tool"),
    ("\u202esession", {}, "unknown_action", "no tool"),
    ("session", {"action": "spawn", "project_id": PROJECT}, "invalid_argument", "message"),
    ("session", {**SPAWN, "message": None}, "invalid_argument", "message"),
    ("session", {**SPAWN, "message": ""}, "invalid_argument", "message"),
    ("session", {**SPAWN, "message": "   \n"}, "invalid_argument", "message"),
    ("session", {**SPAWN, "message": 5}, "invalid_argument", "message"),
    ("session", {**SPAWN, "message": ["do", "it"]}, "invalid_argument", "message"),
    ("session", {**SPAWN, "message": {"text": "x"}}, "invalid_argument", "message"),
    ("session", {**SPAWN, "message": "a\u0000b"}, "invalid_argument", "message"),
    ("session", {**SPAWN, "message": "x" * (1 << 20) + "y"}, "too_large", "message"),
    ("session", {**SPAWN, "message": "é" * (1 << 19) + "y"}, "too_large", "message"),
    ("session", {**SPAWN, "message": "x", "system": "s" * 70_000}, "too_large", "system"),
    ("session", {**SPAWN, "message": "x", "context": "s" * 300_000}, "too_large", "context"),
    ("session", {**SPAWN, "message": "x", "title": "t" * 201}, "too_large", "title"),
    ("session", {**SPAWN, "message": "x", "title": "two\nlines"}, "invalid_argument", "title"),
    ("session", {**SPAWN, "message": "x", "title": "evil\u202etxt"}, "invalid_argument", "title"),
    ("session", {**SPAWN, "message": "x", "title": "\u001b[2J"}, "invalid_argument", "title"),
    ("session", {**SPAWN, "message": "x", "source": "a\u2028b"}, "invalid_argument", "source"),
    ("session", {**SPAWN, "message": "x", "external_id": "e" * 257}, "too_large", "external_id"),
    ("session", {**SPAWN, "message": "x", "request_key": "k" * 129}, "too_large", "request_key"),
    # numbers
    ("session", {**SPAWN, "message": "x", "timeout_minutes": -1}, "invalid_argument", "timeout_minutes"),
    ("session", {**SPAWN, "message": "x", "timeout_minutes": 10**300}, "invalid_argument", "timeout_minutes"),
    ("session", {**SPAWN, "message": "x", "timeout_minutes": "soon"}, "invalid_argument", "timeout_minutes"),
    ("session", {**SPAWN, "message": "x", "timeout_minutes": "NaN"}, "invalid_argument", "timeout_minutes"),
    ("session", {**SPAWN, "message": "x", "max_cost_usd": True}, "invalid_argument", "max_cost_usd"),
    ("session", {**SPAWN, "message": "x", "max_cost_usd": 0}, "invalid_argument", "max_cost_usd"),
    ("session", {"action": "events", "session_id": "g", "since_index": -2}, "invalid_argument", "since_index"),
    ("session", {"action": "events", "session_id": "g", "since_index": 1.5}, "invalid_argument", "since_index"),
    ("session", {"action": "events", "session_id": "g", "max_events": 10**30}, "invalid_argument", "max_events"),
    ("session", {"action": "list", "limit": 0}, "invalid_argument", "limit"),
    ("session", {"action": "list", "max_chars": 1}, "invalid_argument", "max_chars"),
    # switches, choices, arrays
    ("session", {**SPAWN, "message": "x", "new_session": "yes"}, "invalid_argument", "new_session"),
    ("session", {**SPAWN, "message": "x", "new_session": 1}, "invalid_argument", "new_session"),
    ("session", {**SPAWN, "message": "x", "autonomy_level": "full"}, "invalid_argument", "autonomy_level"),
    ("session", {**SPAWN, "message": "x", "tools_allowed": "bash"}, "invalid_argument", "tools_allowed"),
    ("session", {**SPAWN, "message": "x", "tools_allowed": [1]}, "invalid_argument", "tools_allowed"),
    ("session", {**SPAWN, "message": "x", "tools_allowed": ["t"] * 101}, "invalid_argument", "tools_allowed"),
    ("session", {"action": "list", "status": "sleepy"}, "invalid_argument", "status"),
    ("session", {"action": "wait", "session_ids": []}, "invalid_argument", "session_ids"),
    ("session", {"action": "wait"}, "invalid_argument", "session_ids"),
    ("session", {"action": "events", "session_id": "g", "types": ["gossip"]}, "not_found", "session"),
    ("session", {**SPAWN, "message": "x", "attachments": [{}]}, "invalid_argument", "attachments"),
    ("session", {**SPAWN, "message": "x", "attachments": ["a"]}, "invalid_argument", "attachments"),
    (
        "session",
        {**SPAWN, "message": "x", "attachments": [{"filename": "../x", "content_type": "a/b", "data": "eA=="}]},
        "invalid_argument",
        "filename",
    ),
    (
        "session",
        {**SPAWN, "message": "x", "attachments": [{"filename": "x", "content_type": "a/b", "data": "%%%"}]},
        "invalid_argument",
        "base64",
    ),
    (
        "session",
        {**SPAWN, "message": "x", "attachments": [{"filename": "x", "content_type": "a/b", "url": "file:///etc"}]},
        "invalid_argument",
        "url",
    ),
    # unknown arguments, ids of other kinds
    ("session", {**SPAWN, "message": "x", "sesion_id": "g"}, "invalid_argument", "sesion_id"),
    ("session", {**SPAWN, "message": "x", "\u0000": 1}, "invalid_argument", "no argument"),
    ("session", {**SPAWN, "message": "x", "Ü" * 500: 1}, "invalid_argument", "no argument"),
    ("session", {"action": "get", "session_id": PROJECT}, "not_found", "session"),
    ("session", {"action": "get", "session_id": "../../etc/passwd"}, "invalid_argument", "session_id"),
    ("session", {"action": "get", "session_id": "g" * 65}, "invalid_argument", "session_id"),
    ("session", {"action": "get", "session_id": "' OR 1=1 --"}, "invalid_argument", "session_id"),
    ("session", {"action": "spawn", "project_id": OTHER_PROJECT, "message": "x"}, "not_found", "project"),
    ("session", {"action": "spawn", "project_id": "gogol_1", "message": "x"}, "not_found", "project"),
    ("session", {**SPAWN, "message": "x", "workspace_id": OTHER_PROJECT}, "not_found", "workspace"),
    ("session", {"action": "list", "cursor": "AAAA"}, "invalid_cursor", "cursor"),
    ("session", {"action": "list", "cursor": "x" * 2000}, "invalid_cursor", "cursor"),
    ("session", {"action": "answer", "request_id": "req_none", "reply": "once"}, "not_found", "request"),
    ("session", {"action": "answer", "request_id": "req_none", "answers": {"a": {"b": []}}}, "not_found", "request"),
    ("session", {"action": "tree"}, "invalid_argument", "session_id"),
    ("session", {"action": "tree", "session_id": "gogol_none", "limit": 201}, "invalid_argument", "limit"),
    ("config_limits", {"session_id": "gogol_none"}, "not_found", "session"),
    ("config_limits", {"project_id": OTHER_PROJECT}, "not_found", "project"),
    ("config_limits", {"action": "get"}, "invalid_argument", "no argument"),
    ("workspace", {"action": "read"}, "invalid_argument", "path"),
    ("workspace", {**LOOK, "path": "../../etc/passwd"}, "invalid_argument", "path"),
    ("workspace", {**LOOK, "path": "/etc/passwd"}, "invalid_argument", "path"),
    ("workspace", {**LOOK, "path": "a\u0000b"}, "invalid_argument", "path"),
    ("workspace", {**LOOK, "path": "x" * 1025}, "too_large", "path"),
    ("workspace", {**LOOK, "path": ["a"]}, "invalid_argument", "path"),
    ("workspace", {**LOOK, "action": "files", "glob": "../*"}, "invalid_argument", "pattern"),
    ("workspace", {**LOOK, "action": "push"}, "unknown_action", "push"),
    ("workspace", {"action": "delete", "project_id": PROJECT}, "invalid_argument", "workspace_id"),
    ("workspace", {**LOOK, "action": "create", "from_workspace": OTHER_PROJECT}, "not_found", "workspace"),
    ("workspace", {"action": "list", "cursor": "AAAA", "project_id": PROJECT}, "invalid_cursor", "cursor"),
    ("token", {"action": "create", "name": "x", "scope": "root"}, "invalid_argument", "scope"),
    ("token", {"action": "create", "name": "x", "scope": f"project:{OTHER_PROJECT}"}, "not_found", "project"),
    ("token", {"action": "revoke", "token_id": "nobody"}, "not_found", "token"),
    ("token", {"action": "revoke"}, "invalid_argument", "token_id"),
]


def _deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


DEEP: list[Case] = [
    ("session", {"action": "answer", "request_id": "r", "answers": {"a": _deep(60)}}, "invalid_argument", "answers"),
]


def _check(shape: dict[str, Any], code: str, word: str) -> None:
    assert shape["code"] == code, shape
    assert word.lower() in f"{shape['message']} {shape.get('field', '')}".lower(), shape
    assert len(shape["message"]) < 300, shape
    assert shape["message"].isprintable(), shape
    assert shape["request_id"], shape


def _named(case: Case) -> str:
    return f"{case[0][:20]}-{json.dumps(case[1])[:60]}".encode("ascii", "replace").decode()


async def test_sixty_hostile_calls_each_get_a_clear_error_over_http(doors: Doors) -> None:
    assert len(CASES) + len(DEEP) >= 60
    with trio.fail_after(60):
        async with doors.client() as client:
            for tool, arguments, code, word in [*CASES, *DEEP]:
                path = f"/v1/tools/{tool}"
                answer = await client.post(path, json=arguments)
                assert 400 <= answer.status_code < 500, (tool, arguments, answer.text)
                _check(answer.json()["error"], code, word)
                assert answer.headers["x-request-id"] == answer.json()["error"]["request_id"]
            assert (await client.get("/health")).json() == {"status": "ok"}


@pytest.mark.parametrize("modern", [False, True], ids=["handshake", "2026-07-28"])
async def test_sixty_hostile_calls_each_get_the_same_error_over_mcp_and_it_fits_the_output_schema(
    doors: Doors, modern: bool
) -> None:
    with trio.fail_after(60):
        async with open_rpc(doors, modern=modern) as rpc:
            listed = (await rpc.ask("tools/list"))["result"]["tools"]
            schemas = {tool["name"]: tool["outputSchema"] for tool in listed}
            for tool, arguments, code, word in [*CASES, *DEEP]:
                if modern and not (tool.isascii() and tool.isprintable()):
                    continue  # the name travels in a header too
                answer = await rpc.ask("tools/call", name=tool, arguments=arguments)
                assert "result" in answer, (arguments, answer)
                result = answer["result"]
                assert result["isError"] is True, (tool, arguments)
                shape = result["structuredContent"]["error"]
                _check(shape, code, word)
                text = result["content"][0]["text"]
                assert text.startswith(f"{code}: {shape['message']}"), text
                assert text.endswith(shape.get("hint", "")), text
                jsonschema.validate(result["structuredContent"], schemas.get(tool, schemas["session"]))
            assert (await rpc.call("session", action="list"))["isError"] is False


Raw = tuple[str, dict[str, Any], int]

BODIES: list[Raw] = [
    ("not json", {"content": b"{not json"}, 400),
    ("empty body", {"content": b""}, 400),
    ("a number", {"content": b"7"}, 400),
    ("a batch", {"content": b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]'}, 400),
    ("not UTF-8", {"content": b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}'}, 400),
    ("deep nesting", {"content": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + b"[" * 100_000}, 400),
    ("a lone surrogate", {"content": b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}'}, 400),
    ("no content type", {"content": b"{}", "headers": {"content-type": ""}}, 415),
    ("text/plain", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415),
    ("accepts html only", {"content": b"{}", "headers": {"accept": "text/html"}}, 406),
    (
        "an unknown session",
        {"content": b'{"jsonrpc":"2.0","id":1,"method":"ping"}', "headers": {"mcp-session-id": "x"}},
        404,
    ),
    ("a huge id", {"content": b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"ping"}'}, 400),
]


@pytest.mark.parametrize("modern", [False, True], ids=["handshake", "2026-07-28"])
async def test_malformed_requests_to_mcp_are_refused_in_json(doors: Doors, modern: bool) -> None:
    with trio.fail_after(30):
        async with open_rpc(doors, modern=modern) as rpc:
            for name, parts, status in BODIES:
                headers = {**rpc.headers("ping"), **parts.get("headers", {})}
                answer = await rpc.http.post("/mcp", headers=headers, content=parts["content"])
                if modern and name == "an unknown session":
                    continue  # there are no sessions in that era
                assert answer.status_code == status, (name, answer.status_code, answer.text)
                error = messages(answer.text)[0]["error"]
                assert isinstance(error["code"], int), name
                assert error["message"], name
            for method in ("PUT", "PATCH"):
                answer = await rpc.http.request(method, "/mcp", headers=rpc.headers("ping"), content=b"{}")
                assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST, DELETE")
            assert (await rpc.call("session", action="list"))["isError"] is False


CALLS: list[tuple[Any, str]] = [
    ({"name": 7, "arguments": {}}, "name"),
    ({"arguments": {}}, "name"),
    ({"name": "session", "arguments": [1]}, "arguments"),
    ({"name": "session", "arguments": "spawn"}, "arguments"),
]


async def test_a_malformed_tool_call_is_said_in_words(doors: Doors) -> None:
    with trio.fail_after(20):
        for modern in (False, True):
            async with open_rpc(doors, modern=modern) as rpc:
                for params, word in CALLS:
                    answer = await rpc.send("tools/call", params, name=str(params.get("name", "")))
                    error = messages(answer.text)[-1]["error"]
                    assert error["code"] in (-32602, -32600, -32020), error
                    assert modern or word in error["message"], error
                answer = await rpc.ask("tools/call", name="session", arguments=None)
                assert answer["result"]["structuredContent"]["error"]["field"] == "action"


HTTP_BODIES: list[tuple[str, Callable[[], bytes], int, str]] = [
    ("not json", lambda: b"{", 400, "not JSON"),
    ("a list", lambda: b"[]", 400, "JSON object"),
    ("a string", lambda: b'"spawn"', 400, "JSON object"),
    ("NaN", lambda: b'{"action": "list", "limit": NaN}', 400, "JSON"),
    ("Infinity", lambda: b'{"action": "list", "limit": 1e999}', 400, "limit"),
    ("not UTF-8", lambda: b'{"action": "\xff"}', 400, "UTF-8"),
    ("deep", lambda: b"[" * 200_000, 400, "deep"),
    ("a lone surrogate", lambda: b'{"action": "\\udfff"}', 400, "surrogate"),
    ("many arguments", lambda: json.dumps({f"a{n}": n for n in range(500)}).encode(), 400, "200"),
]


async def test_malformed_bodies_to_the_tools_are_refused_in_json(doors: Doors) -> None:
    with trio.fail_after(20):
        async with doors.client() as client:
            for name, body, status, word in HTTP_BODIES:
                answer = await client.post("/v1/tools/session", content=body())
                assert answer.status_code == status, (name, answer.text)
                shape = answer.json()["error"]
                assert word in shape["message"], (name, shape)
            for method, path, status in (
                ("GET", "/v1/tools/session", 405),
                ("DELETE", "/v1/events", 405),
                ("GET", "/v1/nothing", 404),
                ("GET", "/.well-known/oauth-protected-resource", 404),
                ("POST", "/register", 404),
                ("POST", "/health", 405),
            ):
                answer = await client.request(method, path)
                assert answer.status_code == status, (method, path, answer.text)
                assert answer.json()["error"]["message"]


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(doors: Doors) -> None:
    host, port = doors.url.removeprefix("http://").split(":")
    head = f"POST /v1/tools/session HTTP/1.1\r\nHost: {host}\r\nContent-Length: {64 << 20}\r\n"
    head += f"Authorization: Bearer {doors.secrets['admin']}\r\n\r\n"
    with trio.fail_after(20):
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            await stream.send_all(head.encode() + b"{")
            answer = b""
            while chunk := await stream.receive_some():
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 413"), answer
    shape = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert shape["code"] == "too_large"
    assert "server.max_body_bytes" in shape["hint"]
