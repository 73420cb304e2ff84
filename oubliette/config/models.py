"""Who answers: sections ``credentials`` and ``models``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from oubliette.config.section import Count, Name, NotNegative, Section, Url

ProviderKind = Literal["anthropic", "openai", "google", "openai-compatible", "scripted"]
PROVIDER_KINDS: tuple[str, ...] = ("anthropic", "openai", "google", "openai-compatible", "scripted")
BUILT_IN_MODELS: tuple[str, ...] = ("scripted", "scripted-anthropic", "scripted-openai", "scripted-google")
"""Aliases that are always there and never the default."""


class ProviderCredential(Section):
    """A key for a provider of models."""

    provider: ProviderKind
    """Which wire format it speaks."""
    api_key: SecretStr | None = None
    """The key. It stays in the daemon; no container ever sees it."""
    base_url: Url | None = None
    """Where to send requests instead of the provider's own address; `openai-compatible` needs one."""
    description: str | None = None


class ProviderCredentials(Section):
    """Keys for providers of models."""

    credentials: dict[Name, ProviderCredential] = {}
    """Credentials by name."""
    default: str | None = None
    """The one to use where a model names only a provider kind of which there are several."""


class GithubCredential(Section):
    """A token for a Git host."""

    token: SecretStr
    """The token. It goes to `host` alone, for clone, pull and push."""
    host: str = "github.com"
    """The host it belongs to."""
    description: str | None = None


class GithubCredentials(Section):
    """Tokens for Git hosts."""

    credentials: dict[Name, GithubCredential] = {}
    """Credentials by name."""
    default: str | None = None
    """The one that projects use unless they name another."""


class Credentials(Section):
    """Everything that opens a door elsewhere."""

    providers: ProviderCredentials = ProviderCredentials()
    github: GithubCredentials = GithubCredentials()


class Cost(Section):
    """Prices in USD per million tokens. `{"input": 0, "output": 0}` says that the model is free."""

    input: NotNegative
    """Read by the model."""
    output: NotNegative
    """Written by the model, reasoning included."""
    cache_read: NotNegative | None = None
    """Read from the provider's cache; without it the built-in price, else `input`."""
    cache_write: NotNegative | None = None
    """Written to the provider's cache; without it the built-in price, else `input`."""


class ModelAlias(Section):
    """A model that sessions may use. What is left out comes from the built-in facts about the model, where known."""

    model: Annotated[str, Field(min_length=1)]
    """The provider's own name of the model."""
    provider: str
    """A credential's name, or a provider kind: then the default credential of that kind, or the only one."""
    display_name: str | None = Field(default=None, alias="displayName")
    """What people see."""
    base_url: Url | None = Field(default=None, alias="baseUrl")
    """Overrides the credential's `base_url`."""
    max_output_tokens: Count | None = Field(default=None, alias="maxOutputTokens")
    """The most that one answer may hold."""
    context_window: Count | None = Field(default=None, alias="contextWindow")
    """The most that one conversation may hold; the agent compacts before."""
    images: bool | None = None
    """Whether it reads images."""
    extra_headers: dict[str, SecretStr] = Field(default={}, alias="extraHeaders")
    """Headers to add to each request."""
    hosted_tools: bool = False
    """Whether tools that the provider runs itself (web search, code execution) may be asked for."""
    cost: Cost | None = None
    """Without a price budgets in USD cannot be promised: `cost_complete` is false."""


class ModelDefaults(Section):
    """Which model when nobody says."""

    session_model: str | None = None
    """An alias. It comes after the message's, the spawn's, the project's and `defaults.agent.model`."""


class Models(Section):
    """The models that sessions may use."""

    models: dict[Name, ModelAlias] = {}
    """Models by alias. `scripted` and `scripted-*` are built in."""
    defaults: ModelDefaults = ModelDefaults()
