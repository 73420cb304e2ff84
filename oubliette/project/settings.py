"""The optional keys of a project: what they may be, who may set them, what holds without them, what is shown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from oubliette.config import Config
from oubliette.config.defaults import McpServer
from oubliette.config.models import BUILT_IN_MODELS
from oubliette.core.access import parse_scope
from oubliette.core.model import Autonomy, Json, Reasoning
from oubliette.errors import RequestError
from oubliette.project import files

LIMITS = (
    "max_recursion_depth",
    "max_agents_per_session",
    "max_cost_usd",
    "max_cost_usd_per_day",
    "max_tokens_per_session",
    "max_active_sessions",
    "turn_timeout_minutes",
    "hibernate_minutes",
)
_WHOLE = frozenset({"max_recursion_depth", "max_agents_per_session", "max_tokens_per_session", "max_active_sessions"})
_MAY_BE_ZERO = frozenset({"max_recursion_depth", "max_cost_usd", "max_cost_usd_per_day"})

GUARDED = frozenset(
    {
        "github_token",
        "credential_refs",
        "model",
        "allowed_models",
        "container_type",
        "network",
        "workspace_isolation",
        "protected_paths",
        "agent_scope",
    }
)
"""SECURITY "Guarded project keys": only an admin sets them. ``limits`` joins them when above the config's defaults."""

OWN_SCOPES = frozenset({"none", "project", "project:ro"})
"""Values of ``agent_scope`` that name no project: nothing, and the project itself."""

FIXED = frozenset({"workspace_isolation"})
"""Chosen at create, for good."""

_MASK = "***"
_MAX_ITEMS = 100
_SERVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_TOOL = re.compile(r"[A-Za-z0-9_*?.-]{1,64}")


def check_settings(config: Config, given: Mapping[str, Any]) -> Json:
    """``given`` (absent keys are not asked for, None means "back to the default") as it is stored.

    Raises RequestError invalid_argument naming the key.
    """
    checked: Json = {}
    for key, value in given.items():
        check = _CHECKS.get(key)
        if check is None:
            raise _wrong(key, "is no key of a project")
        checked[key] = None if value is None else check(config, key, value)
    return checked


def merged(old: Json, changes: Json) -> Json:
    """``old`` under ``changes``; None takes a key away, and so it does within ``limits``."""
    new = {**old, **{key: value for key, value in changes.items() if key != "limits"}}
    if "limits" in changes:
        new["limits"] = changes["limits"] and {**(old.get("limits") or {}), **changes["limits"]}
        new["limits"] = {name: value for name, value in (new["limits"] or {}).items() if value is not None} or None
    return {key: value for key, value in new.items() if value is not None}


def guarded_keys(config: Config, old: Json, new: Json) -> list[str]:
    """Which guarded keys differ between two settings."""
    changed = [key for key in sorted(GUARDED) if old.get(key) != new.get(key)]
    defaults = config.defaults.limits
    before: Json = old.get("limits") or {}
    for name, value in (new.get("limits") or {}).items():
        default = getattr(defaults, name)
        if value != before.get(name) and default is not None and value > default:
            changed.append(f"limits.{name}")
    return changed


def check_prices(config: Config, settings: Json) -> None:
    """A project that says what its sessions may cost needs models whose price is known: its own and those that it
    allows. Raises RequestError invalid_argument naming the key that says the price."""
    own: Json = settings.get("limits") or {}
    said = [name for name in ("max_cost_usd", "max_cost_usd_per_day") if own.get(name) is not None]
    models = [settings.get("model") or config.default_model(), *(settings.get("allowed_models") or ())]
    unknown = [alias for alias in models if alias is not None and not config.has_price(alias)]
    if said and unknown:
        raise _wrong(
            f"limits.{said[0]}",
            f"cannot be kept: the price of the model {unknown[0]!r} is not known",
            f'Add "cost": {{"input": …, "output": …}} (USD per million tokens) to models.models.{unknown[0]} in the '
            "config, or limit tokens with max_tokens_per_session.",
        )


def effective_limits(config: Config, settings: Json) -> Json:
    """The project's limits over the config's; a limit that neither has is absent."""
    own: Json = settings.get("limits") or {}
    found = {name: own.get(name, getattr(config.defaults.limits, name)) for name in LIMITS}
    return {name: value for name, value in found.items() if value is not None}


def secrets_of(settings: Json) -> set[str]:
    """Every secret value in stored settings, for the log's redactor."""
    found = {settings["github_token"]} if settings.get("github_token") else set()
    for server in (settings.get("mcp_servers") or {}).values():
        for key in ("headers", "environment"):
            found.update(server.get(key, {}).values())
    return {secret for secret in found if secret}


def masked_servers(settings: Json) -> Json:
    """``mcp_servers`` with the values of headers and variables as ``***``."""
    shown: Json = {}
    for name, server in (settings.get("mcp_servers") or {}).items():
        shown[name] = {
            key: dict.fromkeys(value, _MASK) if key in {"headers", "environment"} else value
            for key, value in server.items()
        }
    return shown


def _wrong(field: str, why: str, hint: str = "") -> RequestError:
    return RequestError("invalid_argument", f"{field} {why}.", field=field, hint=hint)


