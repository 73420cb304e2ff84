"""Outgoing webhooks: receivers of the configuration are told of ends, waits and pauses.

What is to be told is a row, written in the unit of what it tells of (``store.webhooks.add``); a row goes when its
receiver has taken it. So nothing is lost when the daemon dies, and a notice may come twice: its id is the same then.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from typing import Final

import trio

from oubliette import clock
from oubliette.config import Config
from oubliette.log import get_logger, redactor
from oubliette.store import webhooks
from oubliette.store.database import Store
from oubliette.webhooks.endpoint import Count, Endpoint, Tools
from oubliette.webhooks.post import Poster

log = get_logger(__name__)

RESTART_SECONDS: Final = 30


class Webhooks:
    """All receivers. ``run`` is the service."""

    def __init__(
        self,
        store: Store,
        config: Config,
        *,
        version: str,
        now: Callable[[], datetime] = clock.now,
        poster: Poster | None = None,
        count: Count = lambda _name, _what, _how_many: None,
    ) -> None:
        self._store = store
        self._config = config
        tools = Tools(store, poster or Poster(), now, f"oubliette/{version}", count)
        for one in config.webhooks.values():
            secret = one.secret.get_secret_value()
            redactor.add(secret, secret.removeprefix("whsec_"))
        self._endpoints = {name: Endpoint(name, one, tools) for name, one in config.webhooks.items()}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service: sends until cancelled. ``started`` once whatever happens from now on makes notices."""
        wanted = {name: (one.types, one.projects) for name, one in self._config.webhooks.items()}
        gone = await self._store.write(partial(webhooks.set_endpoints, wanted=wanted))
        if gone:
            log.info("webhook receivers are no longer configured", endpoints=", ".join(sorted(gone)))
        async with trio.open_nursery() as nursery:
            with ExitStack() as stack:
                stack.enter_context(self._store.hear(webhooks.TOPIC, self._wake))
                for endpoint in self._endpoints.values():
                    nursery.start_soon(self._supervise, endpoint)
                task_status.started()
                await trio.sleep_forever()

    def _wake(self, name: str) -> None:
        if name in self._endpoints:
            self._endpoints[name].wake()

    async def _supervise(self, endpoint: Endpoint) -> None:
        """A receiver that breaks its sender breaks nothing else."""
        while True:
            try:
                await endpoint.run()
                return
            except Exception:  # the boundary of one receiver's work
                log.exception("a webhook receiver's task failed; it starts again", endpoint=endpoint.name)
            await trio.sleep(RESTART_SECONDS)
