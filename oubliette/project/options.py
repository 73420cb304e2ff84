"""What may be chosen for a project: the result of ``project options``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oubliette.config import Config
from oubliette.config.models import BUILT_IN_MODELS
from oubliette.core import access
from oubliette.core.model import Autonomy, Json, ProjectRow, Reasoning
from oubliette.core.principals import Principal
from oubliette.project.settings import effective_limits
from oubliette.runtime.base import RuntimeReport


def project_options(
    config: Config,
    principal: Principal,
    project: ProjectRow | None,
    runtimes: Sequence[RuntimeReport],
    versions: Mapping[str, str],
) -> Json:
    """Models, limits, container types, runtimes, versions; of one project when given. Names of credentials and scopes
    of tokens only for those who may use them."""
    settings = project.settings if project is not None else {}
    allowed = settings.get("allowed_models")
    models = []
    for alias, model in config.usable_models().items():
        if allowed is None or alias in allowed:
            entry: Json = {"alias": alias, "model": model.model, "provider": model.provider}
            if model.display_name is not None:
                entry["display_name"] = model.display_name
            models.append(entry)
    built_in = [{"alias": one, "built_in": True} for one in BUILT_IN_MODELS if allowed is None or one in allowed]
    shown: Json = {
        "limits": effective_limits(config, settings),
        "models": [*models, *built_in],
        "autonomy": [one.value for one in Autonomy],
        "reasoning": [one.value for one in Reasoning],
        "networks": ["none", "bridge"],
        "container_types": sorted({"base", config.defaults.container.type, *config.containers}),
        "runtimes": [_runtime(report) for report in runtimes],
        "versions": dict(versions),
    }
    default = settings.get("model") or config.default_model()
    if default is not None:
        shown["default_model"] = default
    if access.may_ever(principal, "project.create"):
        shown["credentials"] = {
            "provider": sorted(config.credentials.providers.credentials),
            "github": sorted(config.credentials.github.credentials),
        }
    if access.may_ever(principal, "token.create"):
        shown["token_scopes"] = ["admin", "admin:ro", "project:<project id>", "project:<project id>:ro"]
    return shown


def _runtime(report: RuntimeReport) -> Json:
    shown = {"name": report.name, "ok": report.ok, "version": report.version, "reason": report.reason}
    return {key: value for key, value in shown.items() if value != ""}
