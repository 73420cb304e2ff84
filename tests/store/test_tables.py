from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from oubliette.core.model import (
    ContainerRow,
    ContainerState,
    ModelUsage,
    Outcome,
    PlaceState,
    RequestKind,
    RequestRow,
    TurnStatus,
)
from oubliette.core.principals import TokenRow
from oubliette.errors import RequestError, StoreError
from oubliette.store import (
    audit,
    containers,
    execs,
    meta,
    model_requests,
    projects,
    request_keys,
    requests,
    sessions,
    tokens,
    turns,
    workspaces,
)
from oubliette.store.database import Store, Tx
from tests.store.rows import (
    AT,
    BY,
    PROJECT,
    WORKSPACE,
    place,
    place_with_session,
    project,
    session,
    spend,
    turn,
    workspace,
)

MINUTE = timedelta(minutes=1)


async def test_the_instance_has_one_id_for_ever(store: Store) -> None:
    first = await store.write(meta.instance_id)
    assert await store.read(meta.instance_id) == first
    assert len(first) == 36


# --- tokens


def token(number: int, name: str = "laptop", **more: object) -> TokenRow:
    row = TokenRow(f"tok_{number}", name, "admin", "client", AT + number * MINUTE, BY)
    return replace(row, **more)  # type: ignore[arg-type]


async def test_a_token_is_found_by_hash_id_and_name(store: Store) -> None:
    row = token(1, expires_at=AT + 60 * MINUTE)
    await store.write(lambda tx: tokens.create(tx, row, b"h1"))
    assert await store.read(lambda tx: tokens.by_hash(tx, b"h1")) == row
    assert await store.read(lambda tx: tokens.by_hash(tx, b"h2")) is None
    assert await store.read(lambda tx: tokens.get(tx, "tok_1")) == row
    assert await store.read(lambda tx: tokens.get(tx, "laptop")) == row


async def test_a_name_belongs_to_one_live_token(store: Store) -> None:
    await store.write(lambda tx: tokens.create(tx, token(1, expires_at=AT + 5 * MINUTE), b"h1"))
    with pytest.raises(RequestError) as caught:
        await store.write(lambda tx: tokens.create(tx, token(2), b"h2"))
    assert (caught.value.code, caught.value.field) == ("conflict", "name")
    await store.write(lambda tx: tokens.create(tx, token(6), b"h6"))  # the first has expired by then
    assert await store.write(lambda tx: tokens.revoke(tx, "tok_6", AT + 7 * MINUTE))
    assert not await store.write(lambda tx: tokens.revoke(tx, "tok_6", AT + 8 * MINUTE))
    await store.write(lambda tx: tokens.create(tx, token(9), b"h9"))
    found = await store.read(lambda tx: tokens.get(tx, "laptop"))
    assert found is not None
    assert found.token_id == "tok_9"


async def test_last_use_never_goes_back(store: Store) -> None:
    await store.write(lambda tx: tokens.create(tx, token(1), b"h1"))
    for minutes in (5, 3):
        await store.write(partial(tokens.touch, token_id="tok_1", at=AT + minutes * MINUTE))
    found = await store.read(lambda tx: tokens.get(tx, "tok_1"))
    assert found is not None
    assert found.last_used_at == AT + 5 * MINUTE


# --- lists and cursors


