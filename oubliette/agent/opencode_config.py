"""How OpenCode is started and what its config file says. Pure.

With an empty model catalogue (``models.json`` is ``{}``, which saves 230 MB and 1.5 s) everything about a model must
be declared here, or images become text, conversations are never compacted and every provider is asked through
chat/completions.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from oubliette.agent.base import AGENT_PORT, MODEL_PORT
from oubliette.core.model import Json, Reasoning

ModelKind = Literal["anthropic", "openai", "google", "openai-compatible"]
"""The wire format in which the gateway is asked."""

TOOLKIT_INSIDE = "/opt/oubliette"
STATE_INSIDE = "/state"
CACHE_INSIDE = "/cache"
CONFIG_INSIDE = "/run/oubliette/opencode.json"
STAMPED_FILE = "stamped.json"
"""Optional, beside the config: a JSON list of further MCP servers (caller tools) whose calls plugin.js stamps with
their session. It is read at each call."""
HOME_INSIDE = "/tmp/home"  # noqa: S108  a tmpfs of the container's own
WARM_MODEL = ("oubliette-warm", "nobody")
"""Provider and model of the prompt that only loads code: its address refuses every connection."""
_WARM_ADDRESS = "http://127.0.0.1:9/v1"

_NPM: Mapping[ModelKind, str] = {
    "anthropic": "@ai-sdk/anthropic",
    "openai": "@ai-sdk/openai",
    "google": "@ai-sdk/google",
    "openai-compatible": "@ai-sdk/openai-compatible",
}
_VERSION: Mapping[ModelKind, str] = {"anthropic": "v1", "openai": "v1", "google": "v1beta", "openai-compatible": "v1"}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class ModelCost:
    """USD per million tokens. Only for OpenCode's own sums, which nobody uses; the gateway is the meter."""

    input: float
    output: float
    cache_read: float = 0.0
    cache_write: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """An alias of the config with what its model can do.

    ``model`` is the provider's own name of it. OpenCode and its SDKs choose by that name which reasoning parameters
    exist, which prompt and which editing tool a model is given; with it the gateway is asked for ``wire_model(entry)``
    instead of the bare alias. Empty: the bare alias is sent.
    """

    alias: str
    kind: ModelKind
    context: int
    output: int
    images: bool = True
    pdf: bool = False
    reasoning: bool = False
    tool_call: bool = True
    name: str = ""
    model: str = ""
    cost: ModelCost | None = None


def provider_id(kind: str) -> str:
    """OpenCode's provider that holds the aliases of this kind."""
    return f"oubliette-{kind}"


def wire_model(entry: ModelEntry) -> str:
    """What stands as the model in requests to the gateway: ``<name>@<alias>``, or the alias alone."""
    name = entry.model.rpartition("/")[2]
    return f"{name}@{entry.alias}" if name else entry.alias


def alias_on_wire(model: str) -> str:
    """The alias in what stands as the model in a request."""
    return model.rpartition("@")[2]


def opencode_config(
    models: Sequence[ModelEntry],
    *,
    capability: str,
    mcp_servers: Mapping[str, Mapping[str, Any]] | None = None,
    default_model: str | None = None,
    gateway: str = f"http://127.0.0.1:{MODEL_PORT}",
    plugin: str = f"{TOOLKIT_INSIDE}/plugin.js",
) -> Json:
    """The content of ``opencode.json``. ``capability`` is the container's key at the gateway, not a provider's.

    ``mcp_servers`` as OpenCode spells them (``type`` local with ``command`` and ``environment``, or remote with ``url``
    and ``headers``; ``enabled``, ``timeout`` in ms).
    """
    kinds = dict.fromkeys(entry.kind for entry in models)
    providers: Json = {provider_id(kind): _provider(kind, models, capability, gateway) for kind in kinds}
    first = next((entry for entry in models if entry.alias == default_model), models[0] if models else None)
    providers[WARM_MODEL[0]] = {
        "npm": _NPM[first.kind] if first else _NPM["openai-compatible"],
        "name": "nobody",
        "options": {"baseURL": _WARM_ADDRESS, "apiKey": "none"},
        "models": {WARM_MODEL[1]: {"name": "nobody", "tool_call": True, "limit": {"context": 32_000, "output": 1000}}},
    }
    config: Json = {
        "$schema": "https://opencode.ai/config.json",  # OpenCode would write it into the file
        "username": "oubliette",
        "plugin": [f"file://{plugin}"],
        "provider": providers,
        "enabled_providers": list(providers),
        "permission": {"*": "allow", "task": "deny"},
        "mcp": {name: mcp_server(server) for name, server in (mcp_servers or {}).items()},
        "experimental": {
            "continue_loop_on_deny": True
        },  # a refusal is an answer for the model, not the end of the turn
        "autoupdate": False,
        "share": "disabled",
        "snapshot": False,  # the daemon keeps a shadow repository of its own
        "lsp": False,
        "formatter": False,
    }
    if first is not None:
        config["model"] = config["small_model"] = f"{provider_id(first.kind)}/{first.alias}"
    return config


