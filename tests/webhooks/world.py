"""Webhooks over a real store and the real session tree."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio

from oubliette import clock
from oubliette.config import Config
from oubliette.core.model import Json
from oubliette.core.notices import NoticeType
from oubliette.store import webhooks as rows
from oubliette.store.database import Tx
from oubliette.webhooks.post import Poster
from oubliette.webhooks.webhooks import Webhooks
from tests.session.world import PROJECT, World, open_world

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@dataclass
class Hooked:
    """A world whose ends are told to somebody."""

    world: World
    webhooks: Webhooks
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def tell(self, count: int = 1, kind: NoticeType = "session.turn_ended", project_id: str = PROJECT) -> None:
        """So many things happen at once."""

        def unit(tx: Tx) -> None:
            for number in range(count):
                rows.add(tx, kind, project_id, {"session_id": f"gogol_{number}"}, clock.now())

        await self.world.store.write(unit)

    async def pending(self, name: str = "ci") -> int:
        return await self.world.store.read(partial(rows.pending, endpoint=name))

    async def until_pending(self, count: int, name: str = "ci") -> None:
        with trio.fail_after(20):
            while await self.pending(name) != count:
                await trio.sleep(0.02)

    async def until_counted(self, count: int, what: str, name: str = "ci") -> None:
        with trio.fail_after(20):
            while self.counts[name, what] < count:
                await trio.sleep(0.02)


def config_of(**receivers: Any) -> Config:
    """``name=url`` or ``name={…}``; loopback is allowed unless it says otherwise."""
    made = {}
    for name, given in receivers.items():
        keys: Json = {"url": given} if isinstance(given, str) else given
        made[name] = {"secret": SECRET, "allow_private": True, **keys}
    return Config.model_validate({"webhooks": made})


@asynccontextmanager
async def open_hooked(
    path: Path, config: Config, *, poster: Poster | None = None, now: Callable[[], datetime] = clock.now
) -> AsyncIterator[Hooked]:
    counts: Counter[tuple[str, str]] = Counter()

    def count(name: str, what: str, how_many: int) -> None:
        counts[name, what] += how_many

    async with open_world(path) as world, trio.open_nursery() as nursery:
        service = Webhooks(world.store, config, version="0.1.0", now=now, poster=poster, count=count)
        await nursery.start(service.run)
        yield Hooked(world, service, counts)
        nursery.cancel_scope.cancel(reason="the test is over")
