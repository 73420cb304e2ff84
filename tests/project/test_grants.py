"""The loan behind a project's ``agent_scope``: who may lend what, when it ends, and for which containers it is good."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import pytest

from oubliette import clock
from oubliette.core.access import parse_scope
from oubliette.core.model import ContainerRow, ContainerState, ProjectRow
from oubliette.core.principals import Principal, TokenRow
from oubliette.core.tokens import token_shape
from oubliette.errors import RequestError
from oubliette.project import grants
from oubliette.project.grants import Grant
from oubliette.project.projects import CreateProject
from oubliette.store import containers, projects, tokens
from tests.project.conftest import ADMIN, World, project_principal

OTHER = "7b1c0000-0000-4000-8000-00000000000f"


async def token(
    world: World, name: str = "laptop", scope: str = "admin", *, kind: str = "client", until: datetime | None = None
) -> Principal:
    row = TokenRow(f"tok_{name}", name, scope, kind, clock.now(), ADMIN.as_json(), expires_at=until)
    await world.store.write(lambda tx: tokens.create(tx, row, name.encode()))
    return Principal("token", row.token_id, name, parse_scope(scope))


async def project(world: World, principal: Principal = ADMIN, **settings: object) -> ProjectRow:
    row = await world.projects.create(principal, CreateProject("shop", settings=settings))
    await world.projects.idle(row.project_id)
    return await world.projects.get(row.project_id)


async def lend(world: World, principal: Principal, project_id: str, scope: str | None) -> ProjectRow:
    return await world.projects.update(principal, project_id, settings={"agent_scope": scope})


async def held(world: World, project_id: str, at: datetime | None = None) -> Grant | None:
    row = await world.projects.get(project_id)
    return await world.store.read(partial(grants.of_project, project=row, at=at or clock.now()))


async def shown(world: World, project_id: str) -> str:
    row = await world.projects.get(project_id)
    view = await world.store.read(lambda tx: world.projects.views.project(tx, row, ADMIN))
    return str(view["agent_scope"])


@pytest.mark.parametrize(
    ("asked", "scope"),
    [
        ("project", "project:{own}"),
        ("project:ro", "project:{own}:ro"),
        ("admin", "admin"),
        ("admin:ro", "admin:ro"),
        ("project:{own}", "project:{own}"),
    ],
)
async def test_a_scope_is_lent_as_a_token_that_the_list_shows(world: World, asked: str, scope: str) -> None:
    laptop = await token(world)
    row = await project(world)
    assert await shown(world, row.project_id) == "none"
    asked, scope = (text.format(own=row.project_id) for text in (asked, scope))
    await lend(world, laptop, row.project_id, asked)
    grant = await held(world, row.project_id)
    assert grant is not None
    assert str(grant.scope) == scope
    assert await shown(world, row.project_id) == asked
    listed, _ = await world.store.read(partial(tokens.list_page, limit=10))
    [shape] = [token_shape(one) for one in listed if one.kind == "agent"]
    assert (shape["token_id"], shape["scope"], shape["created_by"]) == (grant.token_id, scope, laptop.as_json())
    assert shape["name"] == f"agent:{row.project_id}"
    await lend(world, laptop, row.project_id, "none")
    assert await held(world, row.project_id) is None
    assert await shown(world, row.project_id) == "none"


async def test_a_project_may_be_made_with_a_scope(world: World) -> None:
    row = await project(world, await token(world), agent_scope="project:ro")
    grant = await held(world, row.project_id)
    assert grant is not None
    assert str(grant.scope) == f"project:{row.project_id}:ro"


async def test_nobody_lends_who_is_no_admin_and_nobody_lends_more_than_is_theirs(world: World) -> None:
    row = await project(world)
    agent = Principal("agent", "gogol_1", "gogol_1", parse_scope("admin"), grant="tok_x")
    stranger = Principal("token", "tok_unknown", "x", parse_scope("admin"))
    for principal in (
        project_principal(row.project_id),
        await token(world, "reader", "admin:ro"),
        await token(world, "ci", f"project:{row.project_id}"),
        agent,
        stranger,
    ):
        with pytest.raises(RequestError) as caught:
            await lend(world, principal, row.project_id, "project:ro")
        assert caught.value.code == "permission_denied", principal
    assert await held(world, row.project_id) is None


async def test_a_scope_needs_containers_that_are_not_shared_and_a_project_that_exists(world: World) -> None:
    laptop = await token(world)
    shared = await project(world, workspace_isolation=False)
    with pytest.raises(RequestError, match="share a container") as caught:
        await lend(world, laptop, shared.project_id, "project")
    assert caught.value.code == "conflict"
    with pytest.raises(RequestError, match="share a container"):
        await project(world, laptop, workspace_isolation=False, agent_scope="project")
    row = await project(world)
    with pytest.raises(RequestError) as caught:
        await lend(world, laptop, row.project_id, f"project:{OTHER}")
    assert caught.value.code == "not_found"


async def test_what_was_lent_ends_with_the_token_that_lent_it(world: World) -> None:
    laptop = await token(world)
    soon = clock.now() + timedelta(minutes=5)
    phone = await token(world, "phone", until=soon)
    one, two = await project(world), await project(world)
    await lend(world, laptop, one.project_id, "project")
    await lend(world, phone, two.project_id, "project")
    await world.store.write(partial(tokens.revoke, token_id=laptop.id, at=clock.now()))
    assert await held(world, one.project_id) is None
    assert await shown(world, one.project_id) == "none"
    assert await held(world, two.project_id) is not None
    assert await held(world, two.project_id, soon) is None
    revoked, _ = await world.store.read(partial(tokens.list_page, limit=10))
    assert {row.revoked_at is not None for row in revoked if row.created_by["id"] == laptop.id} == {True}
    with pytest.raises(RequestError) as caught:
        await lend(world, laptop, one.project_id, "project")
    assert caught.value.code == "permission_denied"


async def test_what_the_command_line_lent_outlives_its_token_which_is_new_at_each_start(world: World) -> None:
    old = await token(world, "cli", kind="cli")
    row = await project(world)
    await lend(world, old, row.project_id, "project")

    def restart(tx: object) -> None:
        fresh = TokenRow("tok_new", "new", "admin", "cli", clock.now(), ADMIN.as_json())
        tokens.succeed(tx, old.id, fresh.token_id, clock.now())  # type: ignore[arg-type]
        tokens.create(tx, fresh, b"new")  # type: ignore[arg-type]

    await world.store.write(restart)
    assert await held(world, row.project_id) is not None
    await world.store.write(partial(tokens.revoke, token_id="tok_new", at=clock.now()))
    assert await held(world, row.project_id) is None


async def test_a_deleted_projects_loan_ends_with_it(world: World) -> None:
    row = await project(world, await token(world), agent_scope="project")
    await world.projects.delete(row.project_id)
    await world.projects.idle(row.project_id)
    listed, _ = await world.store.read(partial(tokens.list_page, limit=10))
    [loan] = [one for one in listed if one.kind == "agent"]
    assert loan.revoked_at is not None


async def test_it_is_good_only_in_containers_that_were_made_for_it(world: World) -> None:
    """A wider scope asks for a new container; a narrower one counts at once where the wider one was."""
    renewed: list[str] = []
    neighbours = replace(world.projects._neighbours, renew_containers=renewed.append)
    world.projects._neighbours = neighbours
    laptop = await token(world)
    row = await project(world)

    async def made(name: str) -> str:
        project = await world.projects.get(row.project_id)
        spec = {"agent_grant": project.agent_grant} if project.agent_grant else {}
        place, ready = row.default_workspace_id, ContainerState.READY
        new = ContainerRow(name, row.project_id, place, "fake", int(name), "key", ready, clock.now(), spec=spec)
        await world.store.write(partial(containers.insert, row=new))
        return name

    async def may(container_id: str) -> str:
        grant = await world.store.read(partial(grants.of_container, container_id=container_id, at=clock.now()))
        return str(grant.scope) if grant is not None else "nothing"

    own = f"project:{row.project_id}"
    first = await made("1")
    await lend(world, laptop, row.project_id, "project")
    assert (await may(first), renewed) == ("nothing", [row.project_id])
    second = await made("2")
    assert await may(second) == own
    assert await may("nothing") == "nothing"
    await lend(world, laptop, row.project_id, "project:ro")
    assert (await may(second), len(renewed)) == (f"{own}:ro", 1)
    await lend(world, laptop, row.project_id, "project")
    assert (await may(second), len(renewed)) == ("nothing", 2), "what ran there was trusted with less in between"
    third = await made("3")
    assert await may(third) == own
    await lend(world, laptop, row.project_id, None)
    assert (await may(third), len(renewed)) == ("nothing", 2)
    await lend(world, laptop, row.project_id, "project")
    assert (await may(third), len(renewed)) == ("nothing", 3)


async def test_a_setting_without_a_loan_gives_nothing(world: World) -> None:
    """As a version that only kept the setting has left it."""
    row = await project(world)
    await world.store.write(partial(projects.update, project_id=row.project_id, settings={"agent_scope": "admin"}))
    assert await held(world, row.project_id) is None
    assert await shown(world, row.project_id) == "none"
