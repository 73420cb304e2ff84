from __future__ import annotations

from typing import Any

import pytest

from oubliette.config import Config
from oubliette.core.model import PlaceState, ProjectRow
from oubliette.core.principals import LOCAL
from oubliette.errors import RequestError
from oubliette.project.contents import git_credential
from oubliette.project.options import project_options
from oubliette.project.remote import Remote
from oubliette.project.settings import (
    SETTINGS,
    check_prices,
    check_settings,
    effective_limits,
    guarded_keys,
    merged,
    secrets_of,
)
from oubliette.runtime.base import RuntimeReport
from tests.project.conftest import project_principal
from tests.store.rows import AT

CONFIG = Config.model_validate(
    {
        "credentials": {
            "providers": {"credentials": {"anthropic": {"provider": "anthropic", "api_key": "sk-ant-s3cret"}}},
            "github": {
                "credentials": {
                    "personal": {"token": "ghp_personal"},
                    "work": {"token": "ghp_work", "host": "git.example.org"},
                }
            },
        },
        "models": {"models": {"opus": {"model": "claude-opus-4-6", "provider": "anthropic"}}},
        "containers": {"heavy": "img"},
    }
)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "opus"), ("model", "scripted"), ("allowed_models", ["opus", "scripted-google"]), ("autonomy", "low"),
        ("reasoning", "max"), ("network", "none"), ("container_type", "heavy"), ("container_type", "base"),
        ("workspace_isolation", False), ("protected_paths", ["ci", "a/b"]), ("disabled_tools", ["bash", "web_*"]),
        ("permissions", {"bash": {"git push *": "ask"}, "edit": "allow"}), ("agent_scope", "none"),
        ("agent_scope", "project"), ("agent_scope", "project:ro"), ("agent_scope", "admin:ro"),
        ("credential_refs", {"github": "work", "provider": "anthropic"}),
        ("limits", {"max_recursion_depth": 0, "max_cost_usd": 1.5, "turn_timeout_minutes": 0.5}),
        ("mcp_servers", {"docs": {"type": "remote", "url": "https://x.example", "enabled": True}}),
        ("github_token", "ghp_x"),
    ],
)  # fmt: skip
def test_a_good_setting_is_stored_as_it_is(key: str, value: Any) -> None:
    assert check_settings(CONFIG, {key: value}) == {key: value}
    assert check_settings(CONFIG, {key: None}) == {key: None}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nonsense", 1), ("init_git", True), ("model", "nope"), ("model", 3), ("allowed_models", "opus"),
        ("allowed_models", ["nope"]), ("autonomy", "full"), ("reasoning", ""), ("network", "host"),
        ("container_type", "x"),
        ("workspace_isolation", "yes"), ("protected_paths", ["/etc"]), ("protected_paths", ["../x"]),
        ("protected_paths", [1]), ("protected_paths", "ci"), ("disabled_tools", ["a b"]), ("disabled_tools", [None]),
        ("permissions", {"bash": "yes"}), ("permissions", {"bash": {"x": 1}}), ("permissions", []),
        ("agent_scope", "root"), ("agent_scope", "project:x"), ("agent_scope", 1),
        ("credential_refs", {"github": "nope"}),
        ("credential_refs", {"x": "y"}), ("credential_refs", "work"), ("limits", {"nope": 1}), ("limits", [1]),
        ("limits", {"max_cost_usd": -1}), ("limits", {"max_cost_usd": True}), ("limits", {"max_cost_usd": "5"}),
        ("limits", {"max_agents_per_session": 0}), ("limits", {"max_agents_per_session": 1.5}),
        ("limits", {"max_cost_usd": float("inf")}), ("mcp_servers", {"a b": {"type": "local", "command": ["x"]}}),
        ("mcp_servers", {"oubliette": {"type": "local", "command": ["x"]}}), ("mcp_servers", {"x": {"type": "remote"}}),
        ("mcp_servers", {"x": {"type": "remote", "url": "file:///x"}}), ("mcp_servers", {"x": 1}), ("mcp_servers", []),
        ("mcp_servers", {"x": {"type": "local", "command": ["x"], "nope": 1}}), ("github_token", "a\nb"),
        ("github_token", ""), ("github_token", 5),
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        check_settings(CONFIG, {key: value})
    assert caught.value.code == "invalid_argument"
    assert caught.value.field is not None
    assert caught.value.field.startswith(key)


def test_a_refused_server_does_not_repeat_its_secrets() -> None:
    server = {"type": "remote", "url": "nonsense", "headers": {"Authorization": "s3cret"}}
    with pytest.raises(RequestError) as caught:
        check_settings(CONFIG, {"mcp_servers": {"x": server}})
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_changes_are_merged_key_by_key_and_null_goes_back_to_the_default() -> None:
    old = {"model": "opus", "network": "none", "limits": {"max_cost_usd": 1, "max_agents_per_session": 2}}
    assert merged(old, {"network": None, "autonomy": "low"}) == {
        "model": "opus",
        "limits": {"max_cost_usd": 1, "max_agents_per_session": 2},
        "autonomy": "low",
    }
    assert merged(old, {"limits": {"max_cost_usd": None}})["limits"] == {"max_agents_per_session": 2}
    assert merged(old, {"limits": {"max_cost_usd": 5}})["limits"] == {"max_cost_usd": 5, "max_agents_per_session": 2}
    assert "limits" not in merged(old, {"limits": None})
    assert "limits" not in merged({"limits": {"max_cost_usd": 1}}, {"limits": {"max_cost_usd": None}})


