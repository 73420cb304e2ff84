"""The scripted model: directives, and that each wire's conversation is understood alike."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from oubliette.gateway.models import Wire
from oubliette.gateway.scripted import Answer, Cut, Pause, Scripted, Text, Thought, ToolCall
from oubliette.gateway.scripted_reply import reply
from oubliette.gateway.scripted_request import Call, Conversation, Picture, Said, read_request
from tests.gateway.world import WIRES, request_body


def user(text: str, *more: str) -> Said:
    return Said("user", (text, *more))


def spoke(text: str = "ok") -> Said:
    return Said("assistant", (text,))


CALLED = Said("assistant", calls=(Call("c", "bash", {}),))


def result(*texts: str) -> Said:
    return Said("tool", results=texts)


def answer(*said: Said, system: str = "", model: Scripted | None = None, tools: tuple[str, ...] = ()) -> Answer:
    return (model or Scripted()).answer(Conversation(system, said, tools, {"model": "m"}))


def text_of(made: Answer) -> str:
    return "\n".join(action.text for action in made.actions if isinstance(action, Text))


def test_without_a_directive_it_says_what_it_is_and_echoes_the_first_line() -> None:
    assert "scripted model" in text_of(answer(user("\n  Fix the bug\nin foo")))
    assert text_of(answer(user("\n  Fix the bug\nin foo"))).endswith("You wrote: Fix the bug")
    assert text_of(answer()).endswith("You wrote: ")


def test_directives_are_done_in_their_order() -> None:
    made = answer(user("Please:\n@reason hm\n@say one\\ntwo\n@delay 0.5\n@say three"))
    assert made.actions == [Thought("hm"), Text("one\ntwo"), Pause(0.5), Text("three")]
    assert not made.calls


def test_a_tool_call_ends_a_step_and_its_result_begins_the_next() -> None:
    script = user('@say first\n@tool bash {"command": "ls"}\n@echo-last-tool\n@tool read\n')
    assert answer(script).actions == [Text("first"), ToolCall("bash", {"command": "ls"})]
    assert answer(script, CALLED, result("a.txt")).actions == [Text("a.txt"), ToolCall("read", {})]
    assert text_of(answer(script, CALLED, result("a"), CALLED, result("b"))) == "Done."
    assert text_of(answer(script, CALLED, result("a"), CALLED, result("b"), spoke())) == "The script is finished."


def test_several_tools_at_once_are_one_step() -> None:
    made = answer(user('@tools [{"name": "a", "arguments": {"x": 1}}, {"name": "b"}]\n@say end'))
    assert made.actions == [ToolCall("a", {"x": 1}), ToolCall("b", {})]
    assert text_of(answer(user('@tools [{"name": "a"}]\n@say end'), CALLED, result("1", "2"))) == "end"


def test_repeat_does_the_next_directive_again_with_its_number() -> None:
    script = user('@repeat 3\n@tool bash {"n": "%i%"}\n@say end')
    assert answer(script).actions == [ToolCall("bash", {"n": "1"})]
    assert answer(script, CALLED, result("")).actions == [ToolCall("bash", {"n": "2"})]
    assert answer(script, *([CALLED, result("")] * 3)).actions == [Text("end")]
    assert text_of(answer(user("@repeat 2\n@say %i%\n@say %i%"))) == "1\n2\n%i%"


def test_only_the_newest_prompt_counts() -> None:
    first = user("@tool bash {}\n@say a")
    assert text_of(answer(first, CALLED, result(""), spoke("a"), user("@say b"))) == "b"
    assert "You wrote: thanks" in text_of(answer(first, CALLED, result(""), spoke("a"), user("thanks")))
    assert "You wrote: stop" in text_of(answer(first, CALLED, result("aborted"), user("stop")))


@pytest.mark.parametrize(
    "note", ["Attached media from tool result:", "<system-reminder>\nx", "Continue if you have next steps, or stop"]
)
def test_what_the_agent_writes_by_itself_does_not_end_a_script(note: str) -> None:
    assert text_of(answer(user("@tool bash {}\n@say b"), CALLED, result(""), user(note))) == "b"


def test_a_prompt_whose_turn_failed_and_was_joined_with_the_next_is_passed_over() -> None:
    assert text_of(answer(user("@fail 400", "@say fine"))) == "fine"


def test_a_failure_happens_each_time_or_as_often_as_it_says() -> None:
    model = Scripted()
    always = user("@fail 500 out of order\n@say never")
    for _ in range(3):
        failure = answer(always, model=model).failure
        assert failure is not None
        assert (failure.status, failure.message) == (500, "out of order")
    twice = user("@fail 429 x2 slow down\n@say at last")
    failures = [answer(twice, model=model).failure for _ in range(3)]
    assert [failure and failure.message for failure in failures] == ["slow down", "slow down", None]
    assert text_of(answer(twice, model=model)) == "at last"
    again = answer(twice, spoke(), user("x"), spoke(), twice, model=model)
    assert again.failure is not None, "the same words in a later message are another step"


def test_failures_are_counted_for_each_session_and_forgotten_in_the_end() -> None:
    model = Scripted()
    conversation = Conversation("", (user("@fail 429 x1\n@say ok"),), ())
    assert model.answer(conversation, "a").failure
    assert model.answer(conversation, "b").failure
    assert not model.answer(conversation, "a").failure
    for number in range(1100):
        model.answer(conversation, f"s{number}")
    assert len(model._failed) == 1000


def test_a_cut_ends_the_answer_there() -> None:
    assert answer(user("@say a\n@cut\n@say b")).actions == [Text("a"), Cut()]
    model = Scripted()
    script = user("@say a\n@cut x1\n@say b")
    assert answer(script, model=model).actions == [Text("a"), Cut(1)]
    assert answer(script, model=model).actions == [Text("a"), Text("b")]


def test_it_quotes_earlier_messages_the_system_text_the_tools_and_the_settings() -> None:
    said = (user("red"), spoke(), user("blue"), spoke())
    assert text_of(answer(*said, user("@recall 1"))) == "user message 1 was: red"
    assert text_of(answer(*said, user("@recall 2"))) == "user message 2 was: blue"
    assert text_of(answer(*said, user("@recall -2"))) == "user message -2 was: blue"
    assert text_of(answer(*said, user("@recall 9"))) == "there is no user message 9"
    system = "x" * 50 + "be brief" + "y" * 500
    assert "be brief" in text_of(answer(user("@system find be brief"), system=system))
    assert "has no" in text_of(answer(user("@system find be long"), system=system))
    assert text_of(answer(user("@system 49 9"), system=system)) == "xbe brief"
    assert text_of(answer(user("@tools?"), tools=("bash", "read"))) == "tools: bash, read"
    assert json.loads(text_of(answer(user("@settings")))) == {"model": "m"}
    assert text_of(answer(user("@echo-last-tool"))) == "(there is no tool result)"
    assert text_of(answer(user("@tool a\n@echo-last-tool 3"), CALLED, result("first", "second"))) == "sec"


def test_it_quotes_fields_of_a_result_a_line_for_each_object() -> None:
    told = {
        "sessions": [
            {"outcome": "completed", "final_text": " one\n", "turn": 1},
            {"outcome": "failed", "final_text": "", "error": {"message": "no luck"}},
            {"status": "running"},
        ]
    }
    script = user("@tool a\n@quote outcome final_text error.message")
    assert text_of(answer(script, CALLED, result(json.dumps(told)))) == "- completed: one\n- failed: no luck"
    assert text_of(answer(user("@tool a\n@quote turn"), CALLED, result(json.dumps(told)))) == "- 1"
    assert "has no colour" in text_of(answer(user("@tool a\n@quote colour"), CALLED, result(json.dumps(told))))
    assert "is not JSON" in text_of(answer(user("@tool a\n@quote x"), CALLED, result("plain words")))
    assert "is not JSON" in text_of(answer(user("@quote x")))
    assert "takes the names of fields" in text_of(answer(user("@quote")))


def test_it_says_which_images_it_was_shown() -> None:
    shown = Said("user", ("@images",), pictures=(Picture("image/png", b"abc"),))
    digest = hashlib.sha256(b"abc").hexdigest()
    assert text_of(answer(shown)) == f"images: 1\nimage/png 3 bytes sha256 {digest}"
    assert text_of(answer(user("@images"))) == "images: 0"


def test_usage_is_what_it_says_or_a_quarter_of_the_characters() -> None:
    told = answer(user("@usage 10 20 30 40 5\n@say x")).usage
    assert (told.input_tokens, told.output_tokens, told.cache_read_tokens) == (10, 20, 30)
    assert (told.cache_write_tokens, told.reasoning_tokens) == (40, 5)
    guessed = Scripted().answer(Conversation("", (user("@say 12345678"),), (), characters=400)).usage
    assert (guessed.input_tokens, guessed.output_tokens) == (100, 2)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("@tool bash {command: ls}", "not JSON"),
        ("@tool bash [1]", "JSON object"),
        ("@tools {}", "@tools takes a list"),
        ('@tools ["x"]', "@tools takes a list"),
        ("@delay soon", "takes a number"),
        ("@fail", "takes a number"),
        ("@fail 200", "400 to 599"),
        ("@usage many", "takes a number"),
        ("@recall first", "takes a number"),
        ("@say a\n@toool bash {}", "did you mean @tool"),
        ("@repeat 5000\n@tool a", "1000 steps"),
    ],
)
def test_a_mistake_in_a_script_is_said_in_the_answer(line: str, complaint: str) -> None:
    made = answer(user(line))
    assert "cannot be followed" in text_of(made)
    assert complaint in text_of(made)
    assert made.failure is None


def test_mentions_and_mail_addresses_are_no_directives() -> None:
    text = "@alice please look\nmail bob@say.example\n  @Override\n@@say x\nsee @say"
    assert "You wrote: mail" in text_of(answer(user(text)))
    assert text_of(answer(user(text + "\n@say x"))) == "x"


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("You are a title generator. You output ONLY a thread title.", "Scripted: Fix it"),
        ("You are a context summarization agent. You are given", "## Goal"),
        ("Summarize what was done in this conversation.", "## Goal"),
    ],
)
def test_the_agents_own_requests_get_harmless_answers(system: str, expected: str) -> None:
    made = answer(user("Generate a title:"), user("Fix it\n@tool bash {}\n@fail 500"), system=system)
    assert text_of(made).startswith(expected)
    assert not made.calls
    assert made.failure is None


# The four wires

CONVERSATIONS: dict[Wire, dict[str, Any]] = {
    Wire.ANTHROPIC: {
        "system": [{"type": "text", "text": "be brief"}],
        "tools": [{"name": "bash", "input_schema": {}}],
        "messages": [
            {"role": "user", "content": "@say a"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "a"},
                    {"type": "tool_use", "id": "c1", "name": "bash", "input": {"command": "ls"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "c1",
                        "content": [
                            {"type": "text", "text": "out"},
                            {
                                "type": "image",
                                "source": {"type": "base64", "media_type": "image/png", "data": "YWJj"},
                            },
                        ],
                    }
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
            {"role": "user", "content": [{"type": "text", "text": "next"}]},
        ],
    },
    Wire.OPENAI: {
        "tools": [{"type": "function", "name": "bash"}],
        "input": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "input_text", "text": "@say a"}]},
            {"type": "reasoning", "summary": []},
            {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c1", "name": "bash", "arguments": '{"command": "ls"}'},
            {
                "type": "function_call_output",
                "call_id": "c1",
                "output": [
                    {"type": "input_text", "text": "out"},
                    {"type": "input_image", "image_url": "data:image/png;base64,YWJj"},
                ],
            },
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "next"}]},
        ],
    },
    Wire.GOOGLE: {
        "systemInstruction": {"parts": [{"text": "be brief"}]},
        "tools": [{"functionDeclarations": [{"name": "bash"}]}],
        "contents": [
            {"role": "user", "parts": [{"text": "@say a"}]},
            {
                "role": "model",
                "parts": [
                    {"text": "hm", "thought": True},
                    {"text": "a"},
                    {"functionCall": {"id": "c1", "name": "bash", "args": {"command": "ls"}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"name": "bash", "response": {"content": "out"}}},
                    {"inlineData": {"mimeType": "image/png", "data": "YWJj"}},
                ],
            },
            {"role": "model", "parts": [{"text": "b"}]},
            {"role": "user", "parts": [{"text": "next"}]},
        ],
    },
    Wire.CHAT: {
        "tools": [{"type": "function", "function": {"name": "bash"}}],
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "@say a"},
            {
                "role": "assistant",
                "content": "a",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
                ],
            },
            {
                "role": "tool",
                "tool_call_id": "c1",
                "content": [
                    {"type": "text", "text": "out"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,YWJj"}},
                ],
            },
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": [{"type": "text", "text": "next"}]},
        ],
    },
}


@pytest.mark.parametrize("wire", WIRES)
def test_the_same_conversation_is_read_from_every_wire(wire: Wire) -> None:
    found = read_request(wire, CONVERSATIONS[wire], streaming=True)
    assert found.system == "be brief"
    assert found.tools == ("bash",)
    assert found.said == (
        Said("user", ("@say a",)),
        Said("assistant", ("a",), (Call("c1", "bash", {"command": "ls"}),)),
        Said("tool", results=("out",), pictures=(Picture("image/png", b"abc"),)),
        Said("assistant", ("b",)),
        Said("user", ("next",)),
    )


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("odd", [{}, {"messages": 5, "input": 5, "contents": 5, "tools": 5, "system": 5}])
def test_an_odd_request_is_an_empty_conversation(wire: Wire, odd: dict[str, Any]) -> None:
    assert read_request(wire, odd, streaming=False).said == ()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("streaming", [True, False])
def test_every_wire_carries_text_thought_and_tool_calls(wire: Wire, streaming: bool) -> None:
    script = '@reason deep\n@say wörld\n@tools [{"name": "a", "arguments": {"x": "ä"}}, {"name": "b"}]'
    made = reply(Scripted(), wire, request_body(wire, script), streaming=streaming, model="m", session="")
    assert made.status == 200
    text = b"".join(piece.data for piece in made.pieces).decode()
    assert all(part in text for part in ("deep", "wörld", '"a"', '"b"'))


@pytest.mark.parametrize("wire", WIRES)
def test_text_in_pieces_comes_with_pauses_between_them(wire: Wire) -> None:
    body = request_body(wire, "@stream 3 20\n@say abcdefghi")
    pieces = list(reply(Scripted(), wire, body, streaming=True, model="m", session="").pieces)
    assert [piece.pause_seconds for piece in pieces if piece.pause_seconds] == [0.02, 0.02]
    assert sum(any(part in piece.data for part in (b'"abc"', b'"def"', b'"ghi"')) for piece in pieces) == 3


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("streaming", [True, False])
def test_a_failure_is_in_the_words_of_its_wire(wire: Wire, streaming: bool) -> None:
    made = reply(Scripted(), wire, request_body(wire, "@fail 429 no"), streaming=streaming, model="m", session="")
    assert made.status == 429
    assert ("retry-after", "1") in made.headers
    assert json.loads(b"".join(piece.data for piece in made.pieces))["error"]["message"] == "no"
