"""The configuration as its users meet it: what loads, what is refused, and how that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from oubliette.config import Config, check_config, load_config, schema
from oubliette.config.document import parse_document
from oubliette.config.values import format_size, parse_size
from oubliette.errors import ConfigError

SHARED_SEED = """
// 1. The short form of its README:
{
  "server": { "address": ":8080" },
  "credentials": {
    "providers": {
      "credentials": { "anthropic": { "provider": "anthropic", "api_key": "sk-ant-xxx" } },
      "default": "anthropic"
    }
  },
  "models": {
    "models": {
      "opus": { "model": "claude-opus-4-6", "provider": "anthropic",
                "extraHeaders": { "anthropic-beta": "context-1m-2025-08-07" } }
    }
  }
}
// what the seed says after it
"""

SEED_LONG = """{
  "server": { "address": ":8080", "agent_runtime": "auto", "droid": { "default_model": "sonnet" } },
  "credentials": {
    "factory": { "credentials": { "default": { "api_key": "fk-old" } }, "default": "default" },
    "github": { "credentials": { "default": { "token": "", "description": "GitHub token" } }, "default": "default" },
    "providers": { "credentials": {}, "default": "" }
  },
  "defaults": {
    "limits": { "max_recursion_depth": 3, "max_agents_per_session": 50, "max_cost_usd": 10.0 },
    "agent": {
      "runtime": "opencode", "model": "sonnet", "autonomy": "semi", "reasoning": "medium",
      "mcp_servers": {
        "oubliette-parent": { "type": "stdio", "command": "/usr/local/bin/oubliette-client", "args": ["/x.sock"] },
        "docs": { "type": "http", "url": "https://docs.example.org/mcp" },
        "tools": { "command": "npx", "args": ["tools"], "env": { "A": "b" } }
      }
    },
    "container": { "type": "dev" },
    "backup": { "enabled": false, "directory": "data/backups", "retention": 7, "interval_hours": 24 }
  },
  "containers": { "base": "ghcr.io/someone/base:latest", "dev": "ghcr.io/someone/dev:latest" },
  "models": {
    "models": {
      "sonnet": {
        "model": "claude-sonnet-4-5", "displayName": "Sonnet 4.5", "baseUrl": "https://api.anthropic.com/",
        "maxOutputTokens": 64000, "provider": "anthropic", "apiKey": "sk-ant-per-model"
      }
    },
    "defaults": {
      "included_models": ["sonnet"], "session_model": "sonnet", "autonomy_mode": "auto-high",
      "reasoning_effort": "high"
    }
  }
}"""


MISSPELT_MODEL = (
    '{"defaults": {"agent": {\n"model": "opsu"}},'
    ' "models": {"models": {"opus": {"model": "m", "provider": "scripted"}}}}'
)
SCRIPTED = '{"model": "m", "provider": "scripted"}'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config" / "oubliette.jsonc"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def load(tmp_path: Path, text: str, **env: str) -> Config:
    return load_config(written(tmp_path, text), env)[0]


def refusals(tmp_path: Path, text: str, **env: str) -> list[ConfigError]:
    config, problems, _warnings = check_config(written(tmp_path, text), env)
    assert config is None
    return problems


def test_an_empty_object_is_a_configuration_with_the_contracts_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "{}")
    assert (config.server.host, config.server.port, config.server.loopback) == ("127.0.0.1", 8080, True)
    assert config.server.max_body_bytes == 32 << 20
    assert (config.server.rate_limit.per_second, config.server.rate_limit.burst) == (100, 200)
    limits = config.defaults.limits
    assert (limits.max_recursion_depth, limits.max_agents_per_session, limits.max_active_sessions) == (3, 50, 10)
    assert (limits.max_cost_usd, limits.max_cost_usd_per_day, limits.max_tokens_per_session) == (10, 50, None)
    assert (limits.turn_timeout_minutes, limits.hibernate_minutes) == (60, 30)
    agent = config.defaults.agent
    assert (agent.autonomy, agent.reasoning, agent.ask_on_expiry) == ("off", "medium", "reject")
    assert (agent.ask_timeout_minutes, agent.caller_tool_timeout_seconds) == (10, 60)
    container = config.defaults.container
    assert (container.memory_bytes, container.disk_bytes) == (4 << 30, 20 << 30)
    assert (container.type, container.cpus, container.pids, container.network) == ("base", 4, 1024, None)
    assert (config.runtime, config.defaults.backup.retention, config.defaults.backup.interval_hours) == ("auto", 7, 24)
    assert config.default_model() is None


def test_the_short_configuration_of_the_go_project_loads_unchanged_and_its_only_model_is_the_default(
    tmp_path: Path,
) -> None:
    config, warnings = load_config(written(tmp_path, SHARED_SEED), {})
    assert config.default_model() == "opus"
    provider = config.resolve_provider(config.models.models["opus"])
    assert provider is not None
    assert provider.kind == "anthropic"
    assert provider.api_key is not None
    assert provider.api_key.get_secret_value() == "sk-ant-xxx"
    assert [warning for warning in warnings if "every network interface" not in warning] == []
    assert config.secrets() == {"sk-ant-xxx"}


def test_each_old_key_is_accepted_with_one_warning_that_names_its_line(tmp_path: Path) -> None:
    config, warnings = load_config(written(tmp_path, SEED_LONG), {})
    said = "\n".join(warnings)
    for key in (
        "server.agent_runtime", "server.droid", "credentials.factory", "defaults.agent.runtime",
        "models.defaults.included_models", "models.defaults.autonomy_mode", "models.defaults.reasoning_effort",
        "defaults.agent.autonomy", "models.models.sonnet.apiKey", "credentials.github.credentials.default",
        "defaults.agent.mcp_servers.oubliette-parent", "defaults.agent.mcp_servers.docs",
        "defaults.agent.mcp_servers.tools",
    ):  # fmt: skip
        assert said.count(f": {key}: ") == 1, key
    line = next(index for index, text in enumerate(SEED_LONG.splitlines(), 1) if "apiKey" in text)
    assert f"oubliette.jsonc:{line}: models.models.sonnet.apiKey: " in said
    assert config.defaults.agent.autonomy == "medium"
    assert config.defaults.agent.reasoning == "medium", "a new key in the file wins over the old one"
    assert config.default_model() == "sonnet"
    provider = config.resolve_provider(config.models.models["sonnet"])
    assert provider is not None
    assert (provider.kind, provider.base_url) == ("anthropic", "https://api.anthropic.com")
    assert "sk-ant-per-model" in config.secrets()
    assert config.containers["dev"].image == "ghcr.io/someone/dev:latest"
    servers = config.defaults.agent.mcp_servers
    assert servers["docs"].as_dict() == {"type": "remote", "url": "https://docs.example.org/mcp", "enabled": True}
    assert servers["tools"].as_dict()["command"] == ["npx", "tools"]
    assert servers["tools"].as_dict()["environment"] == {"A": "b"}
    assert config.defaults.backup.directory == tmp_path / "data" / "backups"


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ('{\n "server": {\n  "adress": ":1"\n }\n}', 3, 'there is no key "adress" in server', 'mean "address"'),
        ('{\n\n "runtme": "auto"}', 3, 'there is no key "runtme" at the top', 'mean "runtime"'),
        ('{"defaults": {\n "max_cost_usd": 3}}', 2, '"max_cost_usd" in defaults', '"defaults.limits.max_cost_usd"'),
        ('{"log": {"zzz": 1}}', 1, 'no key "zzz" in log', "Known keys there: level, format"),
        ('{"models": {"models": {"a": {\n"provider": "openai"}}}}', 1, 'models.models.a needs a key "model"', ""),
        ('{"defaults": {"limits": {\n"max_cost_usd": "3"}}}', 2, "max_cost_usd: must be a valid number, not text", ""),
        ('{"defaults": {"limits": {\n"max_recursion_depth": 1.5}}}', 2, "valid integer, not a fraction", ""),
        ('{"defaults": {"container": {\n"memory": "4x"}}}', 2, "container.memory: is not a size", ""),
        ('{"server": {\n"address": "localhost"}}', 2, "server.address: is not an address", ""),
        ('{"server": {\n"address": "http://h:1"}}', 2, "server.address: is not an address", ""),
        ('{"server": {"trusted_proxies":\n["10.0.0.0/8", "here"]}}', 1, "server.trusted_proxies: ", ""),
        ('{\n"runtime": "dokcer"}', 2, "'docker', 'podman'", ""),
        ('{"defaults": {"agent": {\n"autonomy": "total"}}}', 2, 'not "total"', ""),
        (MISSPELT_MODEL, 2,         '"opsu" is none of models.models', 'mean "opus"'),
        ('{"models": {"defaults": {\n"session_model": "x"}}}', 2, '"x" is none of models.models', "scripted"),
        ('{"models": {"models": {"a": {"model": "m",\n "provider": "antropic"}}}}', 2, "neither a credential nor",
         'mean "anthropic"'),
        ('{"credentials": {"github": {\n"default": "me"}}}', 2, "none of credentials.github.credentials", "none"),
        ('{"credentials": {"providers": {"credentials": {\n"o": {"provider": "openai-compatible"}}}}}', 2,
         'needs a "base_url"', ""),
        ('{"models": {"models": {\n"scripted": {"model": "m", "provider": "openai"}}}}', 2, "is built in", ""),
        ('{"models": {"models": {\n"-a": {"model": "m", "provider": "openai"}}}}', 2, "is not a name", ""),
        ('{"defaults": {"container": {\n"type": "huge"}}}', 2, '"huge" is none of containers', ""),
        ('{"defaults": {"agent": {"mcp_servers": {\n"a": {"type": "remote"}}}}}', 2, 'needs "url"', ""),
        ('{\n"a": 1 "b": 2}', 2, 'unexpected "\\"" at column 8', ""),
        ('{"a": 1,\n"a": 2}', 2, '"a" is given twice (first in line 1)', ""),
        ('{"a": [1,\n2 3]}', 2, 'unexpected "3" at column 3', ""),
        ('{\n', 2, "unexpected the end of the file", ""),
        ("", 1, "is empty", ""),
        ("[]", 1, "is not an object", ""),
        ('{"git": \n{"allowed_hosts": ["a", \n 3]}}', 3, "git.allowed_hosts[1]: must be a valid string", ""),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_file_line_and_the_nearest_valid_key(
    tmp_path: Path, text: str, line: int, message: str, hint: str
) -> None:
    (problem,) = refusals(tmp_path, text)
    assert problem.line == line
    assert str(problem).startswith(f"{tmp_path}/config/oubliette.jsonc:{line}: ")
    assert message in str(problem)
    assert hint in problem.hint
    assert "\n" not in str(problem)


def test_every_mistake_is_listed_in_the_order_of_the_file_and_load_names_the_first(tmp_path: Path) -> None:
    text = '{\n"server": {"adress": 1},\n"log": {"level": "loud"},\n"runtime": 3\n}'
    assert [problem.line for problem in refusals(tmp_path, text)] == [2, 3, 4]
    with pytest.raises(ConfigError, match="adress") as caught:
        load_config(tmp_path / "config" / "oubliette.jsonc", {})
    assert "oubliette config check lists 2 more" in caught.value.hint


def test_a_message_never_repeats_a_value_that_could_be_a_secret(tmp_path: Path) -> None:
    text = '{"credentials": {"providers": {"credentials": {"a": {"provider": "openai", "api_key": ["sk-planted"]}}}}}'
    (problem,) = refusals(tmp_path, text)
    assert "sk-planted" not in str(problem) + problem.hint
    config = load(tmp_path, text.replace("[", "").replace("]", ""))
    assert "sk-planted" not in repr(config)
    assert "sk-planted" not in config.model_dump_json()


def test_environment_variables_and_files_are_put_into_any_string_once(tmp_path: Path) -> None:
    written(tmp_path, "{}")
    (tmp_path / "config" / "key").write_text("sk-from-${FILE}\n")
    config = load(
        tmp_path,
        """{
          "credentials": {"providers": {"credentials": {
            "a": {"provider": "openai", "api_key": "{file:key}", "description": "$${LITERAL} ${NAME}!"},
            "b": {"provider": "anthropic", "api_key": "${KEY}"}}}},
          "server": {"address": "127.0.0.1:${PORT}", "allowed_hosts": ["${NAME}"]},
          "defaults": {"container": {"cpus": "${CPUS}", "memory": "${MEMORY}"}, "backup": {"enabled": "${YES}"}}
        }""",
        NAME="${KEY}",
        KEY="sk-env",
        PORT="9000",
        CPUS="2.5",
        MEMORY="512m",
        YES="true",
    )
    credentials = config.credentials.providers.credentials
    assert credentials["a"].description == "${LITERAL} ${KEY}!"
    assert config.secrets() == {"sk-from-${FILE}", "sk-env"}
    assert config.server.port == 9000
    assert config.server.allowed_hosts == ["${KEY}"]
    assert config.defaults.container.cpus == 2.5
    assert config.defaults.container.memory_bytes == 512 << 20
    assert config.defaults.backup.enabled is True


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${NOPE}", "environment variable NOPE"),
        ("${NO PE}", "is not the name of a variable"),
        ("{file:nowhere}", "cannot be read: No such file"),
    ],
)
def test_a_placeholder_that_leads_nowhere_is_an_error_with_its_line(tmp_path: Path, value: str, message: str) -> None:
    (problem,) = refusals(tmp_path, f'{{\n"server": {{\n"address": "{value}"}}}}')
    assert problem.line == 3
    assert message in str(problem)


def test_a_number_given_as_plain_text_stays_an_error(tmp_path: Path) -> None:
    (problem,) = refusals(tmp_path, '{"defaults": {"container": {"cpus": "2"}}}')
    assert "defaults.container.cpus: must be a valid number, not text" in str(problem)


def test_the_environment_chooses_the_runtime_over_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, '{"runtime": "docker"}', CONTAINER_RUNTIME="bubblewrap").runtime == "bubblewrap"
    (problem,) = refusals(tmp_path, "{}", CONTAINER_RUNTIME="lxc")
    assert "CONTAINER_RUNTIME" in str(problem)


def test_the_order_of_default_models_is_agent_then_session_then_the_only_one(tmp_path: Path) -> None:
    two = f'"models": {{"a": {SCRIPTED}, "b": {SCRIPTED}}}'
    session = f'"models": {{{two}, "defaults": {{"session_model": "a"}}}}'
    assert load(tmp_path, f'{{{session}, "defaults": {{"agent": {{"model": "b"}}}}}}').default_model() == "b"
    assert load(tmp_path, f"{{{session}}}").default_model() == "a"
    assert load(tmp_path, f'{{"models": {{{two}}}}}').default_model() is None
    assert load(tmp_path, f'{{"models": {{"models": {{"a": {SCRIPTED}}}}}}}').default_model() == "a"
    assert load(tmp_path, '{"models": {"defaults": {"session_model": "scripted"}}}').default_model() == "scripted"


def test_a_model_without_a_credential_loads_with_a_warning_and_is_not_a_default(tmp_path: Path) -> None:
    text = '{"models": {"models": {\n"opus": {"model": "m", "provider": "anthropic"}}}}'
    config, warnings = load_config(written(tmp_path, text), {})
    assert config.default_model() is None
    assert config.usable_models() == {}
    assert any('jsonc:2: models.models.opus.provider: "opus" cannot be used' in warning for warning in warnings)


def test_a_provider_kind_means_its_default_credential_or_the_only_one(tmp_path: Path) -> None:
    text = """{"credentials": {"providers": {"credentials": {
        "one": {"provider": "anthropic", "api_key": "k1"}, "two": {"provider": "anthropic", "api_key": "k2"},
        "mine": {"provider": "openai", "api_key": "k3", "base_url": "https://proxy.example.org/"}} DEFAULT }},
      "models": {
        "models": {"a": {"model": "m", "provider": "anthropic"}, "o": {"model": "m", "provider": "openai"}}}
    }"""
    config = load(tmp_path, text.replace("DEFAULT", ""))
    assert config.resolve_provider(config.models.models["a"]) is None
    provider = config.resolve_provider(config.models.models["o"])
    assert provider is not None
    assert (provider.credential, provider.base_url) == ("mine", "https://proxy.example.org")
    config = load(tmp_path, text.replace("DEFAULT", ', "default": "two"'))
    provider = config.resolve_provider(config.models.models["a"])
    assert provider is not None
    assert provider.credential == "two"


def test_listening_beyond_this_machine_is_warned_about(tmp_path: Path) -> None:
    config, warnings = load_config(written(tmp_path, '{\n"server": {"address": ":8080"}}'), {})
    assert config.server.host == "0.0.0.0"
    assert "jsonc:2: server.address: listens on every network interface" in warnings[0]
    assert load_config(written(tmp_path, '{"server": {"address": "[::1]:1"}}'), {})[1] == []


def test_a_loaded_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path, "{}")
    with pytest.raises(ValidationError):
        config.defaults.limits.max_cost_usd = 1000
    assert config.with_address("127.0.0.1:0").server.port == 0
    assert config.server.port == 8080


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4g", 4 << 30),
        ("4G", 4 << 30),
        ("512MiB", 512 << 20),
        ("1.5 g", 3 << 29),
        ("10k", 10240),
        ("77", 77),
        ("1t", 1 << 40),
    ],
)
def test_sizes_are_read_as_docker_reads_them_and_written_back_the_same(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


def test_lines_are_right_through_comments_escapes_nesting_and_trailing_commas() -> None:
    text = '{ // {"no": 1,\n"a": [1, {"x": "}\\"],",},\n /* \n"c": 1 */ [3,\n4,],],\nb: {"d": {}, "e\\u0041": [],\n},}'
    document = parse_document(text, Path("f"))
    assert document.tree == {"a": [1, {"x": '}"],'}, [3, 4]], "b": {"d": {}, "eA": []}}
    expected = {
        ("a",): 2, ("a", 0): 2, ("a", 1): 2, ("a", 1, "x"): 2, ("a", 2): 4, ("a", 2, 0): 4, ("a", 2, 1): 5,
        ("b",): 6, ("b", "d"): 6, ("b", "eA"): 6,
    }  # fmt: skip
    assert document.lines == expected


def test_keys_whose_part_is_not_built_are_accepted_and_that_is_said(tmp_path: Path) -> None:
    text = '{"telemetry": {"endpoint": "https://h.example.org"},\n"retention": {"audit_days": 3}}'
    _config, warnings = load_config(written(tmp_path, text), {})
    assert [warning.partition("oubliette.jsonc:")[2] for warning in warnings] == [
        "1: telemetry: is accepted, but this version sends no traces",
        "2: retention.audit_days: is accepted, but this version keeps all of the audit log",
    ]


def test_a_budget_that_cannot_be_kept_for_a_model_is_said(tmp_path: Path) -> None:
    models = {
        "opus": {"model": "claude-opus-4-6", "provider": "main"},
        "mystery": {"model": "nobody-knows-it", "provider": "main"},
        "free": {"model": "nobody-knows-it", "provider": "main", "cost": {"input": 0, "output": 0}},
    }
    content = {
        "credentials": {"providers": {"credentials": {"main": {"provider": "anthropic", "api_key": "k"}}}},
        "models": {"models": models},
    }
    _config, warnings = load_config(written(tmp_path, json.dumps(content)), {})
    assert warnings == [], "nobody has chosen the defaults"
    content["defaults"] = {"limits": {"max_cost_usd_per_day": 20, "max_tokens_per_session": 5}}
    _config, warnings = load_config(written(tmp_path, json.dumps(content)), {})
    assert [warning.partition("oubliette.jsonc:")[2] for warning in warnings] == [
        (
            "1: defaults.limits.max_cost_usd_per_day: cannot be kept for models of unknown price; "
            'add "cost" to models.models.mystery'
        )
    ]


def test_hostile_files_are_refused_quickly(tmp_path: Path) -> None:
    for text in ("[" * 100_000, '{"a":' * 20_000, " " * (2 << 20)):
        assert refusals(tmp_path, text)
    path = written(tmp_path, "")
    path.write_bytes(b'{"a": 1,\n "b": "\xff"}')
    _config, (problem,), _warnings = check_config(path, {})
    assert (problem.line, "is not UTF-8" in str(problem)) == (2, True)
    _config, (problem,), _warnings = check_config(tmp_path / "none.jsonc", {})
    assert "there is no such file" in str(problem)


def test_the_schema_knows_every_key_of_the_file_with_its_meaning() -> None:
    made = schema()
    definitions = made["$defs"]
    assert definitions["ModelAlias"]["properties"]["maxOutputTokens"]["description"].startswith("The most")
    assert made["additionalProperties"] is False
    undocumented = [
        f"{name}.{key}"
        for name, section in definitions.items()
        for key, field in section.get("properties", {}).items()
        if "description" not in field and "$ref" not in json.dumps(field)
        and key not in {"description", "enabled", "url", "headers"}
    ]  # fmt: skip
    assert undocumented == []
