"""The framing of Docker's attach, exec and logs streams without a terminal ("Stream format" of ContainerAttach in the
Engine API): 8 bytes of header (stream number, three zeros, big-endian length), then that many bytes. Sans-IO.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from oubliette.errors import RemoteWireError

HEADER_BYTES = 8


class Channel(IntEnum):
    """Which stream a chunk belongs to. The engine writes its own errors on ``SYSTEM``."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    SYSTEM = 3


class Chunk(NamedTuple):
    channel: Channel
    data: bytes


class FrameReader:
    """Takes bytes as they arrive and gives chunks as soon as there are any: a frame is never collected, so that its
    claimed length (up to 4 GiB) costs no memory."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._channel = Channel.STDOUT
        self._left = 0

    def feed(self, data: bytes) -> list[Chunk]:
        """The chunks in ``data``, in order, none empty. Raises RemoteWireError when it is not such a stream."""
        chunks: list[Chunk] = []
        view = memoryview(data)
        while view:
            if self._left == 0:
                view = self._take_header(view)
                continue
            part, view = view[: self._left], view[self._left :]
            self._left -= len(part)
            chunks.append(Chunk(self._channel, bytes(part)))
        return chunks

    def end(self) -> None:
        """Tell it that the stream is over. Raises RemoteWireError when that was in the middle of a frame."""
        if self._header or self._left:
            raise RemoteWireError(
                f"read a container stream: it ended inside a frame ({len(self._header)} bytes of header, "
                f"{self._left} bytes missing)"
            )

    def _take_header(self, view: memoryview) -> memoryview:
        missing = HEADER_BYTES - len(self._header)
        self._header += view[:missing]
        if len(self._header) == HEADER_BYTES:
            number, length = self._header[0], int.from_bytes(self._header[4:], "big")
            if number > Channel.SYSTEM or any(self._header[1:4]):
                raise RemoteWireError(f"read a container stream: {bytes(self._header)!r} is not a frame header")
            self._channel, self._left = Channel(number), length
            self._header.clear()
        return view[missing:]
