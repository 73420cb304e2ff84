from __future__ import annotations

from itertools import pairwise, product

import pytest

from oubliette.core import access
from oubliette.core.access import (
    NOT_BY_GRANT,
    TABLE,
    allowed_actions,
    check,
    covers,
    may_ever,
    no_such,
    parse_scope,
    require_known,
)
from oubliette.core.principals import LOCAL, Principal, Scope
from oubliette.errors import RequestError

P = "7b1c0000-0000-4000-8000-000000000001"
Q = "7b1c0000-0000-4000-8000-000000000002"

CALLERS = {
    "admin": Scope("admin"),
    "admin:ro": Scope("admin", read_only=True),
    "project": Scope("project", project_id=P),
    "project:ro": Scope("project", read_only=True, project_id=P),
    "session": Scope("session", project_id=P, session_id="gogol_1", container_id="c1"),
}


def words(text: str) -> list[str]:
    return text.split()


# CONTRACT §3, said a second time by hand.
ADMIN = words("""
token.create token.list token.revoke project.create project.update.guarded container_refresh.by_type
image.build image.pull backup.create backup.list backup.verify backup.restore""")
ADMIN_READ = words("audit.list results.paths lists.unfiltered metrics.read")
WRITE = words("""
project.update project.delete container.start container.stop container.exec container.logs container_refresh
session.spawn session.message session.update session.interrupt session.end session.cancel session.delete
session.cleanup session.answer session.merge caller_tool_response workspace.create workspace.delete workspace.push
workspace.export schedule.create schedule.update schedule.delete schedule.trigger""")
READ = words("""
project.get project.list project.options container.status container.list session.get session.list session.tree
session.events session.wait session.diff session.export workspace.list workspace.read workspace.files schedule.get
schedule.list schedule.history schedule.preview config_limits project_changes project_tasks usage resources.read
events.stream""")
SESSION = words("""
session.spawn session.message session.wait session.get session.list session.tree session.events session.diff
session.merge session.interrupt session.end session.cancel workspace.create workspace.list workspace.read
workspace.files config_limits""")
MAY = {
    "admin": {*ADMIN, *ADMIN_READ, *WRITE, *READ},
    "admin:ro": {*ADMIN_READ, *READ},
    "project": {*WRITE, *READ},
    "project:ro": set(READ),
    "session": set(SESSION),
}


def caller(name: str) -> Principal:
    return Principal("session" if name == "session" else "token", "tok_1", "laptop", CALLERS[name])


def verdict(name: str, action: str, project_id: str | None, *, mine: bool = True) -> str:
    try:
        check(caller(name), action, project_id, session_in_subtree=mine)
    except RequestError as error:
        return error.code
    return "ok"


def test_the_table_has_exactly_the_actions_of_the_contract() -> None:
    assert set(TABLE) == {*ADMIN, *ADMIN_READ, *WRITE, *READ}


@pytest.mark.parametrize(("name", "action"), list(product(CALLERS, TABLE)))
def test_each_scope_may_do_exactly_what_the_contract_says(name: str, action: str) -> None:
    may = action in MAY[name]
    assert may_ever(caller(name), action) is may
    assert (action in allowed_actions(caller(name))) is may
    assert verdict(name, action, P) == ("ok" if may else "permission_denied")


@pytest.mark.parametrize(("name", "action"), list(product(("project", "project:ro", "session"), TABLE)))
def test_a_foreign_target_looks_like_an_unknown_one(name: str, action: str) -> None:
    if action not in MAY[name]:
        assert verdict(name, action, Q) == verdict(name, action, None) == "permission_denied"
        return
    assert verdict(name, action, Q) == "not_found"
    assert verdict(name, action, None) == ("ok" if TABLE[action].anywhere else "not_found")
    if not TABLE[action].anywhere:
        with pytest.raises(RequestError) as foreign:
            check(caller(name), action, Q)
        with pytest.raises(RequestError) as unknown:
            check(caller(name), action, None)
        assert str(foreign.value) == str(unknown.value)
        assert foreign.value.hint == unknown.value.hint


