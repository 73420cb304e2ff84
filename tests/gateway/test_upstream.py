"""The connection to a provider: TLS is verified, half answers and silence are told apart from answers."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from trio.testing import MockClock, memory_stream_pair

from oubliette.errors import RequestError
from oubliette.gateway.upstream import UpstreamCut, Upstreams

Answering = Callable[[trio.abc.Stream], Awaitable[None]]


def certificate(directory: Path, name: x509.GeneralName) -> Path:
    """A self-signed certificate for ``name`` with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "provider")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / "provider.pem"
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


async def hello(stream: trio.abc.Stream) -> None:
    received = b""
    while b"{}" not in received:
        received += await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


@asynccontextmanager
async def listening(answer: Answering, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def serve(stream: trio.abc.Stream) -> None:
        async with stream:
            try:
                await answer(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the client has refused us, which is what is tested

    async with trio.open_nursery() as nursery:
        if tls is None:
            [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
        else:
            [secured] = await nursery.start(partial(trio.serve_ssl_over_tcp, serve, 0, tls, host="127.0.0.1"))
            port = secured.transport_listener.socket.getsockname()[1]
        yield port
        nursery.cancel_scope.cancel()


async def ask(upstreams: Upstreams, url: str) -> bytes:
    with trio.fail_after(10):
        async with upstreams.post(url, [("x", "y")], b"{}", alias="opus") as answer:
            text = b""
            while piece := await answer.receive():
                text += piece
            return text


async def test_a_trusted_certificate_is_accepted(tmp_path: Path) -> None:
    path = certificate(tmp_path, x509.IPAddress(IPv4Address("127.0.0.1")))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(path)
    async with listening(hello, server) as port:
        trusting = Upstreams(tls=ssl.create_default_context(cafile=path))
        assert await ask(trusting, f"https://127.0.0.1:{port}/v1") == b"hello"


async def test_an_unknown_certificate_is_refused(tmp_path: Path) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate(tmp_path, x509.IPAddress(IPv4Address("127.0.0.1"))))
    async with listening(hello, server) as port:
        with pytest.raises(RequestError) as caught:
            await ask(Upstreams(), f"https://127.0.0.1:{port}/v1")
    assert "certificate is not trusted" in caught.value.message


async def test_a_certificate_of_another_host_is_refused(tmp_path: Path) -> None:
    path = certificate(tmp_path, x509.DNSName("elsewhere.example"))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(path)
    async with listening(hello, server) as port:
        with pytest.raises(RequestError) as caught:
            await ask(Upstreams(tls=ssl.create_default_context(cafile=path)), f"https://127.0.0.1:{port}/v1")
    assert "certificate is not trusted" in caught.value.message


async def test_plain_http_at_an_https_address_is_an_error() -> None:
    async def say(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with listening(say) as port:
        with pytest.raises(RequestError) as caught:
            await ask(Upstreams(), f"https://127.0.0.1:{port}/v1")
    assert "TLS" in caught.value.message


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"220 mail.example ESMTP\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
    ],
)
async def test_what_is_no_answer_is_an_error_before_anything_is_passed_on(answer: bytes) -> None:
    async def say(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)

    async with listening(say) as port:
        with pytest.raises(RequestError) as caught:
            await ask(Upstreams(), f"http://127.0.0.1:{port}/v1")
    assert caught.value.code == "model_error"
    assert "127.0.0.1" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    ],
)
async def test_an_answer_that_breaks_off_is_cut(answer: bytes) -> None:
    async def say(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)

    async with listening(say) as port:
        with pytest.raises(UpstreamCut):
            await ask(Upstreams(), f"http://127.0.0.1:{port}/v1")


async def test_an_interim_answer_is_no_answer() -> None:
    async def say(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with listening(say) as port:
        assert await ask(Upstreams(), f"http://127.0.0.1:{port}/v1") == b"ok"


async def test_an_answer_that_comes_before_the_whole_request_was_read_is_passed_on() -> None:
    async def say(stream: trio.abc.Stream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        async for _ in stream:
            pass

    async with listening(say) as port:
        with trio.fail_after(10):
            url = f"http://127.0.0.1:{port}/v1"
            async with Upstreams().post(url, [], b"x" * (8 << 20), alias="opus") as answer:
                assert answer.status == 413
                assert await answer.error_body() == b"no"


async def test_a_provider_that_falls_silent_is_given_up(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = memory_stream_pair()

    async def connect(*_: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    upstreams = Upstreams()
    monkeypatch.setattr(upstreams, "_connect", connect)
    await theirs.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello")
    async with upstreams.post("http://h/v1", [], b"{}", alias="opus") as answer:
        assert await answer.receive() == b"hello"
        with pytest.raises(UpstreamCut, match="silent"):
            await answer.receive()
