"""Retries: a write that carries a ``request_key`` happens once per (principal, tool, action, key) in 24 hours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import trio

from oubliette.api.tools.fields import WriteArgs
from oubliette.core.limits import REQUEST_KEY_HOURS
from oubliette.core.model import Json
from oubliette.core.principals import Principal
from oubliette.errors import RequestError
from oubliette.store import request_keys
from oubliette.store.database import Store, Tx

Place = tuple[str, str, str, str]
"""Principal, tool, action, key."""

_PRESENTATION: Final = {"request_key", "detail", "max_chars", "wait_seconds"}
"""What changes how a call is answered and not what it does."""


Remember = Callable[[Tx, Json], None]
"""To be called with the result in the very unit that does it: a daemon killed right after it still knows the key."""


@dataclass(slots=True)
class _Running:
    """One effect in progress, and what became of it."""

    digest: str
    done: trio.Event = field(default_factory=trio.Event)
    result: Json | None = None
    error: Exception | None = None


class RequestKeys:
    """Runs an effect once per key. Two calls with one key at the same time: the second gets the first's result.

    The effect is a task of its own: a caller that leaves does not leave it half done, and its retry finds the result.
    """

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now
        self._running: dict[Place, _Running] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """A service: hosts the effects."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def once(
        self,
        principal: Principal,
        tool: str,
        action: str,
        args: WriteArgs,
        effect: Callable[[Remember], Awaitable[Json]],
        *,
        unkept: frozenset[str] = frozenset(),
    ) -> Json:
        """The effect's result, or the first one with ``deduplicated``. Raises what the effect raised, and RequestError
        key_reused for other arguments than the first time. ``unkept`` members are shown once and never stored.

        ``effect`` is given a function that it may call in the unit that makes it durable; its result is written once
        more afterwards, as the caller got it."""
        place = (principal.id, tool, action, args.request_key or "")
        digest = _digest(args)
        running = self._running.get(place)
        mine = running is None
        if running is None:
            if self._nursery is None:
                raise _stopping()
            running = self._running[place] = _Running(digest)
            self._nursery.start_soon(self._work, place, running, effect, unkept, name=f"{tool}.{action} with a key")
        elif running.digest != digest:
            raise _reused(tool, action)
        await running.done.wait()
        if running.error is not None:
            raise running.error
        result = running.result or {}
        return result if mine else {**_kept(result, unkept), "deduplicated": True}

    async def _work(
        self, place: Place, running: _Running, effect: Callable[[Remember], Awaitable[Json]], unkept: frozenset[str]
    ) -> None:
        running.error = _stopping()  # what it is if this task is cancelled
        try:
            known = await self._store.read(partial(self._find, place=place))
            if known is None:
                running.result = await effect(partial(self._keep, place, running.digest, unkept))
                kept = _kept(running.result, unkept)
                await self._store.write(partial(self._remember, place=place, digest=running.digest, result=kept))
                running.error = None
            elif known[0] == running.digest:
                running.result, running.error = {**known[1], "deduplicated": True}, None
            else:
                running.error = _reused(place[1], place[2])
        except Exception as error:  # noqa: BLE001 - carried to the callers, who are other tasks
            running.error = error
        finally:
            del self._running[place]
            running.done.set()

    def _find(self, tx: Tx, place: Place) -> tuple[str, Json] | None:
        return request_keys.find(tx, *place)

    def _keep(self, place: Place, digest: str, unkept: frozenset[str], tx: Tx, result: Json) -> None:
        self._remember(tx, place, digest, _kept(result, unkept))

    def _remember(self, tx: Tx, place: Place, digest: str, result: Json) -> None:
        at = self._now()
        request_keys.purge(tx, at - timedelta(hours=REQUEST_KEY_HOURS))
        request_keys.remember(tx, *place, digest, result, at)


def _kept(result: Json, unkept: frozenset[str]) -> Json:
    return {name: value for name, value in result.items() if name not in unkept}


def _reused(tool: str, action: str) -> RequestError:
    return RequestError(
        "key_reused",
        f"This request_key belongs to another {tool} {action}.".replace(" .", "."),
        hint="Use a new key for other arguments.",
        field="request_key",
    )


def _stopping() -> RequestError:
    return RequestError("unavailable", "The daemon is stopping.", hint="Try again when it is back.", retryable=True)


def _digest(args: WriteArgs) -> str:
    text = json.dumps(args.model_dump(mode="json", exclude=_PRESENTATION), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
