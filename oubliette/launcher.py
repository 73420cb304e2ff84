"""How OpenCode is configured, started and spoken to in a container: the container room's AgentLauncher."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from oubliette.agent.base import OWN_SERVER, Agent
from oubliette.agent.opencode import OpenCode
from oubliette.agent.opencode_config import TOOLKIT_INSIDE, ModelCost, ModelEntry, opencode_config, opencode_process
from oubliette.agent.toolkit import OPENCODE_VERSION
from oubliette.config import Config
from oubliette.container.link import RelayLink
from oubliette.container.ready import AgentCommand
from oubliette.core.model import ContainerRow, ProjectRow
from oubliette.core.pricing import Prices
from oubliette.errors import AgentError, AgentUnreachable
from oubliette.gateway.models import ResolvedModel, all_models

CONFIG_FILE = "opencode.json"
PER_MILLION = 1_000_000
OWN_SERVER_TIMEOUT_MS = 300_000
"""Longer than any call of ours takes; OpenCode gives a silent one up after a minute otherwise."""
_OWN = {
    "type": "local",
    "command": ["python3", "-ISB", f"{TOOLKIT_INSIDE}/python/oubliette_client"],
    "enabled": True,
    "timeout": OWN_SERVER_TIMEOUT_MS,
}
"""Our own tools for the agent: a program inside that carries lines to the relay's socket."""


class OpenCodeLauncher:
    """One for the daemon; knows the configured models and MCP servers."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._entries = [_entry(model) for model in all_models(config).values()]

    @property
    def version(self) -> str:
        return OPENCODE_VERSION

    async def files(self, row: ContainerRow, project: ProjectRow) -> Mapping[str, bytes]:
        """``opencode.json``: every model the project may use, its MCP servers, the container's own key."""
        await trio.lowlevel.checkpoint()
        allowed = project.settings.get("allowed_models")
        entries = [entry for entry in self._entries if not allowed or entry.alias in allowed or _built_in(entry)]
        defaults = {name: server.as_dict() for name, server in self._config.defaults.agent.mcp_servers.items()}
        servers = {
            name: _server(server)
            for name, server in {**defaults, **(project.settings.get("mcp_servers") or {})}.items()
        }
        content = opencode_config(
            entries,
            capability=row.capability,
            mcp_servers={**servers, OWN_SERVER: _OWN},
            default_model=project.settings.get("model") or self._config.default_model(),
        )
        return {CONFIG_FILE: json.dumps(content).encode()}

    def command(self, row: ContainerRow, password: str) -> AgentCommand:
        argv, env = opencode_process(password)
        return AgentCommand(argv, env, "/")

    @asynccontextmanager
    async def connect(self, link: RelayLink, row: ContainerRow, password: str) -> AsyncIterator[Agent]:
        """Enters when the agent answers; raises AgentError when it does not come up."""
        agent = OpenCode(link.dial, password, self._entries)
        failure: AgentError | None = None
        lost = leaving = False

        async def follow(*, task_status: trio.TaskStatus[None]) -> None:
            """An agent that hangs is lost though its process lives: whoever uses it is ended, and starts it again."""
            nonlocal lost
            await agent.run(task_status=task_status)
            lost = not leaving
            nursery.cancel_scope.cancel("the agent is lost")

        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(follow)
                yield agent
            except AgentError as error:
                failure = error  # raised again below, bare and not in a group of one
            finally:
                leaving = True
                agent.mark_lost("its container let go of it")
                nursery.cancel_scope.cancel("the agent is let go")
        if failure is not None:
            raise failure
        if lost:
            raise AgentUnreachable("the agent no longer answers")


def _server(server: Mapping[str, Any]) -> Mapping[str, Any]:
    """OpenCode spells the time limit without its unit."""
    spelled = {key: value for key, value in server.items() if key != "timeout_ms"}
    if "timeout_ms" in server:
        spelled["timeout"] = server["timeout_ms"]
    return spelled


def _built_in(entry: ModelEntry) -> bool:
    return entry.alias.startswith("scripted")


def _entry(model: ResolvedModel) -> ModelEntry:
    return ModelEntry(
        alias=model.alias,
        kind=model.wire.value,
        context=model.context_tokens,
        output=model.max_output_tokens,
        images=model.images,
        pdf=model.pdf,
        reasoning=model.reasoning,
        tool_call=model.tool_call,
        name=model.display_name,
        model="" if model.scripted else model.model,
        cost=_cost(model.prices),
    )


def _cost(prices: Prices | None) -> ModelCost | None:
    if prices is None:
        return None
    return ModelCost(prices.input, prices.output, prices.cache_read or 0.0, prices.cache_write or 0.0)
