"""``project options``: what may be chosen here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oubliette.api.tools.registry import Call
from oubliette.config.models import BUILT_IN_MODELS
from oubliette.core.model import Json
from oubliette.project.settings import effective_limits

if TYPE_CHECKING:
    from oubliette.api.tools.project import Options


async def options(call: Call, args: Options) -> Json:
    """Limits, models, credential names (for admins), container types, runtimes, token scopes, versions.

    With a project, what holds in it.
    """
    services = call.shared.services
    config = services.config
    project = call.place.project
    settings = project.settings if project is not None else {}
    allowed = settings.get("allowed_models")
    models = [
        {"model": alias, "display_name": model.display_name or alias}
        for alias, model in config.usable_models().items()
        if not allowed or alias in allowed
    ]
    models += [{"model": alias, "display_name": "built in, for tries"} for alias in BUILT_IN_MODELS if not allowed]
    found: Json = {
        "limits": effective_limits(config, settings),
        "models": models,
        "container_types": sorted({"base", config.defaults.container.type, *config.containers}),
        "token_scopes": ["admin", "admin:ro", "project:<project id>", "project:<project id>:ro"],
        **services.about(),
    }
    default = settings.get("model") or config.default_model()
    if default is not None:
        found["default_model"] = default
    if call.principal.scope.is_admin:
        found["credentials"] = {
            "provider": sorted(config.credentials.providers.credentials),
            "github": sorted(config.credentials.github.credentials),
        }
    return found
