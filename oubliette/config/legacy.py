"""Keys of the Go project's configuration: put where they live now, with a warning each.

Works on the parsed tree, before validation. A key that has no successor is taken out and the warning says why.
Accepted for two minor versions: until 0.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oubliette.config.document import Document, Expanded, Location, dotted

AUTONOMY = {"full": "off", "semi": "medium", "auto-high": "high", "auto-medium": "medium", "auto-low": "low"}
"""The old words and what asks as much today: ``full`` asked nothing."""

_DROPPED: dict[Location, str] = {
    ("server", "agent_runtime"): "the agent is OpenCode",
    ("server", "droid"): "the agent is OpenCode",
    ("credentials", "factory"): "the agent is OpenCode, which uses credentials.providers",
    ("defaults", "agent", "runtime"): "the agent is OpenCode",
    ("models", "defaults", "included_models"): "every model may be used; allowed_models of a project narrows that",
}

_MOVED: dict[Location, Location] = {
    ("models", "defaults", "autonomy_mode"): ("defaults", "agent", "autonomy"),
    ("models", "defaults", "reasoning_effort"): ("defaults", "agent", "reasoning"),
}

_EMPTY_MEANS_ABSENT: tuple[Location, ...] = (
    ("credentials", "providers", "default"),
    ("credentials", "github", "default"),
    ("models", "defaults", "session_model"),
    ("defaults", "agent", "model"),
)


Warn = Callable[[Location, str], None]


def modernise(document: Document) -> list[str]:
    """Bring old keys up to date in ``document.tree``; returns one warning for each."""
    warnings: list[str] = []

    def warn(where: Location, text: str) -> None:
        warnings.append(f"{document.path}:{document.line(where)}: {dotted(where)}: {text}")

    for where in _EMPTY_MEANS_ABSENT:
        if _get(document.tree, where) == "":
            _take(document.tree, where)
    for where, reason in _DROPPED.items():
        if _get(document.tree, where) is not None:
            _take(document.tree, where)
            warn(where, f"is no longer used: {reason}")
    for old, new in _MOVED.items():
        if (value := _get(document.tree, old)) is not None:
            _take(document.tree, old)
            document.moved(old, new)
            warn(old, f"is now {dotted(new)}")
            _section(document.tree, new[:-1]).setdefault(str(new[-1]), value)
    _autonomy(document, warn)
    _model_keys(document, warn)
    _empty_credentials(document, warn)
    _mcp_servers(document, warn)
    _container_type(document, warn)
    return warnings


def _get(tree: Any, where: Location) -> Any:
    for key in where:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(key)
    return tree


def _take(tree: Any, where: Location) -> Any:
    return _get(tree, where[:-1]).pop(where[-1])


def _section(tree: dict[str, Any], where: Location) -> dict[str, Any]:
    """The object at ``where``, made when absent; a wrong type is left for validation to complain about."""
    for key in where:
        inner = tree.setdefault(str(key), {})
        if not isinstance(inner, dict):
            return {}
        tree = inner
    return tree


def _objects(tree: Any, where: Location) -> list[tuple[str, dict[str, Any]]]:
    section = _get(tree, where)
    return (
        [(name, item) for name, item in section.items() if isinstance(item, dict)] if isinstance(section, dict) else []
    )


def _autonomy(document: Document, warn: Warn) -> None:
    where: Location = ("defaults", "agent", "autonomy")
    value = _get(document.tree, where)
    if isinstance(value, str) and value in AUTONOMY:
        _section(document.tree, where[:-1])["autonomy"] = AUTONOMY[value]
        warn(where, f'"{value}" is now "{AUTONOMY[value]}"')


def _model_keys(document: Document, warn: Warn) -> None:
    """``apiKey`` of a model becomes a credential of its own."""
    for alias, model in _objects(document.tree, ("models", "models")):
        if "apiKey" not in model:
            continue
        where: Location = ("models", "models", alias, "apiKey")
        key = model.pop("apiKey")
        if key == "":
            continue
        name = f"model-{alias}"
        provider = model.get("provider")
        named = _get(document.tree, ("credentials", "providers", "credentials", provider)) if provider else None
        credential = dict(named) if isinstance(named, dict) else {"provider": provider}
        target: Location = ("credentials", "providers", "credentials")
        _section(document.tree, target)[name] = credential | {"api_key": key}
        document.moved(where, (*target, name))
        model["provider"] = name
        warn(where, f'is now credentials.providers.credentials.{name}.api_key, with "provider": "{name}" here')


def _empty_credentials(document: Document, warn: Warn) -> None:
    """The old ``init`` wrote credentials with an empty key; they are the same as none."""
    for kind, secret in (("providers", "api_key"), ("github", "token")):
        root: Location = ("credentials", kind)
        for name, credential in _objects(document.tree, (*root, "credentials")):
            value = credential.get(secret)
            if value == "" and not isinstance(value, Expanded):
                _take(document.tree, (*root, "credentials", name))
                warn((*root, "credentials", name), f"has an empty {secret} and is ignored")
                if _get(document.tree, (*root, "default")) == name:
                    _take(document.tree, (*root, "default"))


def _mcp_servers(document: Document, warn: Warn) -> None:
    """``stdio`` and ``http`` are ``local`` and ``remote`` now; the old client's own entry goes."""
    root: Location = ("defaults", "agent", "mcp_servers")
    for name, server in _objects(document.tree, root):
        where: Location = (*root, name)
        if name == "oubliette-parent":
            _take(document.tree, where)
            warn(where, "is no longer used: agents get the way to their parent by themselves")
            continue
        kind = server.get("type", "stdio" if "command" in server else "http" if "url" in server else None)
        if kind not in {"stdio", "http", "sse"}:
            continue
        server["type"] = "local" if kind == "stdio" else "remote"
        changed = [f'"type": "{server["type"]}"']
        if isinstance(server.get("command"), str):
            server["command"] = [server["command"], *server.pop("args", [])]
            changed.append('"command" a list of program and arguments')
        if "env" in server:
            server["environment"] = server.pop("env")
            changed.append('"env" is "environment"')
        warn(where, f"is written differently now: {', '.join(changed)}")


def _container_type(document: Document, warn: Warn) -> None:
    """``defaults.container.type`` could be an image's name."""
    where: Location = ("defaults", "container", "type")
    value = _get(document.tree, where)
    known = _get(document.tree, ("containers",)) or {}
    if isinstance(value, str) and ("/" in value or ":" in value) and value not in known:
        _section(document.tree, ("containers",))["custom"] = value
        _section(document.tree, where[:-1])["type"] = "custom"
        document.moved(where, ("containers", "custom"))
        warn(where, 'is the name of a container type: the image belongs into containers.custom, and "custom" here')