def _provider(kind: ModelKind, models: Sequence[ModelEntry], capability: str, gateway: str) -> Json:
    return {
        "npm": _NPM[kind],
        "name": provider_id(kind),
        # A request that does not fit a budget is held by the gateway, perhaps for a day: no time limits of their own.
        "options": {
            "baseURL": f"{gateway}/{kind}/{_VERSION[kind]}",
            "apiKey": capability,
            "timeout": False,
            "headerTimeout": False,
        },
        "models": {entry.alias: _model(entry) for entry in models if entry.kind == kind},
    }


def _model(entry: ModelEntry) -> Json:
    inputs = ["text", *(["image"] if entry.images else []), *(["pdf"] if entry.pdf else [])]
    cost = entry.cost or ModelCost(0, 0)
    return {
        "id": wire_model(entry),
        "name": entry.name or entry.alias,
        "attachment": entry.images or entry.pdf,
        "reasoning": entry.reasoning,
        "temperature": True,
        "tool_call": entry.tool_call,
        "modalities": {"input": inputs, "output": ["text"]},
        "limit": {"context": entry.context, "output": entry.output},
        "cost": {
            "input": cost.input,
            "output": cost.output,
            "cache_read": cost.cache_read,
            "cache_write": cost.cache_write,
        },
    }


_LOCAL_KEYS = ("type", "command", "environment", "enabled", "timeout")
_REMOTE_KEYS = ("type", "url", "headers", "enabled", "timeout")


def mcp_server(server: Mapping[str, Any]) -> Json:
    """A server of a project as OpenCode takes it: known keys only, and no OAuth, which needs a browser."""
    if server.get("type") == "remote" or "url" in server:
        return {"type": "remote", "oauth": False, **{key: server[key] for key in _REMOTE_KEYS if key in server}}
    return {"type": "local", **{key: server[key] for key in _LOCAL_KEYS if key in server}}


def opencode_process(
    password: str,
    *,
    port: int = AGENT_PORT,
    toolkit: str = TOOLKIT_INSIDE,
    state: str = STATE_INSIDE,
    cache: str = CACHE_INSIDE,
    config: str = CONFIG_INSIDE,
    home: str = HOME_INSIDE,
    path: str = _PATH,
) -> tuple[list[str], dict[str, str]]:
    """Command line and whole environment of the agent. ``password`` guards its server and is new for each start.

    ``rg`` is last on PATH: without one OpenCode's glob and grep tools want to download it.
    """
    off = (
        "AUTOUPDATE",
        "MODELS_FETCH",
        "LSP_DOWNLOAD",
        "DEFAULT_PLUGINS",
        "PROJECT_CONFIG",
        "SHARE",
        "EMBEDDED_WEB_UI",
    )
    env = {
        "PATH": f"{path}:{toolkit}/tools",
        "HOME": home,
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "GIT_TERMINAL_PROMPT": "0",
        "DEBIAN_FRONTEND": "noninteractive",
        "XDG_CONFIG_HOME": f"{toolkit}/seed",
        "XDG_DATA_HOME": f"{state}/share",
        "XDG_STATE_HOME": f"{state}/xdg-state",
        "XDG_CACHE_HOME": cache,
        "npm_config_cache": f"{cache}/npm",
        "OPENCODE_CONFIG": config,
        "OPENCODE_MODELS_PATH": f"{toolkit}/models.json",
        "OPENCODE_SERVER_PASSWORD": password,
        "OPENCODE_EXPERIMENTAL_DISABLE_FILEWATCHER": "1",
        "OUBLIETTE_STAMPED": f"{posixpath.dirname(config)}/{STAMPED_FILE}",
        **{f"OPENCODE_DISABLE_{name}": "1" for name in off},
    }
    return [f"{toolkit}/bin/opencode", "serve", "--port", str(port), "--hostname", "127.0.0.1"], env


_VARIANTS: Mapping[Reasoning, Sequence[str]] = {
    Reasoning.OFF: ("none", "minimal"),
    Reasoning.LOW: ("low", "minimal"),
    Reasoning.MEDIUM: ("medium", "high"),
    Reasoning.HIGH: ("high",),
    Reasoning.MAX: ("max", "xhigh", "high"),
}


def variant_for(reasoning: Reasoning, variants: Sequence[str]) -> str | None:
    """OpenCode's variant of a model that comes nearest; None: the model's own default. ``variants``: what it has."""
    return next((name for name in _VARIANTS[reasoning] if name in variants), None)