async def test_a_list_pages_newest_first_and_rows_added_later_shift_nothing(store: Store) -> None:
    await store.write(place)
    for number in range(7):
        row = session(f"s{number}", created_at=AT + number // 2 * MINUTE)  # some of the same moment
        await store.write(partial(sessions.insert, row=row))
    seen: list[str] = []
    cursor = None
    while True:
        rows, cursor = await store.read(partial(sessions.list_page, project_id=PROJECT, limit=2, cursor=cursor))
        seen += [row.session_id for row in rows]
        late = session(f"late{len(seen)}", created_at=AT + 60 * MINUTE)
        await store.write(partial(sessions.insert, row=late))
        if cursor is None:
            break
    assert seen == ["s6", "s5", "s4", "s3", "s2", "s1", "s0"]


async def test_a_cursor_is_bound_to_its_filter_and_principal(store: Store) -> None:
    await store.write(place)
    for number in range(3):
        await store.write(partial(sessions.insert, row=session(f"s{number}")))
    _, cursor = await store.read(partial(sessions.list_page, project_id=PROJECT, limit=1, bound_to="tok_1"))
    assert cursor is not None
    for wrong in (
        partial(sessions.list_page, limit=1, cursor=cursor, bound_to="tok_1"),
        partial(sessions.list_page, project_id=PROJECT, limit=1, cursor=cursor, bound_to="tok_2"),
        partial(projects.list_page, limit=1, cursor=cursor),
        partial(tokens.list_page, limit=1, cursor=cursor),
    ):
        with pytest.raises(RequestError) as caught:
            await store.read(wrong)
        assert caught.value.code == "invalid_cursor"


@pytest.mark.parametrize(
    "cursor", ["", "x", "€", "====", "W10", "bnVsbA", "WzEsMiwzXQ", "A" * 10_000, "WyJcdWQ4MDAiXQ", "a b", "[" * 400]
)
async def test_a_malformed_cursor_is_said_to_be_invalid(store: Store, cursor: str) -> None:
    with pytest.raises(RequestError) as caught:
        await store.read(partial(sessions.list_page, limit=1, cursor=cursor))
    assert (caught.value.code, caught.value.field) == ("invalid_cursor", "cursor")


async def test_sessions_are_listed_by_every_filter(store: Store) -> None:
    def rows(tx: Tx) -> None:
        place(tx)
        workspaces.insert(tx, workspace("w2", default=False))
        sessions.insert(tx, session("a", external_id="ticket", source="ci"))
        sessions.insert(tx, session("b", parent_id="a", root_id="a", depth=1, workspace_id="w2"))
        sessions.insert(tx, session("c", status="completed"))
        sessions.insert(tx, session("d", status="running"))

    await store.write(rows)

    async def ids(**filters: object) -> str:
        found, _ = await store.read(partial(sessions.list_page, limit=10, **filters))  # type: ignore[arg-type]
        return "".join(sorted(row.session_id for row in found))

    assert await ids() == "abcd"
    assert await ids(workspace_id="w2") == "b"
    assert await ids(status="open") == "abd"
    assert await ids(status=["completed", "running"]) == "cd"
    assert await ids(status=[]) == ""
    assert await ids(root_id="a") == "ab"
    assert await ids(parent_id="a") == "b"
    assert await ids(external_id="ticket") == "a"
    assert await ids(source="ci", status="open") == "a"
    assert await ids(project_id="nobody") == ""


# --- projects and workspaces


async def test_a_project_reads_back_as_it_was_written(store: Store) -> None:
    row = project(
        description="d", remote_url="https://x/y", settings={"model": "opus", "limits": {"max_cost_usd": 1.5}}
    )
    await store.write(partial(projects.insert, row=row))
    assert await store.read(partial(projects.get, project_id=PROJECT)) == row
    later = AT + MINUTE
    await store.write(lambda tx: projects.set_state(tx, PROJECT, PlaceState.FAILED, {"code": "clone_failed"}, later))
    found = await store.read(partial(projects.get, project_id=PROJECT))
    assert found == replace(row, state=PlaceState.FAILED, error={"code": "clone_failed"}, updated_at=later)
    assert await store.read(lambda tx: projects.in_states(tx, [PlaceState.FAILED])) == [found]
    assert await store.read(lambda tx: projects.in_states(tx, [PlaceState.READY])) == []


async def test_an_unknown_column_is_a_bug_and_changes_nothing(store: Store) -> None:
    await store.write(place_with_session)
    with pytest.raises(TypeError, match="nonsense"):
        await store.write(partial(projects.update, project_id=PROJECT, nonsense=1))
    with pytest.raises(TypeError, match="last_index"):
        await store.write(partial(sessions.update, session_id="gogol_1", last_index=3))


async def test_project_names_are_searched_without_regard_to_case(store: Store) -> None:
    for number, name in enumerate(["Shop", "workshop", "blog"]):
        await store.write(partial(projects.insert, row=project(str(number), name=name)))
    rows, _ = await store.read(partial(projects.list_page, name_contains="sHOp", limit=10))
    assert sorted(row.name for row in rows) == ["Shop", "workshop"]
    rows, _ = await store.read(partial(projects.list_page, name_contains="%", limit=10))
    assert rows == []


async def test_limits_of_projects_and_workspaces_hold(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projects, "MAX_PROJECTS", 2)
    monkeypatch.setattr(workspaces, "MAX_PER_PROJECT", 2)
    await store.write(place)
    await store.write(partial(projects.insert, row=project("p2")))
    with pytest.raises(RequestError) as caught:
        await store.write(partial(projects.insert, row=project("p3")))
    assert caught.value.code == "limit_reached"
    assert caught.value.limit is not None
    assert caught.value.limit.used == 2
    await store.write(partial(workspaces.insert, row=workspace("w2", external_id="x")))
    with pytest.raises(RequestError) as caught:
        await store.write(partial(workspaces.insert, row=workspace("w3")))
    assert caught.value.code == "limit_reached"


async def test_an_external_id_is_unique_per_project_and_kind(store: Store) -> None:
    def rows(tx: Tx) -> None:
        place(tx)
        workspaces.insert(tx, workspace("w2", external_id="x"))
        sessions.insert(tx, session("a", external_id="x"))

    await store.write(rows)
    for unit in (
        partial(workspaces.insert, row=workspace("w3", external_id="x")),
        partial(sessions.insert, row=session("b", external_id="x")),
    ):
        with pytest.raises(RequestError) as caught:
            await store.write(unit)
        assert (caught.value.code, caught.value.field) == ("conflict", "external_id")


async def test_deleting_a_project_takes_everything_along_but_what_was_spent(store: Store) -> None:
    def rows(tx: Tx) -> None:
        place(tx)
        sessions.insert(tx, session("a"))
        sessions.insert(tx, session("b", parent_id="a", root_id="a", depth=1))
        turns.insert(tx, turn("a"))
        containers.insert(tx, container(1))
        spend(tx, "a", 1, 10)

    await store.write(rows)
    counts = await store.read(partial(projects.counts, project_id=PROJECT))
    assert counts == {"workspaces": 1, "sessions": 2, "open": 2, "schedules": 0}
    assert await store.write(partial(projects.delete, project_id=PROJECT))
    for table in ("workspaces", "sessions", "turns", "containers", "event_logs", "events"):
        assert await store.read(lambda tx, table=table: tx.rows(f"SELECT count(*) FROM {table}")) == [(0,)]  # type: ignore[misc]
    assert (await store.read(partial(model_requests.project_usage, project_id=PROJECT))).cost_microusd == 10


async def test_open_sessions_of_a_workspace_are_counted(store: Store) -> None:
    def rows(tx: Tx) -> None:
        place(tx)
        for name, status in (("a", "idle"), ("b", "running"), ("c", "cancelled")):
            sessions.insert(tx, session(name, status=status))

    await store.write(rows)
    assert await store.read(partial(workspaces.open_sessions, workspace_id=WORKSPACE)) == 2


# --- containers


def container(generation: int, workspace_id: str | None = WORKSPACE, **more: object) -> ContainerRow:
    row = ContainerRow(
        f"c{generation}{workspace_id}", PROJECT, workspace_id, "docker", generation, "cap", ContainerState.READY, AT
    )
    return replace(row, **more)  # type: ignore[arg-type]


async def test_the_newest_generation_of_a_place_is_found(store: Store) -> None:
    def rows(tx: Tx) -> None:
        place(tx)
        for row in (container(2), container(1, state=ContainerState.ABSENT), container(7, None)):
            containers.insert(tx, row)

    await store.write(rows)
    found = await store.read(partial(containers.for_place, project_id=PROJECT, workspace_id=WORKSPACE))
    assert found == container(2)
    shared = await store.read(partial(containers.for_place, project_id=PROJECT, workspace_id=None))
    assert shared == container(7, None)
    assert len(await store.read(containers.all_live)) == 2
    assert len(await store.read(partial(containers.of_project, project_id=PROJECT))) == 2
    assert await store.write(partial(containers.update, container_id=container(2).container_id, agent={"restarts": 1}))
    assert await store.write(partial(containers.delete, container_id=container(7, None).container_id))
    with pytest.raises(RequestError, match="gone"):
        await store.write(partial(containers.insert, row=container(1, "no such workspace")))


# --- sessions


async def test_a_session_reads_back_as_it_was_written(store: Store) -> None:
    await store.write(place)
    row = session(
        "a", settings={"system": "s"}, limits={"max_cost_usd": 1.5}, hibernated=True, ended_at=AT, reason="budget"
    )
    await store.write(partial(sessions.insert, row=row))
    assert await store.read(partial(sessions.get, session_id="a")) == row
    later = AT + MINUTE
    assert await store.write(partial(sessions.update, session_id="a", reason=None, turn=4, updated_at=later))
    found = await store.read(partial(sessions.get, session_id="a"))
    assert found == replace(row, reason=None, turn=4, updated_at=later)
    assert not await store.write(partial(sessions.update, session_id="nobody", turn=1))


async def test_a_status_that_does_not_exist_is_never_stored(store: Store) -> None:
    await store.write(place)
    with pytest.raises(ValueError, match="nonsense"):
        await store.write(partial(sessions.insert, row=session(status="nonsense")))


async def test_a_session_without_its_place_or_parent_is_refused(store: Store) -> None:
    await store.write(place)
    for row in (session("a", workspace_id="w9"), session("a", parent_id="p9"), session("a", root_id="r9")):
        with pytest.raises(RequestError) as caught:
            await store.write(partial(sessions.insert, row=row))
        assert caught.value.code == "not_found"


def family(tx: Tx) -> None:
    """r(a(a1, a2(a21)), b)"""
    place(tx)
    sessions.insert(tx, session("r", status="running"))
    for name, parent, depth, minute in (
        ("b", "r", 1, 2),
        ("a", "r", 1, 1),
        ("a1", "a", 2, 3),
        ("a2", "a", 2, 4),
        ("a21", "a2", 3, 5),
    ):
        row = session(name, parent_id=parent, root_id="r", depth=depth, created_at=AT + minute * MINUTE)
        sessions.insert(tx, row)
    sessions.update(tx, "a21", status="completed")
    sessions.insert(tx, session("other"))


async def test_a_subtree_is_depth_first_with_siblings_in_order_of_creation(store: Store) -> None:
    await store.write(family)

    async def ids(of: str) -> list[str]:
        return [row.session_id for row in await store.read(partial(sessions.subtree, session_id=of))]

    assert await ids("r") == ["r", "a", "a1", "a2", "a21", "b"]
    assert await ids("a2") == ["a2", "a21"]
    assert await ids("nobody") == []
    assert await store.read(partial(sessions.ancestors, session_id="a21")) == ["a21", "a2", "a", "r"]


async def test_trees_and_children_are_counted(store: Store) -> None:
    await store.write(family)
    assert await store.read(partial(sessions.children_counts, session_id="a2")) == {"total": 1, "open": 0}
    assert await store.read(partial(sessions.children_counts, session_id="r")) == {"total": 2, "open": 2}
    counts = await store.read(partial(sessions.tree_counts, root_id="r"))
    assert counts == {
        "total": 6, "open": 5, "starting": 0, "running": 1, "waiting": 0, "paused": 0, "idle": 4, "failed": 0,
        "max_depth": 3,
    }  # fmt: skip
    assert [row.session_id for row in await store.read(sessions.open_roots)] == ["other", "r"]
    assert [row.session_id for row in await store.read(sessions.open_all)] == ["other", "r", "a", "b", "a1", "a2"]
    assert await store.read(sessions.open_count) == 6


async def test_a_session_with_children_is_not_deleted(store: Store) -> None:
    await store.write(family)
    with pytest.raises(RequestError) as caught:
        await store.write(partial(sessions.delete, session_id="a"))
    assert caught.value.code == "conflict"
    for one in ("a1", "a21", "a2", "a", "b", "r"):
        assert await store.write(partial(sessions.delete, session_id=one))
    assert not await store.write(partial(sessions.delete, session_id="r"))


async def test_only_a_settled_root_of_the_same_kind_of_caller_is_resumable(store: Store) -> None:
    mine = {"settings": {"principal_scope": "admin"}}

    def rows(tx: Tx) -> None:
        place(tx)
        sessions.insert(tx, session("good", **mine))
        sessions.insert(tx, session("older", created_at=AT - MINUTE, **mine))
        newer = AT + MINUTE
        unfit: dict[str, dict[str, Any]] = {
            "running": {"status": "running"},
            "ended": {"status": "completed"},
            "ending": {"ending": "cancelled"},
            "pinned": {"schedule_id": "sched_1"},
            "foreign": {"settings": {"principal_scope": f"project:{PROJECT}"}},
            "unknown": {"settings": {}},
            "by_agent": {"created_by": {"kind": "session", "id": "s", "name": "s"}},
            "queued": {},
            "asking": {},
        }
        for name, more in unfit.items():
            sessions.insert(tx, session(name, created_at=newer, **{**mine, **more}))
        sessions.insert(tx, session("child", created_at=newer, parent_id="good", root_id="good", depth=1, **mine))
        turns.insert(tx, turn("queued"))
        requests.insert(tx, request("asking"))

    await store.write(rows)
    found = await store.read(partial(sessions.resumable, workspace_id=WORKSPACE, scope="admin"))
    assert found is not None
    assert found.session_id == "good"
    assert await store.read(partial(sessions.resumable, workspace_id=WORKSPACE, scope="admin:ro")) is None
    assert await store.read(partial(sessions.resumable, workspace_id="w9", scope="admin")) is None


async def test_a_session_is_found_by_what_its_agent_calls_it_in_that_place_only(store: Store) -> None:
    def rows(tx: Tx) -> None:
        place(tx)
        workspaces.insert(tx, workspace("w2"))
        sessions.insert(tx, session("a", agent_session_id="ses_1"))
        sessions.insert(tx, session("b", workspace_id="w2", created_at=AT - MINUTE))

    await store.write(rows)

    async def by_agent(workspace_id: str | None, agent_id: str = "ses_1") -> str | None:
        row = await store.read(lambda tx: sessions.by_agent_id(tx, PROJECT, workspace_id, agent_id))
        return row.session_id if row else None

    assert await by_agent(WORKSPACE) == "a"
    assert await by_agent(None) == "a"
    assert await by_agent("w2") is None
    assert await by_agent(WORKSPACE, "ses_2") is None
    oldest = await store.read(lambda tx: sessions.open_in_place(tx, PROJECT, None))
    assert [row.session_id for row in oldest] == ["b", "a"]
    assert [row.session_id for row in await store.read(lambda tx: sessions.open_in_place(tx, PROJECT, "w2"))] == ["b"]


# --- turns, requests


async def test_turns_queue_in_order_and_page_newest_first(store: Store) -> None:
    def rows(tx: Tx) -> None:
        place_with_session(tx)
        for number in range(1, 6):
            turns.insert(tx, turn(number=number))
        done = {"status": TurnStatus.DONE, "outcome": Outcome.COMPLETED, "files": [{"path": "a"}]}
        turns.update(tx, "gogol_1", 1, **done)
        turns.update(tx, "gogol_1", 2, status=TurnStatus.RUNNING)

    await store.write(rows)
    sid = "gogol_1"
    upcoming, running, last = await store.read(
        lambda tx: (turns.next_queued(tx, sid), turns.running(tx, sid), turns.last(tx, sid))
    )
    assert upcoming == turn(number=3)
    assert running is not None
    assert running.turn == 2
    assert last == running
    assert await store.read(partial(turns.queued_count, session_id=sid)) == 3
    first = await store.read(partial(turns.get, session_id=sid, turn=1))
    assert first == turn(status=TurnStatus.DONE, outcome=Outcome.COMPLETED, files=[{"path": "a"}])
    page, cursor = await store.read(partial(turns.list_page, session_id=sid, limit=3))
    assert [row.turn for row in page] == [5, 4, 3]
    page, cursor = await store.read(partial(turns.list_page, session_id=sid, limit=3, cursor=cursor))
    assert [row.turn for row in page] == [2, 1]
    assert cursor is None
    with pytest.raises(StoreError):
        await store.write(partial(turns.insert, row=turn(number=1)))


def request(session_id: str = "gogol_1", number: int = 1, minutes: int = 10) -> RequestRow:
    return RequestRow(
        f"req_{session_id}_{number}", session_id, 1, RequestKind.PERMISSION, AT, AT + minutes * MINUTE, "reject",
        {"action": "bash"}, f"per_{number}",
    )  # fmt: skip


async def test_a_request_has_one_winner(store: Store) -> None:
    await store.write(place_with_session)
    row = request()
    await store.write(partial(requests.insert, row=row))
    assert await store.read(partial(requests.pending, session_id="gogol_1")) == [row]
    first = await store.write(lambda tx: requests.resolve(tx, row.request_id, {"how": "answered", "reply": "once"}))
    second = await store.write(lambda tx: requests.resolve(tx, row.request_id, {"how": "expired"}))
    assert first == (True, replace(row, resolution={"how": "answered", "reply": "once"}))
    assert second == (False, first[1])
    assert await store.write(lambda tx: requests.resolve(tx, "req_9", {})) == (False, None)
    assert await store.read(partial(requests.pending, session_id="gogol_1")) == []


async def test_requests_become_due_in_order(store: Store) -> None:
    def rows(tx: Tx) -> None:
        place_with_session(tx)
        for number, minutes in ((1, 10), (2, 5), (3, 20)):
            requests.insert(tx, request(number=number, minutes=minutes))

    await store.write(rows)
    due = await store.read(partial(requests.due, at=AT + 10 * MINUTE))
    assert [row.agent_ref for row in due] == ["per_2", "per_1"]
    found = await store.read(partial(requests.by_agent_ref, session_id="gogol_1", agent_ref="per_3"))
    assert found == request(number=3, minutes=20)
    assert await store.read(requests.next_expiry) is not None


# --- the meter, keys, audit, execs


async def test_what_was_spent_is_summed_by_turn_session_tree_and_project(store: Store) -> None:
    def rows(tx: Tx) -> None:
        spend(tx, "a", 1, 10)
        spend(tx, "a", 2, 20, minutes=5)
        spend(tx, "b", 1, 40, minutes=10, cost_complete=False)

    await store.write(rows)
    turn_one, in_session, in_tree, in_project, lately, nothing = await store.read(
        lambda tx: (
            model_requests.turn_usage(tx, "a", 1),
            model_requests.session_usage(tx, "a"),
            model_requests.tree_usage(tx, "a"),
            model_requests.project_usage(tx, PROJECT),
            model_requests.project_usage(tx, PROJECT, AT + 5 * MINUTE),
            model_requests.session_usage(tx, "nobody"),
        )
    )
    assert turn_one == ModelUsage(1, 100, 10, 1, 50, 5, 10, True)
    assert in_session == ModelUsage(2, 200, 20, 2, 100, 10, 30, True)
    assert in_tree == in_project == ModelUsage(3, 300, 30, 3, 150, 15, 70, False)
    assert lately == ModelUsage(2, 200, 20, 2, 100, 10, 60, False)
    assert nothing == ModelUsage()


async def test_a_request_key_remembers_its_result_until_it_is_purged(store: Store) -> None:
    def remember(tx: Tx, args_hash: str, result: dict[str, object]) -> None:
        request_keys.remember(tx, "tok_1", "session", "spawn", "k", args_hash, result, AT)

    find = partial(request_keys.find, principal_id="tok_1", tool="session", action="spawn", key="k")
    assert await store.read(find) is None
    await store.write(partial(remember, args_hash="h", result={"session_id": "s"}))
    assert await store.read(find) == ("h", {"session_id": "s"})
    await store.write(partial(remember, args_hash="h", result={"session_id": "s", "turn": 1}))
    await store.write(partial(remember, args_hash="other", result={}))
    assert await store.read(find) == ("h", {"session_id": "s", "turn": 1})
    assert await store.read(partial(find, principal_id="tok_2")) is None
    assert await store.write(partial(request_keys.purge, before=AT)) == 0
    assert await store.write(partial(request_keys.purge, before=AT + MINUTE)) == 1
    assert await store.read(find) is None


async def test_the_audit_trail_pages_newest_first(store: Store) -> None:
    for number in range(5):
        await store.write(
            partial(
                audit.add,
                principal=BY,
                action="token.create" if number % 2 else "project.delete",
                target=str(number),
                outcome="ok",
                request_id=None,
                ts=AT + number * MINUTE,
            )
        )
    page, cursor = await store.read(partial(audit.list_page, limit=3))
    assert [row.target for row in page] == ["4", "3", "2"]
    page, cursor = await store.read(partial(audit.list_page, limit=3, cursor=cursor))
    assert [row.target for row in page] == ["1", "0"]
    assert page[0].principal == BY
    page, _ = await store.read(partial(audit.list_page, limit=3, action="token.create", since=AT + 2 * MINUTE))
    assert [row.target for row in page] == ["3"]
    assert await store.write(partial(audit.purge, before=AT + 3 * MINUTE)) == 3


async def test_an_exec_outlives_the_call_that_began_it(store: Store) -> None:
    await store.write(place)
    row = execs.ExecRow("exec_1", PROJECT, WORKSPACE, ["sh", "-c", "true"], execs.ExecState.RUNNING, AT, BY)
    await store.write(partial(execs.insert, row=row))
    assert await store.read(execs.running) == [row]
    done: dict[str, Any] = {
        "state": execs.ExecState.DONE,
        "exit_code": 0,
        "stdout": "out",
        "stdout_bytes": 3,
        "ended_at": AT + MINUTE,
    }
    assert await store.write(partial(execs.update, exec_id="exec_1", **done))
    assert await store.read(partial(execs.get, exec_id="exec_1")) == replace(row, **done)
    assert await store.write(partial(execs.purge, before_micros=2**62)) == 1
