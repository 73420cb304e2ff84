"""What all doors share: who is known, what goes on, which retries were seen, and the audit trail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from oubliette.api.auth import Auth
from oubliette.api.execs import Execs
from oubliette.api.keys import RequestKeys
from oubliette.api.live import Live
from oubliette.api.services import Services
from oubliette.core.principals import Principal
from oubliette.errors import OublietteError
from oubliette.log import get_logger
from oubliette.store import audit
from oubliette.store.database import Tx

log = get_logger(__name__)

_AUDIT_BACKLOG: Final = 10_000
_AUDIT_BATCH: Final = 200
_AUDIT_SECONDS: Final = 5


class Shared:
    """Made once for all doors. ``run`` hosts its services."""

    def __init__(self, services: Services) -> None:
        limits = services.config.server.rate_limit
        self.services = services
        self.live = Live()
        self.auth = Auth(services.store, self.live, per_second=limits.per_second, burst=limits.burst, now=services.now)
        self.keys = RequestKeys(services.store, services.now)
        self.execs = Execs(services)
        self._entries, self._written = trio.open_memory_channel[_Entry](_AUDIT_BACKLOG)

    def audit(self, principal: Principal, action: str, target: str | None, outcome: str, request_id: str) -> None:
        """Note who did what; written soon, never waited for."""
        entry = _Entry(principal, action, target, outcome, request_id)
        try:
            self._entries.send_nowait(entry)
        except trio.WouldBlock:
            log.error("audit entry lost: the store does not keep up", action=action, request_id=request_id)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The services: tokens are watched, the audit trail is written. What is queued at the end is still written."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.services.supervisor.of("watch over tokens", self.auth.watch))
            await nursery.start(self.keys.run)
            await nursery.start(self.execs.run)
            nursery.start_soon(self._write_audit)
            task_status.started()

    async def _write_audit(self) -> None:
        try:
            async for first in self._written:
                await self._store_entries(first)
        finally:
            self._entries.close()
            with trio.move_on_after(2, shield=True):
                async for first in self._written:
                    await self._store_entries(first)

    async def _store_entries(self, first: _Entry) -> None:
        entries = [first]
        while len(entries) < _AUDIT_BATCH:
            try:
                entries.append(self._written.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        at = self.services.now()

        def unit(tx: Tx) -> None:
            for entry in entries:
                audit.add(
                    tx,
                    principal=entry.principal.as_json(),
                    action=entry.action,
                    target=entry.target,
                    outcome=entry.outcome,
                    request_id=entry.request_id,
                    ts=at,
                )

        with trio.move_on_after(_AUDIT_SECONDS, shield=True):
            try:
                await self.services.store.write(unit)
            except OublietteError:
                log.exception("audit entries lost", count=len(entries))


@dataclass(frozen=True, slots=True)
class _Entry:
    principal: Principal
    action: str
    target: str | None
    outcome: str
    request_id: str
