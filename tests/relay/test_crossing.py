"""Two hundred connections at once, in both directions, each with bytes of its own at either end: none is crossed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import trio

from tests.relay.harness import connected, read_all, server

MANY = 200


def stream_of(tag: str) -> bytes:
    """Bytes that nobody else's connection has, of a length of their own; every block says whose they are."""
    blocks = 1 + int(hashlib.sha256(tag.encode()).hexdigest()[:4], 16) % 800
    return b"".join(f"<{tag}:{number}>".encode() for number in range(blocks))


async def answer(stream: trio.abc.HalfCloseableStream, _container: str = "") -> None:
    """Reads the caller's name, then says its own bytes for that name while it reads on. Every other one ends first."""
    name = bytearray()
    while not name.endswith(b"\n"):
        name += await stream.receive_some(1)
    tag = name.decode().strip()
    said = stream_of(f"inside {tag}")
    if int(tag) % 2:
        await stream.send_all(said)
        await stream.send_eof()
        assert await read_all(stream) == stream_of(f"outside {tag}")
    else:
        assert await read_all(stream) == stream_of(f"outside {tag}")
        await stream.send_all(said)
        await stream.send_eof()


async def talk(stream: trio.abc.HalfCloseableStream, tag: int) -> None:
    async def say() -> None:
        await stream.send_all(f"{tag}\n".encode() + stream_of(f"outside {tag}"))
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say)
        assert await read_all(stream) == stream_of(f"inside {tag}"), f"connection {tag} was crossed"


@pytest.mark.parametrize("kind", ["dialled by the daemon", "of the model", "both"])
async def test_200_pairings_at_once_are_never_crossed(tmp_path: Path, kind: str) -> None:
    async with server(answer) as port, connected(tmp_path, answer) as (link, _):
        assert link.hello is not None
        model = link.hello.model_port

        async def one(tag: int) -> None:
            if kind == "of the model" or (kind == "both" and tag % 3 == 0):
                async with await trio.open_tcp_stream("127.0.0.1", model) as stream:
                    await talk(stream, tag)
            else:
                async with link.dial(port) as stream:
                    await talk(stream, tag)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for tag in range(MANY):
                    nursery.start_soon(one, tag)
        assert link.expected == 0
