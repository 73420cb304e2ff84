"""The wire format over every split of its bytes, and whatever else a peer may send."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oubliette_relay import protocol
from oubliette_relay.execs import HeadAndTail
from oubliette_relay.processes import LastLines
from oubliette_relay.protocol import Hello, HelloReader, LineSplitter, ProtocolError

texts = st.text(st.characters(exclude_characters="\0"), max_size=20)
ids = st.text("0123456789abcdef", min_size=1, max_size=24)
variables = st.dictionaries(st.text("ABC_", min_size=1, max_size=8), texts, max_size=4)
sizes = st.integers(0, 1 << 40)
argvs = st.lists(texts, min_size=1, max_size=4).map(tuple)
states = st.builds(
    protocol.ProcessState,
    name=texts,
    tag=texts,
    serial=sizes,
    pid=sizes,
    running=st.booleans(),
    settled=st.booleans(),
    code=st.integers(0, 255),
    signal=st.integers(0, 64),
    stderr=texts,
    left=sizes,
)
to_relay: st.SearchStrategy[Any] = st.one_of(
    st.builds(protocol.Start, ids, texts, argvs, variables, texts, texts, st.booleans()),
    st.builds(protocol.Stop, ids, texts, st.floats(0, 100)),
    st.builds(protocol.ListProcesses, ids),
    st.builds(protocol.Exec, ids, argvs, variables, texts, st.floats(0, 1e6), sizes, sizes, texts),
    st.builds(protocol.KillSession, ids, texts),
    st.builds(protocol.Dial, ids, st.integers(0, 65535)),
)
to_daemon: st.SearchStrategy[Any] = st.one_of(
    st.builds(protocol.Done, ids),
    st.builds(protocol.Failed, ids, texts, texts),
    st.builds(protocol.Killed, ids, sizes, sizes),
    states,
    st.builds(protocol.Processes, ids, st.lists(states, max_size=3).map(tuple)),
    st.builds(protocol.Heartbeat, st.dictionaries(texts, sizes, max_size=3)),
)
hellos = st.one_of(
    st.builds(
        Hello, st.sampled_from(["control", "mcp", "http"]), id=texts, boot=texts, model_port=st.integers(0, 65535)
    ),
    st.builds(Hello, st.just("dialed"), id=ids),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


cut_places = st.lists(st.integers(0, 10_000), max_size=8)


@given(st.lists(to_relay, max_size=4), cut_places)
def test_what_the_daemon_says_arrives_over_any_split(messages: list[Any], cuts: list[int]) -> None:
    lines = LineSplitter()
    wire = b"".join(protocol.encode(message) for message in messages)
    heard = [protocol.decode_to_relay(line) for piece in pieces(wire, cuts) for line in lines.feed(piece)]
    assert heard == messages


@given(st.lists(to_daemon, max_size=4), cut_places)
def test_what_the_relay_says_arrives_over_any_split(messages: list[Any], cuts: list[int]) -> None:
    lines = LineSplitter()
    wire = b"".join(protocol.encode(message) for message in messages)
    heard = [protocol.decode_to_daemon(line) for piece in pieces(wire, cuts) for line in lines.feed(piece)]
    assert heard == messages


@given(hellos, st.binary(max_size=50))
def test_a_hello_and_what_follows_it_are_told_apart_at_every_split(hello: Hello, behind: bytes) -> None:
    wire = protocol.encode_hello(hello) + behind
    for cut in range(len(wire) + 1):
        reader = HelloReader()
        found = reader.feed(wire[:cut])
        rest = wire[cut:]
        if found is None:
            found = reader.feed(rest)
            rest = b""
        assert found is not None
        assert found[0] == hello
        assert found[1] + rest == behind


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=5), cut_places)
def test_lines_are_cut_at_newlines_whatever_they_contain(lines: list[bytes], cuts: list[int]) -> None:
    splitter = LineSplitter(32)
    wire = b"".join(line + b"\n" for line in lines)
    assert [line for piece in pieces(wire, cuts) for line in splitter.feed(piece)] == lines


@given(st.integers(0, 40), st.integers(1, 41))
def test_a_line_that_is_too_long_is_refused_before_it_is_complete(length: int, step: int) -> None:
    splitter = LineSplitter(32)
    wire = b"x" * length + b"\n"
    outcome = None
    try:
        for start in range(0, len(wire), step):
            outcome = splitter.feed(wire[start : start + step])
    except ProtocolError:
        assert length + 1 > 32
    else:
        assert length + 1 <= 32
        assert outcome == [b"x" * length]


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_a_protocol_error_and_nothing_else(garbage: bytes) -> None:
    for decode in (
        protocol.decode_hello,
        protocol.decode_to_relay,
        protocol.decode_to_daemon,
        protocol.decode_exec_done,
    ):
        with pytest.raises(ProtocolError):
            decode(garbage)


@given(st.one_of(to_relay, to_daemon), st.data())
def test_a_value_of_another_type_is_refused_or_accepted_but_never_kept_unchecked(message: Any, data: Any) -> None:
    told = json.loads(protocol.encode(message))
    told[data.draw(st.sampled_from(sorted(told)))] = data.draw(json_values)
    line = json.dumps(told).encode()
    decode = protocol.decode_to_relay if told["op"] in ("start", "exec", "stop", "dial") else protocol.decode_to_daemon
    try:
        heard = decode(line)
    except ProtocolError:
        return
    # Whatever was accepted can be said again: every field has the type that its class declares.
    assert decode(protocol.encode(heard)[:-1]) == heard


@pytest.mark.parametrize(
    "line",
    [
        b'{"op":"dial","id":"1","port":1e999}',
        b'{"op":"dial","id":"1","port":NaN}',
        b'{"op":"dial","id":"1","port":' + b"9" * 5000 + b"}",
        b'{"op":"dial","id":"1","port":true}',
        b'{"op":"list","id":"a\\u0000b"}',
        b'{"op":["list"],"id":"1"}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"op":"start","id":"1","name":"n","argv":["a"],"env":{"A=B":"c"}}',
        b'{"op":"start","id":"1","name":"n","argv":["a"],"env":{"":"c"}}',
        b"\xff\xfe",
        b"",
    ],
)
def test_hostile_lines_are_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_to_relay(line)


def test_keys_and_kinds_of_a_newer_peer_are_ignored_where_that_is_safe() -> None:
    assert protocol.decode_to_relay(b'{"op":"list","id":"1","later":[1]}') == protocol.ListProcesses("1")
    assert protocol.decode_hello(b'{"hello":"mcp","session":"x"}') == Hello("mcp")


def test_arguments_that_are_not_unicode_survive_the_wire() -> None:
    message = protocol.Start("1", "agent", ("ls", "caf\udce9"), {"A": "\udcff"}, "/\udc80")
    assert protocol.decode_to_relay(protocol.encode(message)[:-1]) == message


def test_a_message_that_the_peer_would_refuse_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        protocol.encode(protocol.Start("1", "agent", ("x" * protocol.LINE_BYTES,), {}, "/"))


def test_the_last_words_of_all_processes_fit_into_one_line() -> None:
    words = LastLines()
    words.take(b"\x01" * 2_000_000)
    state = protocol.ProcessState("n" * 128, "t" * 128, 1, 1, running=False, stderr=words.text())
    protocol.encode(protocol.Processes("1" * 24, (state,) * protocol.PROCESS_LIMIT))


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(0, 60))
def test_an_output_keeps_its_head_and_its_tail(parts: list[bytes], limit: int) -> None:
    output = HeadAndTail(limit)
    for part in parts:
        output.take(part)
    whole = b"".join(parts)
    assert output.total == len(whole)
    if len(whole) <= limit:
        assert output.kept() == whole
    else:
        head, tail = limit - limit // 2, limit // 2
        assert output.kept() == whole[:head] + whole[len(whole) - tail :]


@given(st.lists(st.text("ab\n", max_size=10), max_size=20))
def test_the_last_lines_do_not_depend_on_how_they_were_read(parts: list[str]) -> None:
    at_once, in_parts = LastLines(), LastLines()
    at_once.take("".join(parts).encode())
    for part in parts:
        in_parts.take(part.encode())
    assert at_once.text() == in_parts.text()