def _text(_config: Config, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 1000 or not value.isprintable():
        raise _wrong(key, "must be a text of one line")
    return value


def _model(config: Config, key: str, value: Any) -> str:
    known = [*config.models.models, *BUILT_IN_MODELS]
    if value not in known:
        raise _wrong(key, f"names no model: {str(value)[:64]!r}", f"There are: {', '.join(known)}.")
    return str(value)


def _models(config: Config, key: str, value: Any) -> list[str]:
    return [_model(config, key, one) for one in _list(config, key, value)]


def _list(_config: Config, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MAX_ITEMS:
        raise _wrong(key, f"must be a list of at most {_MAX_ITEMS}")
    return value


def _one_of(*options: str) -> Any:
    def check(_config: Config, key: str, value: Any) -> str:
        if value not in options:
            raise _wrong(key, f"must be one of {', '.join(options)}")
        return str(value)

    return check


def _flag(_config: Config, key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(key, "must be true or false")
    return value


def _limits(_config: Config, key: str, value: Any) -> Json:
    if not isinstance(value, dict):
        raise _wrong(key, "must be an object")
    checked: Json = {}
    for name, limit in value.items():
        if name not in LIMITS:
            raise _wrong(f"limits.{str(name)[:64]}", "is no limit", f"There are: {', '.join(LIMITS)}.")
        if limit is not None:
            number = isinstance(limit, (int, float)) and not isinstance(limit, bool) and math.isfinite(limit)
            if not number or limit < 0 or (limit == 0 and name not in _MAY_BE_ZERO) or limit > 1e12:
                raise _wrong(f"limits.{name}", "must be a positive number")
            if name in _WHOLE and limit != int(limit):
                raise _wrong(f"limits.{name}", "must be a whole number")
            limit = int(limit) if name in _WHOLE else limit
        checked[name] = limit
    return checked


def _container_type(config: Config, key: str, value: Any) -> str:
    known = sorted({"base", config.defaults.container.type, *config.containers})
    if value not in known:
        raise _wrong(key, f"names no container type: {str(value)[:64]!r}", f"There are: {', '.join(known)}.")
    return str(value)


def _credentials(config: Config, key: str, value: Any) -> Json:
    if not isinstance(value, dict) or not set(value) <= {"github", "provider"}:
        raise _wrong(key, "must be an object with github, provider or both")
    checked: Json = {}
    for kind, known in (
        ("github", config.credentials.github.credentials),
        ("provider", config.credentials.providers.credentials),
    ):
        name = value.get(kind)
        if name is not None and name not in known:
            raise _wrong(f"{key}.{kind}", f"names no credential: {str(name)[:64]!r}")
        if name is not None:
            checked[kind] = name
    return checked


def _paths(config: Config, key: str, value: Any) -> list[str]:
    checked = []
    for path in _list(config, key, value):
        if not isinstance(path, str):
            raise _wrong(key, "must be a list of paths")
        try:
            checked.append("/".join(files.parts_of(path)))
        except RequestError as error:
            raise _wrong(key, f"holds {path[:64]!r}, which is no path in a workspace", error.hint) from error
    return checked


def _tools(config: Config, key: str, value: Any) -> list[str]:
    tools = _list(config, key, value)
    for tool in tools:
        if not isinstance(tool, str) or not _TOOL.fullmatch(tool):
            raise _wrong(key, "must be a list of names of tools, * allowed in them")
    return tools


def _servers(_config: Config, key: str, value: Any) -> Json:
    if not isinstance(value, dict) or len(value) > _MAX_ITEMS:
        raise _wrong(key, "must be an object of servers by name")
    checked: Json = {}
    for name, server in value.items():
        where = f"{key}.{name}" if isinstance(name, str) and _SERVER_NAME.fullmatch(name) else key
        if where == key or name == "oubliette":
            raise _wrong(key, f"holds a server of the name {str(name)[:64]!r}, which cannot be used")
        try:
            checked[name] = McpServer.model_validate(server).as_dict()
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise _wrong(f"{where}.{place}" if place else where, f"is wrong: {first['msg']}") from None
    return checked


def _permissions(_config: Config, key: str, value: Any) -> Json:
    if not isinstance(value, dict) or len(value) > _MAX_ITEMS:
        raise _wrong(key, "must be an object: permission to allow, ask or deny, or patterns to these")
    for name, rule in value.items():
        answers = rule.values() if isinstance(rule, dict) else [rule]
        if any(answer not in ("allow", "ask", "deny") for answer in answers):
            raise _wrong(f"{key}.{str(name)[:64]}", "must be allow, ask or deny, or patterns to these")
    return value


def _agent_scope(_config: Config, key: str, value: Any) -> str:
    if value in OWN_SCOPES:
        return str(value)
    if not isinstance(value, str):
        raise _wrong(key, "must be none or a scope")
    try:
        return str(parse_scope(value))
    except RequestError as error:
        hint = "One of: none, project:ro, project (its own), or what a token may have."
        raise _wrong(key, "must be none or a scope", hint) from error


_CHECKS: Mapping[str, Any] = {
    "github_token": _text,
    "credential_refs": _credentials,
    "model": _model,
    "allowed_models": _models,
    "autonomy": _one_of(*Autonomy),
    "reasoning": _one_of(*Reasoning),
    "limits": _limits,
    "container_type": _container_type,
    "network": _one_of("none", "bridge"),
    "workspace_isolation": _flag,
    "protected_paths": _paths,
    "disabled_tools": _tools,
    "mcp_servers": _servers,
    "permissions": _permissions,
    "agent_scope": _agent_scope,
}
SETTINGS = frozenset(_CHECKS)
"""Every key that ``settings`` of a project may have."""
