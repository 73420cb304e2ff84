"""Which model and which limits a session gets: the order of precedence in one place. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oubliette.config import BUILT_IN_MODELS, Config
from oubliette.core.model import Autonomy, Json, ProjectRow, Reasoning, SessionRow
from oubliette.core.principals import Principal
from oubliette.errors import Limit, RequestError


def choose_model(config: Config, project: ProjectRow, *asked: str | None) -> str:
    """The alias to use: the first of ``asked`` (message, then spawn), then project, then the config's defaults,
    then the only one there is.

    Raises RequestError ``not_ready`` when no model is configured, ``invalid_argument`` for an unknown or refused alias.
    """
    known = config.usable_models()
    candidates: Sequence[str | None] = (
        *asked,
        project.settings.get("model"),
        config.default_model(),
    )
    alias = next((name for name in candidates if name), None)
    if alias is None:
        if not known:
            raise RequestError(
                "not_ready",
                "No model is configured.",
                hint='Add one to the config: "models": {"models": {"opus": {"model": "claude-opus-4-6", "provider": '
                '"anthropic"}}}, or pass model "scripted" to try the built-in one.',
            )
        raise RequestError(
            "not_ready",
            f"Several models are configured ({', '.join(sorted(known))}) and none is the default.",
            hint="Set models.defaults.session_model in the config, or pass model.",
            field="model",
        )
    if alias not in known and alias not in BUILT_IN_MODELS:
        raise RequestError(
            "invalid_argument",
            f"There is no model {alias!r}.",
            hint=f"Configured: {', '.join(sorted(known)) or 'none'}; built in: scripted.",
            field="model",
        )
    allowed = project.settings.get("allowed_models")
    if allowed and alias not in allowed:
        raise RequestError(
            "permission_denied",
            f"The project does not allow the model {alias!r}.",
            hint=f"Allowed: {', '.join(allowed)}.",
            field="model",
        )
    return alias


def check_priced(config: Config, project: ProjectRow, alias: str, *, explicit: bool) -> None:
    """Somebody has said what the tree (``explicit``) or the project's day or trees may cost: nobody can promise that
    for a model of unknown price. Raises RequestError invalid_argument naming the key that says it."""
    own: dict[str, Any] = project.settings.get("limits") or {}
    said = explicit or any(own.get(name) is not None for name in ("max_cost_usd", "max_cost_usd_per_day"))
    if said and not config.has_price(alias):
        raise RequestError(
            "invalid_argument",
            f"The price of the model {alias!r} is not known, so max_cost_usd cannot be kept.",
            hint=f'Add "cost": {{"input": …, "output": …}} (USD per million tokens) to models.models.{alias} in the '
            "config, or limit tokens with max_tokens_per_session.",
            field="max_cost_usd",
        )


def has_own_cost(config: Config, row: SessionRow) -> bool:
    """Whether somebody has chosen what this session's tree may cost; else it is the config's default."""
    return bool(row.limits.get("max_cost_usd") != config.defaults.limits.max_cost_usd)


def check_cost(config: Config, project: ProjectRow, principal: Principal, usd: float | None) -> None:
    """Raises RequestError permission_denied for a budget above the project's, which only an admin may give."""
    own: dict[str, Any] = project.settings.get("limits") or {}
    most = own.get("max_cost_usd", config.defaults.limits.max_cost_usd)
    if usd is not None and not principal.scope.is_admin and usd > most:
        raise RequestError(
            "permission_denied",
            f"max_cost_usd of a session may be at most the project's, which is {most:g}.",
            hint="An admin may give more, here or to the project.",
            field="max_cost_usd",
            limit=Limit("max_cost_usd", most, usd),
        )


def choose_autonomy(config: Config, project: ProjectRow, *asked: Autonomy | None) -> Autonomy:
    for value in (*asked, project.settings.get("autonomy"), config.defaults.agent.autonomy):
        if value is not None:
            return Autonomy(value)
    return Autonomy.OFF


def choose_reasoning(config: Config, project: ProjectRow, *asked: Reasoning | None) -> Reasoning:
    for value in (*asked, project.settings.get("reasoning"), config.defaults.agent.reasoning):
        if value is not None:
            return Reasoning(value)
    return Reasoning.MEDIUM


def limits_of(config: Config, project: ProjectRow) -> Json:
    """The limits of a new tree: the project's over the config's. ``turn_timeout_seconds`` among them."""
    defaults = config.defaults.limits
    own: dict[str, Any] = project.settings.get("limits") or {}
    limits: Json = {}
    for name in (
        "max_recursion_depth",
        "max_agents_per_session",
        "max_cost_usd",
        "max_cost_usd_per_day",
        "max_tokens_per_session",
        "max_active_sessions",
    ):
        value = own.get(name, getattr(defaults, name))
        if value is not None:
            limits[name] = value
    minutes = own.get("turn_timeout_minutes", defaults.turn_timeout_minutes)
    limits["turn_timeout_seconds"] = round(float(minutes) * 60)
    return limits


def mcp_servers_of(config: Config, project: ProjectRow) -> set[str]:
    """The names of the MCP servers that a project's agents have, besides Oubliette's own."""
    return {*config.defaults.agent.mcp_servers, *(project.settings.get("mcp_servers") or {})}