def test_only_changes_above_the_defaults_make_a_limit_guarded() -> None:
    def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        return guarded_keys(CONFIG, {"limits": old}, {"limits": new})

    assert changed({}, {"max_cost_usd": 10, "max_agents_per_session": 50}) == []
    assert changed({}, {"max_cost_usd": 10.5}) == ["limits.max_cost_usd"]
    assert changed({"max_cost_usd": 20}, {"max_cost_usd": 20}) == []
    assert changed({"max_cost_usd": 20}, {"max_cost_usd": 15}) == ["limits.max_cost_usd"]
    assert changed({}, {"max_tokens_per_session": 10**9}) == []  # the config has none: any limit is less than none
    assert guarded_keys(CONFIG, {"network": "none"}, {}) == ["network"]


def test_limits_that_hold_are_the_projects_over_the_configs() -> None:
    limits = effective_limits(CONFIG, {"limits": {"max_cost_usd": 1}})
    assert limits["max_cost_usd"] == 1
    assert limits["max_recursion_depth"] == 3
    assert "max_tokens_per_session" not in limits


def test_every_secret_of_settings_is_known() -> None:
    settings = {"github_token": "t", "mcp_servers": {"a": {"headers": {"x": "h"}}, "b": {"environment": {"y": "e"}}}}
    assert secrets_of(settings) == {"t", "h", "e"}
    assert secrets_of({}) == set()


# --- which credential a clone gets


def remote(host: str) -> Remote:
    return Remote(f"https://{host}/o/r", "https", host, 443)


def test_a_credential_goes_to_its_own_host_only() -> None:
    def token(host: str, **settings: Any) -> str | None:
        found = git_credential(CONFIG, settings, remote(host))
        return found.token if found else None

    assert token("github.com") == "ghp_personal"
    assert token("git.example.org") == "ghp_work"
    assert token("evil.example") is None
    assert token("github.com", credential_refs={"github": "work"}) is None
    assert token("git.example.org", credential_refs={"github": "work"}) == "ghp_work"
    assert token("evil.example", github_token="ghp_own") == "ghp_own"  # said together with this address
    assert git_credential(CONFIG, {"github_token": "x"}, Remote("/srv/x", "file", "", 0)) is None


# --- options


def test_options_show_what_the_principal_may_choose() -> None:
    reports = [RuntimeReport("docker", False, reason="no socket"), RuntimeReport("bubblewrap", True, "0.11")]
    versions = {"oubliette": "0.1.0"}
    admin = project_options(CONFIG, LOCAL, None, reports, versions)
    assert [one["alias"] for one in admin["models"]][:2] == ["opus", "scripted"]
    assert admin["default_model"] == "opus"
    assert admin["credentials"] == {"provider": ["anthropic"], "github": ["personal", "work"]}
    assert admin["container_types"] == ["base", "heavy"]
    assert admin["runtimes"][0] == {"name": "docker", "ok": False, "reason": "no socket"}
    assert "token_scopes" in admin
    assert "s3cret" not in str(admin)
    assert "ghp_" not in str(admin)
    row = ProjectRow(
        "p", "x", PlaceState.READY, AT, AT, {}, "w", settings={"allowed_models": ["scripted"], "model": "scripted"}
    )
    mine = project_options(CONFIG, project_principal("p"), row, reports, versions)
    assert [one["alias"] for one in mine["models"]] == ["scripted"]
    assert mine["default_model"] == "scripted"
    assert not {"credentials", "token_scopes"} & set(mine)


def test_every_setting_of_the_contract_is_known() -> None:
    keys = (
        "github_token credential_refs model allowed_models autonomy reasoning limits container_type network"
        " workspace_isolation protected_paths disabled_tools mcp_servers permissions agent_scope"
    )
    assert set(keys.split()) == SETTINGS


def test_a_budget_of_a_project_needs_models_whose_price_is_known() -> None:
    config = CONFIG.model_validate(
        {
            **CONFIG.model_dump(by_alias=True, exclude_unset=True),
            "models": {
                "models": {
                    "opus": {"model": "claude-opus-4-6", "provider": "anthropic"},
                    "mystery": {"model": "nobody-knows-it", "provider": "anthropic"},
                    "told": {"model": "nobody-knows-it", "provider": "anthropic", "cost": {"input": 1, "output": 2}},
                    "free": {"model": "nobody-knows-it", "provider": "anthropic", "cost": {"input": 0, "output": 0}},
                }
            },
        }
    )
    limits = {"max_cost_usd": 5}
    for alias in ("opus", "told", "free", "scripted"):
        check_prices(config, {"limits": limits, "model": alias})
    check_prices(config, {"limits": {"max_tokens_per_session": 1_000}, "model": "mystery"})
    check_prices(config, {"model": "mystery"})
    for settings in (
        {"limits": limits, "model": "mystery"},
        {"limits": {"max_cost_usd_per_day": 5}, "model": "mystery"},
        {"limits": limits, "model": "opus", "allowed_models": ["opus", "mystery"]},
    ):
        with pytest.raises(RequestError) as caught:
            check_prices(config, settings)
        assert "models.models.mystery" in caught.value.hint
