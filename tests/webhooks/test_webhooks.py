"""Outgoing webhooks: what is told, to whom, how often, and that a bad receiver holds up nobody else."""

from __future__ import annotations

import os
import signal
import socket
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
from standardwebhooks import Webhook, WebhookVerificationError

from oubliette import clock
from oubliette.store import webhooks as rows
from oubliette.store.database import Tx
from oubliette.webhooks import endpoint as sending
from oubliette.webhooks.post import Poster
from tests.session.world import ADMIN, PROJECT, open_world
from tests.webhooks.receiver import answers, keeps_silent, open_receiver
from tests.webhooks.world import SECRET, config_of, open_hooked

OTHER = "7b1c0000-0000-4000-8000-00000000000f"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once."""
    monkeypatch.setattr(sending, "DELAYS_SECONDS", (0.01,) * 7)


async def test_the_end_of_a_turn_and_of_its_session_are_told_in_thin_bodies(tmp_path: Path) -> None:
    async with open_receiver() as receiver, open_hooked(tmp_path, config_of(ci=receiver.url)) as hooked:
        session_id = await hooked.world.new("say a secret plan")
        await hooked.world.settle(session_id)
        turn = (await receiver.until(1))[0].data
        await hooked.world.tree.end(ADMIN, session_id, "completed")
        ended = (await receiver.until(2))[1].data
        await hooked.until_pending(0)
    assert turn.pop("id").startswith("wh_")
    assert abs(clock.now() - datetime.fromisoformat(turn.pop("ts"))) < timedelta(minutes=1)
    assert turn == {
        "type": "session.turn_ended",
        "project_id": PROJECT,
        "session_id": session_id,
        "turn": 1,
        "outcome": "completed",
        "attempt": 1,
    }
    assert (ended["type"], ended["session_id"], ended["outcome"]) == ("session.ended", session_id, "completed")
    assert not any(b"secret plan" in one.body for one in receiver.received)
    assert hooked.counts["ci", "delivered"] == 2


async def test_a_session_that_waits_for_an_answer_is_told_of(tmp_path: Path) -> None:
    async with open_receiver() as receiver:
        config = config_of(ci={"url": receiver.url, "types": ["session.waiting"]})
        async with open_hooked(tmp_path, config) as hooked:
            session_id = await hooked.world.new("ask")
            await hooked.world.until(session_id, "waiting")
            told = (await receiver.until(1))[0].data
    assert (told["type"], told["session_id"], told["turn"]) == ("session.waiting", session_id, 1)


async def test_an_independent_library_verifies_what_is_sent_and_refuses_what_was_changed(tmp_path: Path) -> None:
    async with open_receiver() as receiver, open_hooked(tmp_path, config_of(ci=receiver.url)) as hooked:
        await hooked.world.settle(await hooked.world.new("say hello"))
        one = (await receiver.until(1))[0]
    assert Webhook(SECRET).verify(one.body, one.headers) == one.data
    assert one.headers["webhook-id"] == one.data["id"]
    assert one.headers["content-type"] == "application/json"
    assert one.target == "/hook?who=us"
    later = str(int(one.headers["webhook-timestamp"]) + 1)
    for changed in ({"webhook-id": "wh_other"}, {"webhook-timestamp": later}):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(one.body, {**one.headers, **changed})
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(one.body.replace(b"completed", b"failed"), one.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 32).verify(one.body, one.headers)


async def test_a_notice_that_is_replayed_later_is_refused_by_its_timestamp(tmp_path: Path) -> None:
    def old() -> datetime:
        return clock.now() - timedelta(minutes=6)

    async with (
        open_receiver() as receiver,
        open_hooked(tmp_path, config_of(ci=receiver.url), now=old) as hooked,
    ):
        await hooked.world.store.write(partial(rows.add, kind="session.ended", project_id=PROJECT, about={}, at=old()))
        one = (await receiver.until(1))[0]
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(SECRET).verify(one.body, one.headers)


async def test_a_retry_has_the_same_id_another_attempt_and_a_fresh_timestamp(tmp_path: Path, impatient: None) -> None:
    start = datetime(2026, 11, 22, 8, tzinfo=UTC)
    looks = iter(range(1_000_000))
    async with open_receiver(answers(500), answers(503)) as receiver:
        config = config_of(ci=receiver.url)
        async with open_hooked(tmp_path, config, now=lambda: start + timedelta(seconds=next(looks))) as hooked:
            await hooked.world.store.write(
                partial(rows.add, kind="session.ended", project_id=PROJECT, about={}, at=start)
            )
            received = await receiver.until(3)
            await hooked.until_pending(0)
    assert len({one.headers["webhook-id"] for one in received}) == 1
    assert [one.data["attempt"] for one in received] == [1, 2, 3]
    stamps = [int(one.headers["webhook-timestamp"]) for one in received]
    assert stamps == sorted(set(stamps)), "a receiver that refuses old timestamps takes a late attempt all the same"
    assert len({one.headers["webhook-signature"] for one in received}) == 3


async def test_a_receiver_that_never_answers_holds_up_nobody_but_itself(tmp_path: Path) -> None:
    async with (
        open_receiver(otherwise=keeps_silent) as slow,
        open_receiver() as quick,
        open_hooked(tmp_path, config_of(slow=slow.url, quick=quick.url)) as hooked,
    ):
        await hooked.tell(50)
        await quick.until(50)
        await slow.until(4)
        assert await hooked.pending("slow") == 50
        assert (slow.most_busy, quick.most_busy <= 4) == (4, True)


async def test_a_receiver_that_was_down_gets_everything_soon_after_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "DELAYS_SECONDS", (0.01, 0.01, 3600, 3600))
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    async with open_hooked(tmp_path, config_of(ci=f"http://127.0.0.1:{port}/hook")) as hooked:
        await hooked.tell(5)
        await hooked.until_counted(15, "failed")  # each of them three times: the next try is in an hour
        async with open_receiver(port=port) as receiver:
            await hooked.tell(1)
            received = await receiver.until(6)
            await hooked.until_pending(0)
    assert sorted(one.data["attempt"] for one in received) == [1, 4, 4, 4, 4, 4]


async def test_one_that_takes_some_and_refuses_others_is_not_down_and_theirs_wait_out_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "DELAYS_SECONDS", (3600,) * 7)
    later = timedelta()
    async with (
        open_receiver(answers(204), *[answers(500)] * 3, answers(204), answers(500)) as receiver,
        open_hooked(tmp_path, config_of(ci=receiver.url), now=lambda: clock.now() + later) as hooked,
    ):
        await hooked.tell()
        await hooked.until_counted(1, "delivered")
        await hooked.tell(3)
        await hooked.until_counted(3, "failed")
        await hooked.tell()
        await hooked.until_counted(2, "delivered")
        await hooked.until_pending(3)
        await hooked.tell()
        await hooked.until_counted(4, "failed")
        due = await hooked.world.store.read(partial(rows.next_due, endpoint="ci"))
        assert due is not None
        assert due - clock.now() > timedelta(minutes=30), "none of them was brought forward"
        later = timedelta(minutes=6)  # nothing was taken all that time: now it was down
        await hooked.tell()
        await hooked.until_pending(0)
    assert sorted(one.data["attempt"] for one in receiver.received) == [1] * 7 + [2] * 4


async def test_what_is_brought_forward_is_nothing_that_is_under_way(tmp_path: Path) -> None:
    def unit(tx: Tx) -> tuple[int, list[str]]:
        at = clock.now()
        rows.set_endpoints(tx, {"ci": ([], [])})
        for number in range(3):
            rows.add(tx, "session.turn_ended", PROJECT, {"session_id": f"gogol_{number}"}, at)
        flying, off, *_ = rows.claim(tx, "ci", at, 2, sending.LEASE)
        rows.put_off(tx, off.notice_id, at + timedelta(hours=1))
        forward = rows.hasten(tx, "ci", at, sending.LEASE)
        again = rows.claim(tx, "ci", at, 10, sending.LEASE)
        return forward, [one.notice_id for one in again if one.notice_id == flying.notice_id]

    async with open_world(tmp_path) as world:
        assert await world.store.write(unit) == (1, [])


async def test_a_redirect_is_a_failure_and_is_not_followed(tmp_path: Path, impatient: None) -> None:
    async with open_receiver() as inside:
        redirect = answers(302, f"location: {inside.url}\r\n")
        async with (
            open_receiver(redirect, redirect) as receiver,
            open_hooked(tmp_path, config_of(ci=receiver.url)) as hooked,
        ):
            await hooked.tell()
            await receiver.until(3)
            await hooked.until_pending(0)
        assert inside.connections == 0
    assert hooked.counts["ci", "failed"] == 2


async def test_a_notice_that_nobody_takes_is_given_up_after_eight_attempts(tmp_path: Path, impatient: None) -> None:
    async with (
        open_receiver(otherwise=answers(500)) as receiver,
        open_hooked(tmp_path, config_of(ci=receiver.url)) as hooked,
    ):
        await hooked.tell()
        await hooked.until_counted(1, "given_up")
        await hooked.until_pending(0)
    assert [one.data["attempt"] for one in receiver.received] == list(range(1, 9))


async def test_a_receiver_that_asks_for_patience_gets_it(tmp_path: Path) -> None:
    async with (
        open_receiver(answers(429, "retry-after: 7200\r\n")) as receiver,
        open_hooked(tmp_path, config_of(ci=receiver.url)) as hooked,
    ):
        await hooked.tell()
        await hooked.until_counted(1, "failed")
        with trio.fail_after(5):
            while (due := await hooked.world.store.read(partial(rows.next_due, endpoint="ci"))) is None or (
                due - clock.now() < timedelta(hours=1)
            ):
                await trio.sleep(0.02)
        assert due - clock.now() < timedelta(hours=2)


async def test_a_receiver_that_is_gone_is_left_alone_until_the_next_start(tmp_path: Path) -> None:
    async with open_receiver(answers(410)) as gone, open_receiver() as other:
        config = config_of(gone=gone.url, other=other.url)
        async with open_hooked(tmp_path, config) as hooked:
            await hooked.tell()
            await hooked.until_pending(0, "gone")
            await gone.until(1)
            with trio.fail_after(5):
                while await hooked.world.store.read(lambda tx: len(tx.rows("SELECT 1 FROM webhook_endpoints"))) == 2:
                    await trio.sleep(0.01)
            await hooked.tell(3)
            await other.until(4)
        assert len(gone.received) == 1
        async with open_hooked(tmp_path, config) as hooked:
            await hooked.tell()
            await gone.until(2)


async def test_a_receiver_hears_only_of_the_types_and_projects_that_it_names(tmp_path: Path) -> None:
    async with open_receiver() as receiver:
        some = {"url": receiver.url, "types": ["schedule.paused", "session.ended"], "projects": [PROJECT]}
        async with open_hooked(tmp_path, config_of(ci=some)) as hooked:
            await hooked.tell(1, "session.turn_ended")
            await hooked.tell(1, "session.ended", OTHER)
            await hooked.tell(1, "session.ended")
            await hooked.tell(1, "schedule.paused")
            await receiver.until(2)
            await hooked.until_pending(0)
    assert sorted(one.data["type"] for one in receiver.received) == ["schedule.paused", "session.ended"]


async def test_without_receivers_nothing_is_kept_and_a_new_one_hears_nothing_of_the_past(tmp_path: Path) -> None:
    async with open_hooked(tmp_path, config_of()) as hooked:
        await hooked.world.settle(await hooked.world.new("say hello"))
        assert await hooked.world.store.read(lambda tx: tx.rows("SELECT * FROM webhook_notices")) == []
    async with open_receiver() as receiver, open_hooked(tmp_path, config_of(ci=receiver.url)) as hooked:
        await hooked.tell()
        received = await receiver.until(1)
    assert [one.data["session_id"] for one in received] == ["gogol_0"]


async def test_what_waits_for_a_receiver_that_is_no_longer_configured_is_forgotten(tmp_path: Path) -> None:
    async with open_receiver(otherwise=keeps_silent) as receiver:
        async with open_hooked(tmp_path, config_of(ci=receiver.url)) as hooked:
            await hooked.tell(3)
            await receiver.until(1)
        async with open_hooked(tmp_path, config_of(other=receiver.url)) as hooked:
            assert await hooked.pending("ci") == 0


async def test_at_most_so_many_wait_and_the_oldest_are_forgotten_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MAX_WAITING", 5)
    async with open_receiver() as receiver, open_hooked(tmp_path, config_of(ci=receiver.url)) as hooked:
        await hooked.tell(20)
        received = await receiver.until(5)
        await hooked.until_pending(0)
    assert sorted(one.data["session_id"] for one in received) == [f"gogol_{number}" for number in range(15, 20)]
    assert hooked.counts["ci", "forgotten"] == 15


async def test_an_attempt_that_was_cut_off_by_the_daemons_end_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "LEASE", timedelta(seconds=0.2))
    async with open_receiver(keeps_silent) as receiver:
        async with open_hooked(tmp_path, config_of(ci=receiver.url)) as hooked:
            await hooked.tell()
            await receiver.until(1)
        async with open_hooked(tmp_path, config_of(ci=receiver.url)) as hooked:
            first, second = await receiver.until(2)
            await hooked.until_pending(0)
    assert first.data["id"] == second.data["id"]
    assert (first.data["attempt"], second.data["attempt"]) == (1, 2)


KILLED = """
import os, signal, sys, trio
from datetime import UTC, datetime
from pathlib import Path
from oubliette.store import webhooks
from oubliette.store.database import open_store

