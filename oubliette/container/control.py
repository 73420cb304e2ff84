"""One control connection of a relay, and the answers that are waited for on it."""

from __future__ import annotations

import trio

from oubliette.errors import ContainerError
from oubliette_relay import protocol
from oubliette_relay.protocol import ToDaemon, ToRelay

_OUTBOX = 512


class Answer:
    """What one question waits for. ``lost``: the connection that it was asked on has ended."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.message: ToDaemon | None = None
        self.stream: trio.abc.HalfCloseableStream | None = None
        self.lost = False

    async def discard(self) -> None:
        """Close a connection that arrived for somebody who has gone."""
        if self.stream is not None:
            await trio.aclose_forcefully(self.stream)


class Control:
    """One control connection: an outbox, so that a cancelled caller never leaves half a line behind."""

    def __init__(self) -> None:
        self.outbox, self.queue = trio.open_memory_channel[bytes](_OUTBOX)
        self.asked: set[Answer] = set()
        self.scope = trio.CancelScope()

    def post(self, message: ToRelay, answer: Answer) -> None:
        try:
            line = protocol.encode(message)
        except protocol.ProtocolError as error:
            raise ContainerError(
                f"{message.op} in the container: {error}", code="too_large", retryable=False
            ) from error
        try:
            self.outbox.send_nowait(line)
        except trio.WouldBlock as error:
            raise ContainerError(f"{message.op} in the container: its relay does not read") from error
        self.asked.add(answer)

    async def write_to(self, stream: trio.abc.SendStream) -> None:
        """Send what is posted; a peer that does not read is given up."""
        try:
            async for line in self.queue:
                with trio.fail_after(protocol.SILENCE_SECONDS):
                    await stream.send_all(line)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self.scope.cancel("the relay does not read")

    def lose(self) -> None:
        for answer in self.asked:
            answer.lost = True
            answer.arrived.set()
        self.asked.clear()
