"""One POST to a receiver: which addresses may be asked, over what, and what bad answers come to."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette.webhooks.post import NotDelivered, Poster
from tests.runtime.tls import certificates
from tests.webhooks.receiver import (
    Behaviour,
    answers,
    hangs_up,
    keeps_silent,
    never_ends_its_body,
    never_ends_its_head,
    open_receiver,
    speaks_no_http,
)


@dataclass
class Names(trio.abc.HostnameResolver):
    """A name server: each look-up gets the next of its answers, the last one for ever."""

    replies: list[list[str]]
    asked: list[str] = field(default_factory=list)

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append(host.decode() if isinstance(host, bytes) else host)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        family = {False: socket.AF_INET, True: socket.AF_INET6}
        return [(family[":" in one], socket.SOCK_STREAM, 6, "", (one, port)) for one in reply]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise AssertionError("nobody asks for that")


class Unreachable(trio.abc.SocketFactory):
    """Remembers where a connection was wanted to and makes none."""

    def __init__(self) -> None:
        self.wanted: list[Any] = []

    def socket(self, *_: Any, **__: Any) -> Any:
        factory = self

        class Socket:
            async def connect(self, address: Any) -> None:
                await trio.lowlevel.checkpoint()
                factory.wanted.append(address)
                raise ConnectionRefusedError(111, "Connection refused")

            def close(self) -> None: ...

        return Socket()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "ff02::1",
    ],
)
async def test_an_address_that_is_not_public_is_never_connected_to(address: str) -> None:
    trio.socket.set_custom_hostname_resolver(Names([["140.82.121.4", address]]))
    sockets = Unreachable()
    trio.socket.set_custom_socket_factory(sockets)
    with pytest.raises(NotDelivered, match="not public"):
        await Poster().post("https://hooks.example.org/", [], b"{}")
    assert sockets.wanted == []


async def test_a_name_is_looked_up_once_and_connected_to_by_what_was_judged() -> None:
    names = Names([["140.82.121.4", "2606:4700::1"], ["127.0.0.1"]])
    trio.socket.set_custom_hostname_resolver(names)
    sockets = Unreachable()
    trio.socket.set_custom_socket_factory(sockets)
    with pytest.raises(NotDelivered, match="Connection refused"):
        await Poster().post("https://hooks.example.org/", [], b"{}")
    assert names.asked == ["hooks.example.org"]
    assert sockets.wanted == [("140.82.121.4", 443), ("2606:4700::1", 443)]


async def test_plain_http_is_refused_unless_private_addresses_are_allowed() -> None:
    with pytest.raises(NotDelivered, match="plain http"):
        await Poster().post("http://hooks.example.org/", [], b"{}")
    async with open_receiver() as receiver:
        assert (await Poster().post(receiver.url, [], b"{}", allow_private=True)).taken


async def test_a_host_without_an_address_is_a_failure() -> None:
    trio.socket.set_custom_hostname_resolver(Names([[]]))
    with pytest.raises(NotDelivered, match="no address"):
        await Poster().post("https://hooks.example.org/", [], b"{}")


async def test_over_tls_the_name_is_shown_and_checked_although_the_address_is_pinned(tmp_path: Path) -> None:
    certificates(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "server-cert.pem", tmp_path / "server-key.pem")
    named: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: named.append(name)
    trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    trio.socket.set_custom_hostname_resolver(Names([["127.0.0.1"]]))
    async with open_receiver(tls=server) as receiver:
        poster = Poster(tls=trusted)
        good = f"https://localhost:{receiver.port}/hook"
        assert (await poster.post(good, [("x-mine", "yes")], b'{"a":1}', allow_private=True)).taken
        with pytest.raises(NotDelivered, match=r"certificate is not trusted: Hostname mismatch$"):
            await poster.post(f"https://other.example:{receiver.port}/", [], b"{}", allow_private=True)
        with pytest.raises(NotDelivered, match="certificate is not trusted"):
            await Poster().post(good, [], b"{}", allow_private=True)
    assert named == ["localhost", "other.example", "localhost"]
    (one,) = receiver.received
    assert (one.headers["host"], one.headers["x-mine"], one.target) == (f"localhost:{receiver.port}", "yes", "/hook")


async def test_a_port_that_does_not_speak_tls_is_a_failure() -> None:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, speaks_no_http, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.raises(NotDelivered, match="TLS"):
            await Poster().post(f"https://127.0.0.1:{port}/", [], b"{}", allow_private=True)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (hangs_up, "without an answer|broke off"),
        (keeps_silent, "within 0.3 seconds"),
        (speaks_no_http, "not HTTP|broke off"),
        (never_ends_its_head, "not HTTP|broke off"),
    ],
)
async def test_a_receiver_that_misbehaves_is_a_failure_within_the_time(behaviour: Behaviour, why: str) -> None:
    async with open_receiver(otherwise=behaviour) as receiver:
        with trio.fail_after(5), pytest.raises(NotDelivered, match=why):
            await Poster(timeout_seconds=0.3).post(receiver.url, [], b"{}", allow_private=True)


async def test_the_body_of_an_answer_is_not_read_however_long_it_is() -> None:
    async with open_receiver(otherwise=never_ends_its_body) as receiver:
        with trio.fail_after(5):
            assert (await Poster().post(receiver.url, [], b"{}", allow_private=True)).taken


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("retry-after: 30\r\n", 30.0), ("retry-after: Wed, 21 Oct 2026 07:28:00 GMT\r\n", None), ("", None)],
)
async def test_when_a_receiver_wants_to_hear_again_is_understood_in_seconds(header: str, seconds: float | None) -> None:
    async with open_receiver(answers(503, header)) as receiver:
        answer = await Poster().post(receiver.url, [], b"{}", allow_private=True)
    assert (answer.status, answer.taken, answer.retry_after_seconds) == (503, False, seconds)


async def test_an_interim_answer_is_not_the_answer() -> None:
    async def hesitates(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")

    async with open_receiver(hesitates) as receiver:
        assert (await Poster().post(receiver.url, [], b"{}", allow_private=True)).status == 201
