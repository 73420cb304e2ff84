"""A container is made for what its agents were lent: one of another trust is never widened, it is made anew."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from oubliette.core.model import Json
from oubliette.core.principals import AGENT_GRANT
from oubliette.store import projects
from tests.container.fakes import World, fake, world
from tests.relay.harness import PATIENCE, until


async def lend(w: World, grant: str | None) -> None:
    settings: Json = {AGENT_GRANT: {"id": grant, "token_id": "tok_1"}} if grant else {}
    await w.store.write(partial(projects.update, project_id=w.project_id, settings=settings))


async def test_a_container_is_made_anew_for_a_wider_scope_once_nobody_works_in_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1") as ready:
                await lend(w, "g1")
                served.renew("p1")
                await fake(ready).say("still working")
                assert AGENT_GRANT not in (await w.row()).spec
            await until(lambda: "hibernated" in w.codes)
            async with served.lease("p1", "w1") as ready:
                await fake(ready).say("with a scope")
            row = await w.row()
            assert (row.generation, row.spec[AGENT_GRANT]) == (2, "g1")
            async with served.lease("p1", "w1") as again:
                await fake(again).say("the same one")
            assert (await w.row()).container_id == row.container_id


async def test_an_idle_container_goes_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w, w.daemon() as served:
        with trio.fail_after(PATIENCE):
            async with served.lease("p1", "w1"):
                pass
            await lend(w, "g1")
            served.renew("p1")
            await until(lambda: "hibernated" in w.codes)


async def test_what_was_lent_while_no_daemon_ran_to_see_it_counts_after_the_next_start(tmp_path: Path) -> None:
    """The daemon dies between the loan's commit and the container's end: what it adopts is still the old one."""
    async with world(tmp_path) as w:
        with trio.fail_after(PATIENCE):
            async with w.daemon() as served, served.lease("p1", "w1"):
                await lend(w, "g1")
            async with w.daemon() as served:
                await until(lambda: "hibernated" in w.codes)
                async with served.lease("p1", "w1"):
                    pass
                row = await w.row()
                assert (row.generation, row.spec[AGENT_GRANT]) == (2, "g1")


async def test_a_scope_that_was_taken_back_ends_no_container(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await lend(w, "g1")
        async with w.daemon() as served:
            with trio.fail_after(PATIENCE):
                async with served.lease("p1", "w1"):
                    pass
                before = await w.row()
                await lend(w, None)
                async with served.lease("p1", "w1"):
                    pass
                assert (await w.row()).container_id == before.container_id
                assert "hibernated" not in w.codes
