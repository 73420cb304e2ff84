"""The tokens that answer for schedules: their end pauses, and a week before it is said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import trio

from oubliette.core.principals import TokenRow
from oubliette.core.schedule_rows import ScheduleRow, TargetRow
from oubliette.schedule.owners import notice_of, run_owners
from oubliette.store import schedules, tokens, webhooks
from oubliette.store.database import Store, Tx, open_store

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
BY = {"kind": "token", "id": "tok_1", "name": "laptop"}
PROMISED_SECONDS = 1
PROJECT = "7b1c0000-0000-4000-8000-000000000001"


def token(token_id: str, *, expires: timedelta | None = None) -> TokenRow:
    expires_at = NOW + expires if expires is not None else None
    return TokenRow(token_id, f"name of {token_id}", "admin", "client", NOW, BY, expires_at=expires_at)


def add_schedule(tx: Tx, schedule_id: str, authority: str | None) -> None:
    row = ScheduleRow(
        schedule_id=schedule_id,
        name=schedule_id,
        cron_expr="0 3 * * *",
        timezone="UTC",
        message="go",
        enabled=True,
        overlap_behavior="skip",
        session_behavior="resume",
        misfire="skip",
        jitter_seconds=0,
        pause_after_failures=3,
        created_at=NOW,
        updated_at=NOW,
        created_by=BY,
        accounted_until=NOW,
        authority=authority,
        next_at=NOW + timedelta(hours=19),
        due_at=NOW + timedelta(hours=19),
    )
    schedules.insert(tx, row)
    schedules.add_target(tx, TargetRow(f"tgt_{schedule_id}", schedule_id, PROJECT, 0))


@dataclass
class Owners:
    store: Store
    at: datetime = NOW

    async def add(self, token_id: str, *, expires: timedelta | None = None) -> None:
        """A token, and a schedule that is its."""

        def unit(tx: Tx) -> None:
            tokens.create(tx, token(token_id, expires=expires), token_id.encode())
            add_schedule(tx, f"sched_{token_id}", token_id)

        await self.store.write(unit)

    async def get(self, token_id: str) -> ScheduleRow:
        row = await self.store.read(partial(schedules.get, schedule_id=f"sched_{token_id}"))
        assert row is not None
        return row

    async def until_paused(self, token_id: str) -> dict[str, str]:
        with trio.fail_after(5):
            while (row := await self.get(token_id)).paused is None:
                await trio.sleep(0.01)
        assert row.due_at is None
        return row.paused


@asynccontextmanager
async def open_owners(path: Path) -> AsyncIterator[Owners]:
    async with open_store(path / "oubliette.db", publish=lambda _events: None) as store, trio.open_nursery() as nursery:
        owners = Owners(store)
        await nursery.start(run_owners, store, lambda: owners.at)
        yield owners
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_revoking_a_token_pauses_its_schedules_at_once_and_no_others(tmp_path: Path) -> None:
    async with open_owners(tmp_path) as owners:
        for one in ("tok_1", "tok_2"):
            await owners.add(one)
        await owners.store.write(partial(add_schedule, schedule_id="sched_operator", authority=None))
        with trio.fail_after(5 * PROMISED_SECONDS):
            await owners.store.write(partial(tokens.revoke, token_id="tok_1", at=NOW))
            paused = await owners.until_paused("tok_1")
        assert paused["reason"] == "token_revoked"
        assert "name of tok_1 (tok_1), which answers for its runs, was revoked" in paused["text"]
        assert (await owners.get("tok_2")).paused is None
        operators = await owners.store.read(partial(schedules.get, schedule_id="sched_operator"))
        assert operators is not None
        assert operators.paused is None


async def test_a_token_that_expires_pauses_its_schedules_within_a_second(tmp_path: Path) -> None:
    async with open_store(tmp_path / "oubliette.db", publish=lambda _events: None) as store:
        start = trio.current_time()
        owners = Owners(store)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_owners, store, lambda: NOW + timedelta(seconds=trio.current_time() - start))
            await owners.add("tok_1", expires=timedelta(seconds=0.5))
            with trio.fail_after(0.5 + 5 * PROMISED_SECONDS):
                paused = await owners.until_paused("tok_1")
            nursery.cancel_scope.cancel()
    assert paused["reason"] == "token_expired"
    assert "has expired" in paused["text"]


async def test_what_was_revoked_while_the_daemon_was_off_is_paused_before_it_is_up(tmp_path: Path) -> None:
    async with open_owners(tmp_path) as owners:
        await owners.add("tok_1")
    async with open_store(tmp_path / "oubliette.db", publish=lambda _events: None) as store:
        await store.write(partial(tokens.revoke, token_id="tok_1", at=NOW))
    async with open_owners(tmp_path) as owners:
        assert ((await owners.get("tok_1")).paused or {})["reason"] == "token_revoked"


async def test_a_pause_is_told_to_webhooks(tmp_path: Path) -> None:
    async with open_owners(tmp_path) as owners:
        await owners.store.write(partial(webhooks.set_endpoints, wanted={"ci": ([], [])}))
        await owners.add("tok_1")
        await owners.store.write(partial(tokens.revoke, token_id="tok_1", at=NOW))
        await owners.until_paused("tok_1")
        (notice,) = await owners.store.read(lambda tx: tx.all("SELECT type, project_id, about FROM webhook_notices"))
    assert (notice["type"], notice["project_id"]) == ("schedule.paused", PROJECT)
    assert '"reason":"token_revoked"' in notice["about"]


async def test_a_week_before_a_token_expires_its_schedules_say_so(tmp_path: Path) -> None:
    async with open_owners(tmp_path) as owners:
        await owners.add("tok_1", expires=timedelta(days=8))
        row = await owners.get("tok_1")
        early = await owners.store.read(partial(notice_of, row=row, at=NOW))
        late = await owners.store.read(partial(notice_of, row=row, at=NOW + timedelta(days=1)))
        over = await owners.store.read(partial(notice_of, row=row, at=NOW + timedelta(days=8)))
    assert (early, over) == (None, None)
    assert late is not None
    assert (late["reason"], late["at"]) == ("token_expires", "2026-11-30T08:00:00.000Z")
    assert "name of tok_1" in late["text"]


async def test_a_token_that_had_expired_when_its_schedule_was_made_pauses_it(tmp_path: Path) -> None:
    async with open_owners(tmp_path) as owners:
        await owners.add("tok_1")
        owners.at = NOW + timedelta(days=1)
        await owners.add("tok_2", expires=timedelta(hours=1))
        assert (await owners.until_paused("tok_2"))["reason"] == "token_expired"
        assert (await owners.get("tok_1")).paused is None