async def main():
    async with open_store(Path(sys.argv[1]), publish=lambda events: None) as store:
        def unit(tx):
            for number in range(20):
                about = {"session_id": f"gogol_{number}"}
                webhooks.add(tx, "session.turn_ended", "7b1c", about, datetime.now(UTC))
        await store.write(unit)
        os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""


async def test_what_was_committed_before_a_kill_is_told_after_it(tmp_path: Path) -> None:
    async with open_receiver() as receiver:
        config = config_of(ci=receiver.url)
        async with open_hooked(tmp_path, config):
            pass
        program = [sys.executable, "-c", KILLED, str(tmp_path / "oubliette.db")]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with trio.fail_after(30):
            done = await trio.run_process(program, check=False, env=environment, capture_stderr=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        async with open_hooked(tmp_path, config) as hooked:
            received = await receiver.until(20)
            await hooked.until_pending(0)
    assert {one.data["session_id"] for one in received} == {f"gogol_{number}" for number in range(20)}


async def test_the_end_of_a_deleted_projects_session_is_told_although_its_events_are_gone(tmp_path: Path) -> None:
    async with open_receiver(keeps_silent, otherwise=answers(204)) as receiver:
        poster = Poster(timeout_seconds=0.2)
        async with open_hooked(tmp_path, config_of(ci=receiver.url), poster=poster) as hooked:
            session_id = await hooked.world.new("sleep")
            await hooked.world.until(session_id, "running")
            await hooked.world.tree.end_project(PROJECT)
            await hooked.world.store.write(lambda tx: tx.run("DELETE FROM projects WHERE project_id = ?", PROJECT))
            received = await receiver.until(2)
    assert {one.data["session_id"] for one in received} == {session_id}


async def test_a_mistake_in_the_sender_ends_neither_the_service_nor_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oubliette.webhooks.webhooks.RESTART_SECONDS", 0.01)
    broken = iter([True])
    whole = Poster.post

    async def post(self: Poster, *args: object, **named: object) -> object:
        if next(broken, False):
            raise ZeroDivisionError("a mistake of ours")
        return await whole(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Poster, "post", post)
    monkeypatch.setattr(sending, "LEASE", timedelta(seconds=0.05))
    async with open_receiver() as receiver, open_hooked(tmp_path, config_of(ci=receiver.url)) as hooked:
        await hooked.tell()
        await receiver.until(1)
        await hooked.until_pending(0)


async def test_a_world_without_webhooks_runs_as_before(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.settle(await world.new("say hello"))
