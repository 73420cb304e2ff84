"""A TLS listener in front of a unix socket, with certificates as the docker command expects them."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio


@asynccontextmanager
async def tls_in_front_of(path: Path, directory: Path) -> AsyncIterator[dict[str, str]]:
    """Serve the socket at ``path`` over TLS to clients with a certificate; the environment that leads there."""
    certificates(directory)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(directory / "ca.pem"))
    context.load_cert_chain(directory / "server-cert.pem", directory / "server-key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, host="127.0.0.1", https_compatible=True)
        (listener,) = await nursery.start(serve, partial(_tunnel, path), 0, context)
        port = listener.transport_listener.socket.getsockname()[1]
        host = f"tcp://localhost:{port}"
        yield {"DOCKER_HOST": host, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(directory)}
        nursery.cancel_scope.cancel("nobody needs it any more")


async def _tunnel(path: Path, client: trio.SSLStream[trio.SocketStream]) -> None:
    try:
        async with await trio.open_unix_socket(str(path)) as inner, trio.open_nursery() as nursery:
            nursery.start_soon(_forward, client, inner)
            nursery.start_soon(_forward, inner, client)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        await trio.aclose_forcefully(client)


async def _forward(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
    async for data in source:
        await target.send_all(data)
    await trio.aclose_forcefully(target)


def certificates(directory: Path) -> None:
    """An authority (``ca.pem``), a server's and a client's certificate and key."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30")
    openssl("req", "-x509", *key, "-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=Test authority")
    for name, cert, private in (
        ("localhost", "server-cert.pem", "server-key.pem"),
        ("client", "cert.pem", "key.pem"),
    ):
        signed = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-addext", f"subjectAltName=DNS:{name}")
        openssl("req", "-x509", *key, *signed, "-keyout", private, "-out", cert, "-subj", f"/CN={name}")
