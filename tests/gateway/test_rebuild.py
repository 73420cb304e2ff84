"""What goes out of a request, what stays, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oubliette.core.pricing import Prices
from oubliette.errors import RequestError
from oubliette.gateway.models import ResolvedModel, Wire
from oubliette.gateway.rebuild import Rebuilt
from oubliette.gateway.routes import Route


def model(wire: Wire, **more: Any) -> ResolvedModel:
    fields: dict[str, Any] = {
        "alias": "a",
        "wire": wire,
        "scripted": False,
        "model": "real-name",
        "provider": "p",
        "base_url": "https://h/v1",
        "api_key": "k",
        "extra_headers": {},
        "display_name": "a",
        "max_output_tokens": 4000,
        "output_cap": None,
        "context_tokens": 100_000,
        "images": True,
        "pdf": True,
        "reasoning": True,
        "tool_call": True,
        "known": True,
        "hosted_tools": False,
        "prices": Prices(1, 1),
    }
    return ResolvedModel(**{**fields, **more})


def rebuilt(wire: Wire, body: dict[str, Any], **more: Any) -> Rebuilt:
    return Route(wire, "a", True).rebuild(body, model(wire, **more))


def text_of(part: Any) -> str:
    return json.dumps(part)


# Every wire


@pytest.mark.parametrize("wire", list(Wire))
def test_the_alias_is_replaced_by_the_real_name(wire: Wire) -> None:
    out = rebuilt(wire, {"model": "a", "messages": [], "input": [], "contents": []}).body
    assert out.get("model") == (None if wire is Wire.GOOGLE else "real-name")
    if wire is Wire.GOOGLE:
        assert Route(wire, "a", True).upstream_path(model(wire), streaming=True) == (
            "/models/real-name:streamGenerateContent?alt=sse"
        )


@pytest.mark.parametrize("wire", list(Wire))
def test_unknown_fields_are_left_out_and_named(wire: Wire) -> None:
    made = rebuilt(
        wire,
        {
            "model": "a",
            "service_tier": "priority",
            "metadata": {"user_id": "x"},
            "user": "x",
            "webhook": "https://evil",
            "fallbacks": [{"model": "other"}],
            "models": ["other"],
        },
    )
    assert not {"service_tier", "metadata", "user", "webhook", "fallbacks", "models"} & set(made.body)
    assert "webhook" in made.removed


LIMITS = {
    Wire.ANTHROPIC: "max_tokens",
    Wire.OPENAI: "max_output_tokens",
    Wire.GOOGLE: "maxOutputTokens",
    Wire.CHAT: "max_tokens",
}


@pytest.mark.parametrize("wire", list(Wire))
@pytest.mark.parametrize(("asked", "sent"), [(10, 10), (9_999_999, 4000), (-1, 4000), ("many", 4000), (True, 4000)])
def test_the_answers_length_is_bounded(wire: Wire, asked: object, sent: int) -> None:
    name = LIMITS[wire]
    body: dict[str, Any] = {"generationConfig": {name: asked}} if wire is Wire.GOOGLE else {name: asked}
    out = rebuilt(wire, body).body
    assert (out["generationConfig"] if wire is Wire.GOOGLE else out)[name] == sent


def test_a_chat_answer_is_bounded_by_the_config_even_when_nothing_was_asked() -> None:
    assert rebuilt(Wire.CHAT, {}, output_cap=500, max_output_tokens=500).body["max_tokens"] == 500
    assert "max_tokens" not in rebuilt(Wire.CHAT, {}).body


def test_googles_other_spelling_is_no_way_around_a_rule() -> None:
    out = rebuilt(
        Wire.GOOGLE,
        {
            "generation_config": {"max_output_tokens": 99_999, "candidate_count": 8},
            "contents": [{"role": "user", "parts": [{"file_data": {"file_uri": "https://evil/x"}}]}],
            "tools": [{"google_search": {}}, {"function_declarations": [{"name": "f"}], "code_execution": {}}],
        },
    ).body
    assert out["generationConfig"] == {"maxOutputTokens": 4000}
    assert "evil" not in text_of(out)
    assert out["tools"] == [{"functionDeclarations": [{"name": "f"}]}]


def test_one_object_where_google_means_a_list_is_no_way_around_a_rule() -> None:
    evil = {"fileData": {"fileUri": "https://evil/x"}}
    out = rebuilt(
        Wire.GOOGLE,
        {
            "contents": {"role": "user", "parts": evil},
            "systemInstruction": {"parts": evil},
        },
    ).body
    nested = {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}, "parts": evil}}]}
    assert "evil" not in text_of(out)
    assert "evil" not in text_of(rebuilt(Wire.GOOGLE, {"contents": [nested]}).body)
    assert rebuilt(Wire.GOOGLE, {"contents": {"parts": {"text": "hi"}}}).body["contents"] == [
        {"parts": [{"text": "hi"}]}
    ]


# Tools that the provider runs

HOSTED: dict[Wire, list[dict[str, Any]]] = {
    Wire.ANTHROPIC: [
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "code_execution_20250825", "name": "code_execution"},
        {"type": "computer_20250124", "name": "computer", "display_width_px": 1},
        {"type": "web_fetch_20250910", "name": "web_fetch"},
        {"type": "mcp_toolset", "mcp_server_name": "x"},
    ],
    Wire.OPENAI: [
        {"type": "web_search"},
        {"type": "file_search", "vector_store_ids": ["v"]},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "computer_use_preview"},
        {"type": "mcp", "server_url": "https://evil"},
        {"type": "image_generation"},
    ],
    Wire.GOOGLE: [{"googleSearch": {}}, {"codeExecution": {}}, {"urlContext": {}}, {"fileSearch": {}}],
    Wire.CHAT: [{"type": "web_search"}, {"type": "mcp", "server_url": "https://evil"}],
}
OWN: dict[Wire, dict[str, Any]] = {
    Wire.ANTHROPIC: {"name": "bash", "input_schema": {"type": "object"}},
    Wire.OPENAI: {"type": "function", "name": "bash", "parameters": {}},
    Wire.GOOGLE: {"functionDeclarations": [{"name": "bash"}]},
    Wire.CHAT: {"type": "function", "function": {"name": "bash"}},
}


@pytest.mark.parametrize("wire", list(Wire))
def test_hosted_tools_are_removed_and_the_agents_own_stay(wire: Wire) -> None:
    made = rebuilt(wire, {"tools": [*HOSTED[wire], OWN[wire]]})
    assert made.body["tools"] == [OWN[wire]]
    assert len([one for one in made.removed if one.startswith("tool")]) == len(HOSTED[wire])


@pytest.mark.parametrize("wire", list(Wire))
def test_an_alias_may_allow_hosted_tools(wire: Wire) -> None:
    tools = [*HOSTED[wire], OWN[wire]]
    assert rebuilt(wire, {"tools": tools}, hosted_tools=True).body["tools"] == tools


@pytest.mark.parametrize("wire", list(Wire))
def test_without_any_tool_left_nothing_about_tools_is_sent(wire: Wire) -> None:
    out = rebuilt(
        wire,
        {"tools": HOSTED[wire], "tool_choice": {"type": "web_search"}, "toolConfig": {}, "parallel_tool_calls": True},
    ).body
    assert not {"tools", "tool_choice", "toolConfig", "parallel_tool_calls"} & set(out)


def test_a_choice_of_a_removed_tool_goes_with_it() -> None:
    chosen = {"type": "tool", "name": "web_search"}
    out = rebuilt(Wire.ANTHROPIC, {"tools": [*HOSTED[Wire.ANTHROPIC], OWN[Wire.ANTHROPIC]], "tool_choice": chosen}).body
    assert "tool_choice" not in out
    kept = rebuilt(Wire.ANTHROPIC, {"tools": [OWN[Wire.ANTHROPIC]], "tool_choice": {"type": "tool", "name": "bash"}})
    assert kept.body["tool_choice"] == {"type": "tool", "name": "bash"}


def test_anthropic_servers_and_containers_are_removed() -> None:
    body = {"mcp_servers": [{"url": "https://evil"}], "container": "c"}
    assert not set(body) & set(rebuilt(Wire.ANTHROPIC, body).body)
    assert set(body) <= set(rebuilt(Wire.ANTHROPIC, body, hosted_tools=True).body)


# Parts that would be fetched or are stored elsewhere

URL = "https://169.254.169.254/secret"
FETCHED: dict[Wire, list[dict[str, Any]]] = {
    Wire.ANTHROPIC: [
        {"type": "image", "source": {"type": "url", "url": URL}},
        {"type": "document", "source": {"type": "url", "url": URL}},
        {"type": "image", "source": {"type": "file", "file_id": URL}},
        {"type": "container_upload", "file_id": URL},
        {
            "type": "tool_result",
            "tool_use_id": "t",
            "content": [{"type": "image", "source": {"type": "url", "url": URL}}],
        },
        {
            "type": "document",
            "source": {"type": "content", "content": [{"type": "image", "source": {"type": "url", "url": URL}}]},
        },
        {"type": "mcp_tool_use", "id": "x", "server_name": URL, "name": "n", "input": {}},
    ],
    Wire.OPENAI: [
        {"type": "input_image", "image_url": URL},
        {"type": "input_image", "file_id": URL},
        {"type": "input_file", "file_url": URL},
        {"type": "input_file", "file_id": URL},
        {"type": "input_file", "file_data": "data:x;base64,", "file_url": URL},
        {"type": "input_audio", "input_audio": {"url": URL}},
    ],
    Wire.GOOGLE: [
        {"fileData": {"fileUri": URL}},
        {"text": "x", "fileData": {"fileUri": URL}},
        {"executableCode": {"code": URL}},
        {"functionResponse": {"name": "f", "response": {}, "parts": [{"file_data": {"file_uri": URL}}]}},
    ],
    Wire.CHAT: [
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "image_url", "image_url": URL},
        {"type": "video_url", "video_url": {"url": URL}},
        {"type": "file", "file": {"file_id": URL}},
        {"type": "file", "file": {"file_data": URL}},
        {"type": "something", "url": URL},
    ],
}
INLINE: dict[Wire, list[dict[str, Any]]] = {
    Wire.ANTHROPIC: [
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}},
        {"type": "thinking", "thinking": "t", "signature": "s"},
        {"type": "tool_use", "id": "t", "name": "bash", "input": {"url": URL}},
    ],
    Wire.OPENAI: [
        {"type": "input_text", "text": "x"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
    ],
    Wire.GOOGLE: [
        {"text": "x", "thoughtSignature": "s"},
        {"inlineData": {"mimeType": "image/png", "data": "AA=="}},
        {"functionCall": {"name": "f", "args": {"url": URL}}},
        {"functionResponse": {"name": "f", "response": {"content": "x"}}},
    ],
    Wire.CHAT: [
        {"type": "text", "text": "x"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "file", "file": {"filename": "a", "file_data": "data:application/pdf;base64,AA=="}},
    ],
}


def with_parts(wire: Wire, parts: list[dict[str, Any]]) -> dict[str, Any]:
    if wire is Wire.GOOGLE:
        return {"contents": [{"role": "user", "parts": parts}]}
    message = {"role": "user", "content": parts}
    return {"input": [message]} if wire is Wire.OPENAI else {"messages": [message]}


@pytest.mark.parametrize("wire", list(Wire))
def test_what_the_provider_would_fetch_is_replaced_by_a_note(wire: Wire) -> None:
    for part in FETCHED[wire]:
        made = rebuilt(wire, with_parts(wire, [part]))
        assert URL not in text_of(made.body), part
        assert "left out" in text_of(made.body)
        assert made.removed
        assert URL in text_of(rebuilt(wire, with_parts(wire, [part]), hosted_tools=True).body)


@pytest.mark.parametrize("wire", list(Wire))
def test_what_is_sent_along_stays_as_it_is(wire: Wire) -> None:
    body = with_parts(wire, INLINE[wire])
    made = rebuilt(wire, body)
    assert not made.removed
    assert {name: made.body[name] for name in body} == body


def test_openai_items_of_hosted_tools_become_notes_and_references_vanish() -> None:
    items = [
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "item_reference", "id": "msg_1"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "e"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": URL}]},
    ]
    out = rebuilt(Wire.OPENAI, {"input": items}).body["input"]
    assert [one.get("type", "message") for one in out] == [
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
    ]
    assert URL not in text_of(out)


@pytest.mark.parametrize(
    ("wire", "field"),
    [
        (Wire.OPENAI, {"previous_response_id": "resp_1"}),
        (Wire.OPENAI, {"conversation": "conv_1"}),
        (Wire.OPENAI, {"background": True}),
        (Wire.OPENAI, {"prompt": {"id": "pmpt_1"}}),
        (Wire.GOOGLE, {"cachedContent": "cachedContents/1"}),
        (Wire.GOOGLE, {"cached_content": "cachedContents/1"}),
    ],
)
def test_what_is_kept_at_the_provider_is_refused(wire: Wire, field: dict[str, Any]) -> None:
    for hosted in (False, True):
        with pytest.raises(RequestError) as caught:
            rebuilt(wire, field, hosted_tools=hosted)
        assert caught.value.code == "invalid_argument"


def test_openai_stores_nothing_and_shows_only_its_encrypted_reasoning() -> None:
    out = rebuilt(
        Wire.OPENAI,
        {"store": True, "background": False, "include": ["reasoning.encrypted_content", "file_search_call.results"]},
    ).body
    assert out["store"] is False
    assert out["include"] == ["reasoning.encrypted_content"]
    assert "background" not in out


def test_chat_streams_report_their_usage() -> None:
    out = rebuilt(Wire.CHAT, {"stream": True, "stream_options": {"include_usage": False, "x": 1}}).body
    assert out["stream_options"] == {"include_usage": True}
    assert "stream_options" not in rebuilt(Wire.CHAT, {"stream": False, "stream_options": {"x": 1}}).body


def test_one_answer_only() -> None:
    assert "n" not in rebuilt(Wire.CHAT, {"n": 100}).body
    assert (
        "candidateCount"
        not in rebuilt(Wire.GOOGLE, {"generationConfig": {"candidateCount": 8}}).body["generationConfig"]
    )


def test_a_thinking_budget_is_fitted_below_the_bound() -> None:
    thinking = {"type": "enabled", "budget_tokens": 32_000}
    out = rebuilt(Wire.ANTHROPIC, {"thinking": thinking, "max_tokens": 64_000}).body
    assert out["max_tokens"] == 4000
    assert out["thinking"]["budget_tokens"] == 3999
    assert "thinking" not in rebuilt(Wire.ANTHROPIC, {"thinking": thinking, "max_tokens": 100}).body
    adaptive = {"type": "adaptive"}
    assert rebuilt(Wire.ANTHROPIC, {"thinking": adaptive, "max_tokens": 100}).body["thinking"] == adaptive


@pytest.mark.parametrize("wire", list(Wire))
@pytest.mark.parametrize(
    "odd",
    [
        None,
        5,
        "text",
        {"a": 1},
        [1, None, "x", {"content": 5, "parts": "x"}],
        [[]],
        [{"type": ["a"], "content": [{"type": {}}]}],
    ],
)
def test_wrong_types_do_not_break_the_rebuilding(wire: Wire, odd: Any) -> None:
    names = ("messages", "input", "contents", "tools", "system", "systemInstruction", "generationConfig", "thinking")
    body = dict.fromkeys((*names, "tool_choice", "include", "stream", "max_tokens"), odd)
    rebuilt(wire, body).encode()
