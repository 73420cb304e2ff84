"""The connection of one exec: its input goes out, what became of it comes back."""

from __future__ import annotations

import trio

from oubliette.errors import ContainerError
from oubliette.runtime.base import ExecResult
from oubliette_relay import protocol

_PIECE = 1 << 16


async def converse(stream: trio.abc.HalfCloseableStream, stdin: bytes, what: str) -> ExecResult:
    """Feed an exec and read its result. Raises ContainerError. The caller closes the stream; that ends the command."""
    failure: ContainerError | None = None
    result: ExecResult | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_feed, stream, stdin)
        try:
            result = await _read_result(stream)
        except (trio.BrokenResourceError, protocol.ProtocolError) as error:
            failure = ContainerError(f"{what}: its connection broke: {error}")
        nursery.cancel_scope.cancel("the exec has ended")
    if result is None:
        raise failure or ContainerError(f"{what}: no result")
    return result


async def _feed(stream: trio.abc.Stream, stdin: bytes) -> None:
    view = memoryview(stdin)
    try:
        while view:
            await stream.send_all(view[:_PIECE])
            view = view[_PIECE:]
    except trio.BrokenResourceError:
        # The reading side is told the same, and says so.
        return


async def _read_result(stream: trio.abc.Stream) -> ExecResult:
    held = bytearray()
    done: protocol.ExecDone | None = None
    while done is None or len(held) < done.stdout + done.stderr:
        data = await stream.receive_some(_PIECE)
        if not data:
            raise protocol.ProtocolError("it ended early")
        held += data
        if done is None:
            end = held.find(b"\n")
            if end > protocol.HELLO_BYTES or (end < 0 and len(held) > protocol.HELLO_BYTES):
                raise protocol.ProtocolError("no result on its first line")
            if end >= 0:
                done = protocol.decode_exec_done(bytes(held[:end]))
                del held[: end + 1]
    stdout = bytes(held[: done.stdout])
    stderr = bytes(held[done.stdout : done.stdout + done.stderr])
    return ExecResult(done.exit_code, stdout, stderr, done.stdout_bytes, done.stderr_bytes, done.timed_out)
