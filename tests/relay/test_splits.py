"""Both ends of the relay's wire, fed in every split of the bytes: the pure parts, and the real ends over sockets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import trio

from oubliette.relay_host import RelayHost
from oubliette_relay import protocol
from oubliette_relay.protocol import Hello, HelloReader, LineSplitter, encode_hello
from tests.relay.harness import ENV, PATIENCE, echo, relay_process

TO_DAEMON: tuple[Any, ...] = (
    protocol.Done("1"),
    protocol.Failed("2", "busy", "né\n\"'"),
    protocol.Heartbeat({"agent": 9}),
    protocol.Killed("3", 1, 0),
)
TO_RELAY: tuple[Any, ...] = (
    protocol.Dial("1", 80),
    protocol.Stop("2", "agent"),
    protocol.Start("3", "a", ("x", "\udcff"), {"A": "b"}),
)


def splits(data: bytes, cuts: int) -> Iterator[list[bytes]]:
    """Every way to cut the data in so many places."""
    for places in combinations(range(1, len(data)), cuts):
        edges = (0, *places, len(data))
        yield [data[start:end] for start, end in pairwise(edges)]


def test_every_split_in_two_and_three_says_the_same_in_both_directions() -> None:
    for messages, decode in ((TO_DAEMON, protocol.decode_to_daemon), (TO_RELAY, protocol.decode_to_relay)):
        wire = b"".join(protocol.encode(message) for message in messages)
        for cuts in (1, 2):
            for pieces in splits(wire, cuts):
                lines = LineSplitter()
                heard = [decode(line) for piece in pieces for line in lines.feed(piece)]
                assert tuple(heard) == messages, pieces


def test_every_split_in_three_of_a_hello_leaves_what_follows_whole() -> None:
    hello = Hello("dialed", id="0f" * 6)
    wire = encode_hello(hello) + b"\x00after\n"
    for pieces in splits(wire, 2):
        reader, found, rest = HelloReader(), None, b""
        for piece in pieces:
            if found is None:
                found = reader.feed(piece)
                rest = found[1] if found is not None else b""
            else:
                rest += piece
        assert found is not None
        assert (found[0], rest) == (hello, b"\x00after\n"), pieces


def test_the_result_of_an_exec_is_read_over_every_split() -> None:
    done = protocol.ExecDone(0, 3, 0, 3, 0)
    wire = protocol.encode(done) + b"abc"
    for pieces in splits(wire, 2):
        lines = LineSplitter()
        heard: list[bytes] = []
        for at, piece in enumerate(pieces):
            heard = lines.feed(piece.partition(b"\n")[0] + b"\n" * (b"\n" in piece))
            if heard:
                behind = piece.partition(b"\n")[2] + b"".join(pieces[at + 1 :])
                break
        assert protocol.decode_exec_done(heard[0]) == done
        assert behind == b"abc"


async def test_the_daemons_end_understands_a_relay_whose_bytes_come_in_any_two_pieces(tmp_path: Path) -> None:
    hello = encode_hello(Hello("control", boot="b"))
    told = protocol.encode(protocol.Processes("hello", ())) + protocol.encode(protocol.Heartbeat({"agent": 4321}))
    ways = [([*first, b"?", told]) for first in splits(hello, 1)] + [[hello, b"?", *rest] for rest in splits(told, 1)]
    async with RelayHost(serve_model=echo).listen("c1", tmp_path) as link:
        for pieces in ways:
            with trio.fail_after(PATIENCE):
                async with await trio.open_unix_socket(tmp_path / "relay.sock") as stream:
                    for piece in pieces:
                        if piece == b"?":
                            assert b'"op":"list"' in await stream.receive_some(4096)
                        else:
                            await stream.send_all(piece)
                            await trio.testing.wait_all_tasks_blocked()
                    await link.wait_connected()
                    assert link.memory_bytes("agent") == 4321
                    link._memory = {}
                await link.wait_disconnected()


async def test_the_relay_understands_a_daemon_whose_bytes_come_in_any_two_pieces(tmp_path: Path) -> None:
    """One relay, one control connection: a question per split, each answered once."""
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(tmp_path / "relay.sock"))
    sock.listen(10)
    listener = trio.SocketListener(sock)
    with relay_process(tmp_path), trio.fail_after(PATIENCE):
        async with listener, await listener.accept() as stream:
            lines, heard = LineSplitter(), list[bytes]()
            reader, found = HelloReader(), None
            while found is None:
                found = reader.feed(await stream.receive_some(4096))
            heard += lines.feed(found[1])
            size = len(protocol.encode(protocol.ListProcesses("0000")))
            for cut in range(1, size):
                wire = protocol.encode(protocol.ListProcesses(f"{cut:04}"))
                await stream.send_all(wire[:cut])
                await trio.sleep(0.002)  # so that the pieces do not meet in the socket's buffer
                await stream.send_all(wire[cut:])
                answers: list[Any] = []
                while not answers:
                    for line in heard:
                        message = protocol.decode_to_daemon(line)
                        if isinstance(message, protocol.Processes):
                            answers.append(message)
                    heard = [] if answers else lines.feed(await stream.receive_some(4096))
                assert [answer.id for answer in answers] == [f"{cut:04}"]


async def test_an_exec_is_the_same_when_each_byte_comes_alone(tmp_path: Path) -> None:
    """Through a real relay, by a daemon that is as slow as can be."""
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(tmp_path / "relay.sock"))
    sock.listen(10)
    listener = trio.SocketListener(sock)
    with relay_process(tmp_path), trio.fail_after(PATIENCE):
        async with listener, await listener.accept() as control:
            asked = protocol.Exec("e1", ("cat",), ENV, "/", 10.0, 4096, stdin_bytes=4)
            for byte in protocol.encode(asked):
                await control.send_all(bytes([byte]))
                await trio.lowlevel.checkpoint()
            async with await listener.accept() as back:
                for byte in b"four":
                    await back.send_all(bytes([byte]))
                    await trio.sleep(0.001)
                said = b"".join([bytes(data) async for data in back])
    hello, _, rest = said.partition(b"\n")
    assert protocol.decode_hello(hello) == Hello("dialed", id="e1")
    done, _, output = rest.partition(b"\n")
    assert protocol.decode_exec_done(done).stdout == 4
    assert output == b"four"
