"""Webhooks cancelled at every step: no socket stays open, no notice is lost."""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from oubliette import clock
from oubliette.store import webhooks as rows
from oubliette.store.database import open_store
from oubliette.webhooks import endpoint as sending
from oubliette.webhooks.post import Poster
from oubliette.webhooks.webhooks import Webhooks
from tests.runtime.tls import certificates
from tests.sweep import Check, Cut, Operation, cancel_sweep
from tests.webhooks.receiver import answers, open_receiver
from tests.webhooks.world import config_of


class Remembered(trio.abc.SocketFactory):
    """Makes ordinary sockets and remembers them."""

    def __init__(self) -> None:
        self.made: list[trio.socket.SocketType] = []
        self.count = 0

    def socket(self, *arguments: Any, **named: Any) -> trio.socket.SocketType:
        made = trio.socket.from_stdlib_socket(socket.socket(*arguments, **named))
        self.made.append(made)
        self.count += 1
        return made


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_post_that_is_cancelled_anywhere_leaves_no_socket_open(tmp_path: Path, encrypted: bool) -> None:
    server = trusted = None
    if encrypted:
        certificates(tmp_path)
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(tmp_path / "server-cert.pem", tmp_path / "server-key.pem")
        trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    async with open_receiver(tls=server) as receiver:
        url = f"https://localhost:{receiver.port}/" if encrypted else receiver.url
        sockets = Remembered()
        trio.socket.set_custom_socket_factory(sockets)

        @asynccontextmanager
        async def subject() -> AsyncIterator[tuple[Operation, Check]]:
            async def check(cut: Cut) -> None:
                await trio.lowlevel.checkpoint()
                assert all(one.fileno() == -1 for one in sockets.made), cut
                sockets.made.clear()

            yield partial(Poster(tls=trusted).post, url, [], b"{}", allow_private=True), check

        assert await cancel_sweep(subject) > 5
        assert sockets.count > 3


async def test_a_service_that_is_cancelled_anywhere_loses_no_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "DELAYS_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(sending, "LEASE", timedelta())
    numbers = itertools.count()

    @asynccontextmanager
    async def subject() -> AsyncIterator[tuple[Operation, Check]]:
        path = tmp_path / f"{next(numbers)}.db"
        async with (
            open_receiver(answers(500)) as receiver,
            open_store(path, publish=lambda _events: None, synchronous="OFF") as store,
        ):
            config = config_of(ci=receiver.url)
            await store.write(partial(rows.set_endpoints, wanted={"ci": ([], [])}))
            await store.write(partial(rows.add, kind="session.ended", project_id="7b1c", about={}, at=clock.now()))

            async def serve() -> None:
                async with trio.open_nursery() as nursery:
                    await nursery.start(Webhooks(store, config, version="0").run)
                    while await store.read(partial(rows.pending, endpoint="ci")):
                        await trio.sleep(0.01)
                    nursery.cancel_scope.cancel(reason="it was taken")

            async def check(cut: Cut) -> None:
                await serve()
                told = [one.data for one in receiver.received]
                assert len({one["id"] for one in told}) == 1, cut
                assert len(told) >= 2, cut
                attempts = [one["attempt"] for one in told]
                assert attempts == sorted(attempts), cut

            yield serve, check

    assert await cancel_sweep(subject, every=3) > 5
