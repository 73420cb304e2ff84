"""What pauses schedules: failures, tokens, places that are gone. Nothing fails silently for ever."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from oubliette.core.model import Json
from oubliette.core.principals import LOCAL, Principal, Scope, TokenRow
from oubliette.errors import RequestError
from oubliette.schedule.requests import ScheduleChanges, TargetArgs
from oubliette.store import projects, schedules, tokens, webhooks
from oubliette.store.database import Tx
from tests.schedule.world import ADMIN, OF_OTHER, OF_PROJECT, OTHER_PROJECT, PROJECT, START, Place, open_place


async def _fail(place: Place, schedule_id: str, number: int) -> list[Json]:
    place.clock.advance(hours=1)
    return await place.ended(schedule_id, number)


async def test_failures_in_a_row_pause_it_and_enabling_it_begins_anew(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        endpoint: dict[str, tuple[list[str], list[str]]] = {"ci": (["schedule.paused"], [])}
        await place.sessions.store.write(partial(webhooks.set_endpoints, wanted=endpoint))
        schedule_id = await place.create("fail no such model")
        for number in (1, 2, 3):
            found = await _fail(place, schedule_id, number)
            assert (found[-1]["status"], found[-1]["error"]["code"]) == ("failed", "model_error")
        shown = await place.shown(schedule_id)
        assert shown["consecutive_failures"] == 3
        assert shown["paused"]["reason"] == "failures"
        assert shown["paused"]["text"] == "3 runs failed in a row. The last: no such model"
        notices = await place.sessions.store.read(partial(webhooks.pending, endpoint="ci"))
        assert notices == 1
        place.clock.advance(hours=5)
        await place.asleep()
        assert len(await place.runs(schedule_id)) == 3
        shown = await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(enabled=True))
        assert "paused" not in shown
        assert shown["consecutive_failures"] == 0
        found = await _fail(place, schedule_id, 4)
        assert found[-1]["status"] == "failed", "what passed while it was paused is no gap"
        assert "paused" not in await place.shown(schedule_id)


async def test_what_went_wrong_in_one_project_is_not_told_to_readers_of_another(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        both = [TargetArgs(PROJECT), TargetArgs(OTHER_PROJECT)]
        schedule_id = await place.create("fail the secret path", targets=both, pause_after_failures=1)
        await place.schedules.trigger(ADMIN, schedule_id)
        await place.ended(schedule_id, 2)
        own = await place.schedules.get(OF_OTHER, schedule_id)
        assert own["paused"]["text"] == "A run failed."


async def test_a_success_in_between_and_runs_that_were_skipped_do_not_count(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("fail once", pause_after_failures=2)
        await _fail(place, schedule_id, 1)
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(message="say fine"))
        await _fail(place, schedule_id, 2)
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(message="fail again"))
        await _fail(place, schedule_id, 3)
        assert "paused" not in await place.shown(schedule_id)
        await _fail(place, schedule_id, 4)
        assert (await place.shown(schedule_id))["paused"]["reason"] == "failures"


async def test_zero_means_never(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("fail", pause_after_failures=0)
        for number in range(1, 6):
            await _fail(place, schedule_id, number)
        assert "paused" not in await place.shown(schedule_id)


async def test_a_turn_over_its_time_fails_and_one_stopped_by_hand_is_cancelled(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", timeout_minutes=0.005)
        (run,) = await _fail(place, schedule_id, 1)
        assert (run["status"], run["reason"], run["error"]["code"]) == ("failed", "timed_out", "timed_out")
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(timeout_minutes=None))
        place.clock.advance(hours=1)
        found = await place.until(schedule_id, lambda found: found[-1]["status"] == "running")
        await place.sessions.tree.end(ADMIN, found[-1]["session_id"], "cancelled")
        found = await place.ended(schedule_id, 2)
        assert (found[-1]["status"], found[-1]["reason"]) == ("cancelled", "cancelled")
        assert (await place.shown(schedule_id))["consecutive_failures"] == 1


async def test_a_revoked_token_pauses_at_the_next_occurrence_which_is_accounted_for(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create(principal=OF_PROJECT)
        place.clock.advance(hours=1)
        await place.ended(schedule_id)
        await place.sessions.store.write(partial(tokens.revoke, token_id=OF_PROJECT.id, at=place.clock.now()))
        place.clock.advance(hours=1)
        found = await place.ended(schedule_id, 2)
        assert (found[1]["status"], found[1]["reason"]) == ("skipped", "token_revoked")
        assert (await place.shown(schedule_id))["paused"]["reason"] == "token_revoked"
        # Whoever enables it answers for it from now on.
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(enabled=True))
        place.clock.advance(hours=1)
        assert (await place.ended(schedule_id, 3))[2]["status"] == "succeeded"
        assert (await place.shown(schedule_id))["created_by"]["id"] == OF_PROJECT.id


async def test_an_expired_token_and_one_without_write_pause_too(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        soon = TokenRow(
            "tok_soon", "soon", "admin", "client", START, {}, expires_at=START + timedelta(hours=1, minutes=30)
        )
        await place.sessions.store.write(partial(tokens.create, row=soon, secret_hash=b"soon"))
        expiring = Principal("token", "tok_soon", "soon", Scope("admin"))
        first = await place.create(principal=expiring)
        second = await place.create()
        # A row that says less than it did: tokens are not changed, but rows are what counts.
        await place.sessions.store.write(partial(schedules.update, schedule_id=second, authority="tok_reader"))
        place.clock.advance(hours=1)
        await place.ended(first)
        assert (await place.ended(second))[0]["reason"] == "permission_denied"
        place.clock.advance(hours=1)
        assert (await place.ended(first, 2))[1]["reason"] == "token_expired"
        assert (await place.shown(first))["paused"]["reason"] == "token_expired"
        assert (await place.shown(second))["paused"]["reason"] == "permission_denied"


async def test_the_operators_own_token_may_change_with_every_start(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        row = TokenRow("tok_cli", "cli", "admin", "cli", START, {})
        await place.sessions.store.write(partial(tokens.create, row=row, secret_hash=b"cli"))
        schedule_id = await place.create(principal=Principal("token", "tok_cli", "cli", Scope("admin")))
        by_daemon = await place.create(principal=LOCAL)
        await place.sessions.store.write(partial(tokens.revoke, token_id="tok_cli", at=START))
        place.clock.advance(hours=1)
        for one in (schedule_id, by_daemon):
            assert (await place.ended(one))[0]["status"] == "succeeded"


async def test_nobody_but_a_token_or_the_operator_leaves_a_schedule_running(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        agent = Principal("agent", "gogol_1", "agent", Scope("admin"))
        with pytest.raises(RequestError, match="may not leave schedules running"):
            await place.create(principal=agent)
        assert not (await place.schedules.list_page(ADMIN, project_id=None, limit=10, cursor=None))["schedules"]


async def test_a_deleted_project_takes_its_targets_and_pauses_what_has_no_other(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        both = await place.create("say hi", targets=[TargetArgs(PROJECT), TargetArgs(OTHER_PROJECT)])
        only = await place.create("say hi", targets=[TargetArgs(OTHER_PROJECT)])
        place.clock.advance(hours=1)
        await place.ended(both, 2)
        await place.ended(only, 1)

        def delete(tx: Tx) -> None:
            schedules.project_deleted(tx, OTHER_PROJECT, place.clock.now())
            tx.run("UPDATE sessions SET status = 'cancelled' WHERE project_id = ?", OTHER_PROJECT)
            projects.delete(tx, OTHER_PROJECT)

        await place.sessions.store.write(delete)
        shown = await place.shown(only)
        assert (shown["paused"]["reason"], shown["targets"]) == ("project_deleted", [])
        assert [one["project_id"] for one in (await place.shown(both))["targets"]] == [PROJECT]
        place.clock.advance(hours=1)
        found = await place.ended(both, 3)
        assert [run["status"] for run in found] == ["succeeded"] * 3
        assert len(await place.runs(only)) == 1, "the account of what ran there stays"


async def test_a_run_whose_session_is_deleted_under_it_ends(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", targets=[TargetArgs(OTHER_PROJECT)])
        place.clock.advance(hours=1)
        await place.until(schedule_id, lambda found: bool(found) and found[0]["status"] == "running")

        def delete(tx: Tx) -> None:
            schedules.project_deleted(tx, OTHER_PROJECT, place.clock.now())
            projects.delete(tx, OTHER_PROJECT)

        await place.sessions.store.write(delete)
        place.clock.advance(minutes=1)
        (run,) = await place.ended(schedule_id)
        assert (run["status"], run["reason"]) == ("cancelled", "session_deleted")


async def test_what_waits_is_cancelled_when_it_is_paused_or_disabled(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        schedule_id = await place.create("sleep", overlap_behavior="queue")
        for number in (1, 2):
            place.clock.advance(hours=1)
            await place.until(schedule_id, lambda found, n=number: len(found) == n)  # type: ignore[misc]
        await place.schedules.update(ADMIN, schedule_id, ScheduleChanges(enabled=False))
        found = await place.until(schedule_id, lambda found: found[0]["status"] == "running")
        assert (found[1]["status"], found[1]["reason"]) == ("cancelled", "disabled")
        place.clock.advance(hours=3)
        await place.asleep()
        assert len(await place.runs(schedule_id)) == 2
