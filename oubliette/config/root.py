"""The whole configuration, and the questions that need more than one section."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, SecretStr

from oubliette.config.defaults import ContainerType, Defaults
from oubliette.config.models import BUILT_IN_MODELS, Credentials, ModelAlias, Models
from oubliette.config.section import Name, Section
from oubliette.config.server import Git, Log, Retention, Server, Telemetry, Webhook
from oubliette.core.pricing import facts_for

_TELLING = re.compile(r"auth|cookie|credential|key|pass|secret|token", re.IGNORECASE)
"""Names of headers and variables whose values are secrets."""

RuntimeChoice = Literal["auto", "docker", "podman", "apple-container", "bubblewrap"]


@dataclass(frozen=True, slots=True)
class ResolvedProvider:
    """Where requests for one model go. Without ``base_url``: to the provider's own address."""

    kind: str
    credential: str | None
    api_key: SecretStr | None
    base_url: str | None


class Config(Section):
    """The file `config/oubliette.jsonc` in the home."""

    schema_url: str | None = Field(default=None, alias="$schema")
    """For editors: where the JSON schema of this file is."""
    server: Server = Server()
    credentials: Credentials = Credentials()
    models: Models = Models()
    defaults: Defaults = Defaults()
    containers: dict[Name, ContainerType] = {}
    """Container types by name. `base` is built in: the image that this version was made with."""
    runtime: RuntimeChoice = "auto"
    """What runs containers; `auto` tries each and takes the first that works. `CONTAINER_RUNTIME` wins."""
    git: Git = Git()
    log: Log = Log()
    retention: Retention = Retention()
    webhooks: dict[Name, Webhook] = {}
    """Receivers of notices by name."""
    telemetry: Telemetry = Telemetry()

    def resolve_provider(self, model: ModelAlias) -> ResolvedProvider | None:
        """The credential behind a model. None: it names a provider kind of which there is no (or no one) credential,
        and cannot be used."""
        credentials = self.credentials.providers
        name: str | None = model.provider
        if model.provider not in credentials.credentials:
            of_kind = [key for key, item in credentials.credentials.items() if item.provider == model.provider]
            name = credentials.default if credentials.default in of_kind else of_kind[0] if len(of_kind) == 1 else None
        if name is not None:
            found = credentials.credentials[name]
            return ResolvedProvider(found.provider, name, found.api_key, model.base_url or found.base_url)
        if model.provider == "scripted" or (model.provider == "openai-compatible" and model.base_url):
            return ResolvedProvider(model.provider, None, None, model.base_url)
        return None

    def usable_models(self) -> dict[str, ModelAlias]:
        """The configured models that can be asked, in the file's order; without the built-in scripted ones."""
        return {alias: model for alias, model in self.models.models.items() if self.resolve_provider(model)}

    def default_model(self) -> str | None:
        """The model of a session for which nobody named one: ``defaults.agent.model``, ``session_model``, the only one
        there is. None: there is no such model."""
        usable = self.usable_models()
        for alias in (self.defaults.agent.model, self.models.defaults.session_model):
            if alias is not None and (alias in usable or alias in BUILT_IN_MODELS):
                return alias
        return next(iter(usable)) if len(usable) == 1 else None

    def has_price(self, alias: str) -> bool:
        """Whether it is known what the model costs: the config says so, or the built-in facts, or it is free."""
        model = self.models.models.get(alias)
        if model is None:
            return alias in BUILT_IN_MODELS
        provider = self.resolve_provider(model)
        scripted = (provider.kind if provider else model.provider) == "scripted"
        return scripted or model.cost is not None or facts_for(model.model).prices is not None

    def secrets(self) -> set[str]:
        """Every secret value, for the log's redactor."""
        return {secret for secret in _secrets(self) if secret}

    def with_address(self, address: str) -> Config:
        """The same configuration, listening elsewhere."""
        server = Server.model_validate(self.server.model_dump() | {"address": address}, strict=False)
        return self.model_copy(update={"server": server})


def _secrets(value: Any) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets(getattr(value, name))
    elif isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(inner, SecretStr) or _TELLING.search(name):  # most headers and variables are no secrets
                yield from _secrets(inner)


def config_directory(path: Path) -> Path:
    """What relative paths in the file at ``path`` are relative to: the home."""
    folder = path.absolute().parent
    return folder.parent if folder.name == "config" else folder
