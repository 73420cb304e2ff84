from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oubliette.errors import RemoteWireError
from oubliette.wire.docker_stream import Channel, Chunk, FrameReader


def frame(channel: int, data: bytes) -> bytes:
    return bytes([channel, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def joined(chunks: list[Chunk]) -> list[tuple[Channel, bytes]]:
    """Chunks with neighbours of one channel put together: what arrived, however it was cut."""
    return [
        (channel, b"".join(chunk.data for chunk in group))
        for channel, group in itertools.groupby(chunks, key=lambda chunk: chunk.channel)
    ]


STREAM = frame(1, b"hello\n") + frame(2, b"oops") + frame(1, b"") + frame(3, b"x") + frame(1, b"bye")
EXPECTED = [
    (Channel.STDOUT, b"hello\n"),
    (Channel.STDERR, b"oops"),
    (Channel.SYSTEM, b"x"),
    (Channel.STDOUT, b"bye"),
]


def test_every_pair_of_splits_gives_the_same_chunks() -> None:
    for first, second in itertools.combinations_with_replacement(range(len(STREAM) + 1), 2):
        reader = FrameReader()
        chunks = reader.feed(STREAM[:first]) + reader.feed(STREAM[first:second]) + reader.feed(STREAM[second:])
        reader.end()
        assert joined(chunks) == EXPECTED
        assert all(chunk.data for chunk in chunks)


def test_single_bytes_give_the_same_chunks() -> None:
    reader = FrameReader()
    chunks = [chunk for byte in STREAM for chunk in reader.feed(bytes([byte]))]
    reader.end()
    assert joined(chunks) == EXPECTED


def test_payload_is_handed_on_before_its_frame_is_complete() -> None:
    reader = FrameReader()
    assert reader.feed(frame(1, b"abcdef")[:-2]) == [Chunk(Channel.STDOUT, b"abcd")]


def test_a_claimed_length_of_four_gigabytes_costs_nothing() -> None:
    reader = FrameReader()
    assert reader.feed(b"\x01\0\0\0\xff\xff\xff\xff" + b"a") == [Chunk(Channel.STDOUT, b"a")]


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40))), st.data())
def test_any_frames_cut_anywhere_come_out_whole(frames: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame(channel, payload) for channel, payload in frames)
    reader, chunks, position = FrameReader(), list[Chunk](), 0
    while position < len(stream):
        step = data.draw(st.integers(1, len(stream) - position))
        chunks += reader.feed(stream[position : position + step])
        position += step
    reader.end()
    for channel in (Channel.STDOUT, Channel.STDERR):
        expected = b"".join(payload for number, payload in frames if number == channel)
        assert b"".join(chunk.data for chunk in chunks if chunk.channel is channel) == expected


@pytest.mark.parametrize("cut", range(1, len(frame(1, b"abc"))))
def test_an_end_inside_a_frame_is_an_error(cut: int) -> None:
    reader = FrameReader()
    reader.feed(frame(1, b"abc")[:cut])
    with pytest.raises(RemoteWireError, match="inside a frame"):
        reader.end()


@pytest.mark.parametrize("garbage", [b"\x04\0\0\0\0\0\0\x01a", b"\x01\x01\0\0\0\0\0\x01a", b"HTTP/1.1 200 OK\r\n"])
def test_what_is_not_a_frame_is_refused(garbage: bytes) -> None:
    with pytest.raises(RemoteWireError, match="not a frame header"):
        FrameReader().feed(garbage)


def test_the_end_between_frames_is_fine() -> None:
    reader = FrameReader()
    reader.end()
    reader.feed(STREAM)
    reader.end()
