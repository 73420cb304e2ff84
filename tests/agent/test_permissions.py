"""The rules by themselves: the last match decides, as OpenCode does it."""

from __future__ import annotations

from typing import Any

import pytest

from oubliette.agent.base import AgentSessionSpec
from oubliette.agent.permissions import (
    Rule,
    asking_rule,
    granting_rules,
    hiding_rules,
    is_granted,
    is_hidden,
    matches,
    session_rules,
)
from oubliette.core.model import Autonomy
from oubliette.errors import RequestError


def rules(**more: Any) -> list[Rule]:
    return session_rules(AgentSessionSpec(title="t", directory="/workspaces/w", **more))


def decided(found: list[Rule], permission: str, pattern: str = "x") -> str:
    for rule in reversed(found):
        if matches(rule["permission"], permission) and matches(rule["pattern"], pattern):
            return rule["action"]
    return "ask"


@pytest.mark.parametrize(
    ("glob", "text", "fits"),
    [
        ("ls *", "ls", True),
        ("ls *", "ls -la", True),
        ("ls *", "lsof", False),
        ("*", "anything\nat all", True),
        ("git push *", "git push", True),
        ("a?c", "abc", True),
        ("a.c", "abc", False),
        ("oubliette_*", "oubliette_session", True),
    ],
)
def test_wildcards_are_opencodes(glob: str, text: str, fits: bool) -> None:
    assert matches(glob, text) is fits


@pytest.mark.parametrize("autonomy", list(Autonomy))
def test_sub_sessions_are_denied_at_every_level_and_whatever_is_allowed(autonomy: Autonomy) -> None:
    for allowed in (None, ["task"], ["*"]):
        assert decided(rules(autonomy=autonomy, tools_allowed=allowed, permissions={"task": "allow"}), "task") == "deny"


def test_each_level_asks_no_less_than_the_one_before() -> None:
    strict = {"allow": 0, "ask": 1, "deny": 2}
    asked = [
        ("bash", "git push"), ("bash", "make"), ("bash", "ls"), ("bash", "cat a > b"), ("edit", "a.py"),
        ("read", "a.py"), ("read", ".env"), ("webfetch", "https://x"), ("external_directory", "/etc/*"),
        ("docs_search", "*"),
        ("oubliette_session", "*"), ("doom_loop", "bash"), ("doom_loop", "oubliette_session"), ("glob", "*"),
    ]  # fmt: skip
    levels = [Autonomy.OFF, Autonomy.HIGH, Autonomy.MEDIUM, Autonomy.LOW]
    for permission, pattern in asked:
        found = [strict[decided(rules(autonomy=level), permission, pattern)] for level in levels]
        assert found == sorted(found), (permission, pattern)
        assert found[0] == 0


def test_our_own_tools_are_never_asked_for() -> None:
    for autonomy in Autonomy:
        assert decided(rules(autonomy=autonomy), "oubliette_session", "*") == "allow"


def test_allowed_tools_keep_what_is_asked_about_them() -> None:
    found = rules(autonomy=Autonomy.MEDIUM, tools_allowed=["bash", "docs_*"])
    assert decided(found, "bash", "make") == "ask"
    assert decided(found, "bash", "ls -la") == "allow"
    assert decided(found, "docs_search", "*") == "allow"
    assert decided(found, "external_directory", "/etc/*") == "ask"
    for given in ("/state/context/*", "/state/results/gogol_1/*"):
        assert decided(found, "external_directory", given) == "allow"
    assert decided(found, "edit") == "deny"
    assert decided(found, "oubliette_session") == "deny"


def test_a_tool_that_shares_its_permission_is_hidden_with_it() -> None:
    for name in ("write", "edit", "apply_patch"):
        assert decided(rules(tools_disallowed=[name]), "edit") == "deny"


def test_protected_paths_hold_in_both_spellings_and_nowhere_else() -> None:
    found = rules(protected_paths=["ci", "/a/b/"])
    for path in ("ci", "ci/x/y.yml", "workspaces/w/ci/x", "a/b", "workspaces/w/a/b/c"):
        assert decided(found, "edit", path) == "deny"
    for path in ("circle", "src/ci", "a", "a/bc"):
        assert decided(found, "edit", path) == "allow"


@pytest.mark.parametrize("permissions", [{"bash": "maybe"}, {"bash": {"*": True}}, {"bash": ["allow"]}])
def test_senseless_project_permissions_are_refused(permissions: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        rules(permissions=permissions)
    assert caught.value.field == "permissions"


def test_what_is_hidden_already_is_not_hidden_again() -> None:
    (hiding,) = hiding_rules(["ide_*"])
    found = rules()
    assert not is_hidden(hiding, found)
    assert is_hidden(hiding, [*found, hiding])
    assert not is_hidden(hiding, [*found, hiding, *found])


def test_what_is_granted_for_always_comes_right_after_the_rule_that_asked() -> None:
    found = rules(
        autonomy=Autonomy.LOW, protected_paths=["ci"], permissions={"bash": {"curl *": "deny", "npm *": "ask"}}
    )
    for permission, pattern, proposed in (
        ("edit", "a.py", "*"),
        ("bash", "npm ci", "npm *"),
        ("bash", "make", "make *"),
    ):
        asked = {"permission": permission, "patterns": [pattern], "always": [proposed]}
        assert decided(found, permission, pattern) == "ask"
        granted = found + granting_rules(asked) + found[asking_rule(asked, found) + 1 :]
        assert decided(granted, permission, pattern) == "allow"
        assert is_granted(asked, granting_rules(asked))
        assert decided(granted, "edit", "ci/x") == "deny"
        assert decided(granted, "bash", "curl x") == "deny"
        assert decided(granted, "task") == "deny"
    assert not is_granted(
        {"permission": "bash", "patterns": ["a", "b"]}, granting_rules({"permission": "bash", "always": ["a"]})
    )
    assert not is_granted({"permission": "bash", "patterns": []}, [])
