"""A place outside of every sandbox that a bridged one has to reach, on a machine that may have no network itself."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

OUTSIDE = "OUBLIETTE_TEST_OUTSIDE"
"""``address:port`` of a listener on an address of the host that no sandbox has: root makes one, also for the user."""


@contextmanager
def listening(address: str) -> Iterator[int]:
    """A server on an address of the host that says "host" to everybody; its port."""
    with socket.create_server((address, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.sendall(b"host")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@contextmanager
def outside() -> Iterator[str]:
    """``address:port`` of a listener that a bridged sandbox has to reach."""
    if OUTSIDE in os.environ:
        yield os.environ[OUTSIDE]
        return
    assert os.geteuid() == 0, f"an ordinary user needs {OUTSIDE}"
    address = f"198.51.100.{1 + secrets.randbelow(250)}"
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        with listening(address) as port:
            yield f"{address}:{port}"
    finally:
        subprocess.run(["ip", "address", "delete", f"{address}/32", "dev", "lo"], check=True)