def test_an_agent_reaches_nothing_outside_its_subtree() -> None:
    for action in SESSION:
        assert verdict("session", action, P, mine=False) == "not_found"
    with pytest.raises(RequestError) as outside:
        check(caller("session"), "session.get", P)
    assert str(outside.value) == str(no_such("session"))


def test_an_admin_may_act_where_there_is_no_project() -> None:
    assert verdict("admin", "session.get", None) == "ok"
    check(LOCAL, "backup.create", None)


def test_an_unknown_action_is_a_bug() -> None:
    for use in (require_known, lambda action: check(LOCAL, action, None), lambda action: may_ever(LOCAL, action)):
        with pytest.raises(KeyError):
            use("session.nonsense")
    assert require_known("session.spawn") == "session.spawn"


def test_the_refusal_says_what_is_needed() -> None:
    with pytest.raises(RequestError) as caught:
        check(caller("project"), "token.create", P)
    assert "scope admin" in caught.value.hint
    with pytest.raises(RequestError) as caught:
        check(caller("project:ro"), "session.spawn", P)
    assert "write" in caught.value.hint


@pytest.mark.parametrize("text", ["admin", "admin:ro", f"project:{P}", f"project:{P}:ro"])
def test_a_scope_reads_back_as_it_is_spelt(text: str) -> None:
    assert str(parse_scope(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "root", "admin:rw", "admin:ro:ro", "project", "project:", "project:ro", "project:x", f"project:{P}:rw",
     f"project:{P.upper()}", f"session:{P}", f"project:{P}:ro:ro", "Admin", " admin", f"project:{{{P}}}"],
)  # fmt: skip
def test_anything_else_is_no_scope(text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_scope(text)
    assert (caught.value.code, caught.value.field) == ("invalid_argument", "scope")


def test_no_rule_grants_more_to_a_reader_than_to_a_writer() -> None:
    ordered = ["project:ro", "project", "admin"]
    for less, more in pairwise(ordered):
        assert allowed_actions(caller(less)) <= allowed_actions(caller(more))
    assert allowed_actions(caller("session")) <= allowed_actions(caller("project"))
    assert access.Need.ADMIN > access.Need.READ


SCOPES = ["admin", "admin:ro", f"project:{P}", f"project:{P}:ro", f"project:{Q}", f"project:{Q}:ro"]


@pytest.mark.parametrize(("outer", "inner"), list(product(SCOPES, SCOPES)))
def test_a_scope_covers_another_when_it_may_do_everything_that_the_other_may(outer: str, inner: str) -> None:
    """Against the table itself: every action on either project."""

    def may(text: str) -> set[tuple[str, str]]:
        principal = Principal("token", "tok_1", "laptop", parse_scope(text))
        done = set()
        for action, project_id in product(TABLE, (P, Q)):
            try:
                check(principal, action, project_id)
            except RequestError:
                continue
            done.add((action, project_id))
        return done

    assert covers(parse_scope(outer), parse_scope(inner)) is (may(inner) <= may(outer))


@pytest.mark.parametrize("scope", SCOPES)
def test_an_agent_with_a_scope_may_what_a_token_of_it_may_but_tokens_and_schedules(scope: str) -> None:
    token = Principal("token", "tok_1", "laptop", parse_scope(scope))
    agent = Principal("agent", "gogol_1", "gogol_1", parse_scope(scope), "tok_2")
    assert allowed_actions(agent) == allowed_actions(token) - NOT_BY_GRANT
    assert agent.as_json() == {"kind": "session", "id": "gogol_1", "name": "gogol_1"}
    for action in NOT_BY_GRANT:
        with pytest.raises(RequestError) as caught:
            check(agent, action, P)
        assert caught.value.code == "permission_denied"
