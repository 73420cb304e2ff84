"""From an alias of the config to everything that is needed to ask that model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

from oubliette.config import BUILT_IN_MODELS, Config, ModelAlias
from oubliette.config.models import Cost
from oubliette.core.pricing import FREE, ModelFacts, Prices, facts_for
from oubliette.errors import RequestError


class Wire(StrEnum):
    """A provider's wire format. The value is the first segment of its path at the gateway."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"
    GOOGLE = "google"
    CHAT = "openai-compatible"


_DEFAULT_BASE = {
    Wire.ANTHROPIC: "https://api.anthropic.com/v1",
    Wire.OPENAI: "https://api.openai.com/v1",
    Wire.GOOGLE: "https://generativelanguage.googleapis.com/v1beta",
}
_VERSION = {Wire.ANTHROPIC: "/v1", Wire.OPENAI: "/v1", Wire.GOOGLE: "/v1beta", Wire.CHAT: "/v1"}

SCRIPTED_FACTS = ModelFacts(
    "scripted", context_tokens=1_000_000, output_tokens=64_000, images=True, pdf=True, reasoning=True, prices=FREE
)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """An alias with everything filled in: what the config says, else what is known of the model.

    ``scripted`` models have no address: the gateway answers itself. ``prices`` None: no price is known.
    ``output_cap`` is the config's own bound on one answer, ``max_output_tokens`` that or the model's.
    """

    alias: str
    wire: Wire
    scripted: bool
    model: str
    provider: str
    """The credential's name, or the provider kind."""
    base_url: str
    api_key: str | None = field(repr=False)
    extra_headers: Mapping[str, str] = field(repr=False)
    display_name: str
    max_output_tokens: int
    output_cap: int | None
    context_tokens: int
    images: bool
    pdf: bool
    reasoning: bool
    tool_call: bool
    known: bool
    """False: the limits are guesses and the price is unknown unless the config has it."""
    hosted_tools: bool
    prices: Prices | None


def resolve(config: Config, alias: str, *, credential: str | None = None) -> ResolvedModel:
    """What ``alias`` stands for. ``credential`` is the project's own: it replaces another one of the same kind.

    Raises RequestError: ``not_found`` for an unknown alias, ``not_ready`` for one that cannot be asked as configured.
    """
    if alias in BUILT_IN_MODELS:
        return _scripted(alias, ModelAlias.model_validate({"model": alias, "provider": "scripted"}))
    entry = config.models.models.get(alias)
    if entry is None:
        raise RequestError("not_found", f"There is no model {alias!r}.", field="model")
    provider = config.resolve_provider(entry)
    own = config.credentials.providers.credentials.get(credential) if credential else None
    kind = provider.kind if provider else entry.provider
    if own is not None and own.provider == kind:
        name, key, base = credential, own.api_key, entry.base_url or own.base_url
    elif provider is not None:
        name, key, base = provider.credential, provider.api_key, provider.base_url
    else:
        raise RequestError(
            "not_ready",
            f"The model {alias!r} has no credential.",
            hint=f"Add one of kind {entry.provider} under credentials.providers.credentials.",
        )
    if kind == "scripted":
        return _scripted(alias, entry)
    wire = Wire(kind)
    return _filled_in(
        alias,
        entry,
        facts_for(entry.model),
        wire,
        provider=name or kind,
        base_url=_base_url(wire, base, alias),
        api_key=key.get_secret_value() if key else None,
    )


def all_models(config: Config) -> dict[str, ResolvedModel]:
    """Every alias that can be asked: the configured ones in the file's order, then the built-in ones."""
    usable = {alias: resolve(config, alias) for alias in config.usable_models()}
    return usable | {alias: resolve(config, alias) for alias in BUILT_IN_MODELS}


def _scripted(alias: str, entry: ModelAlias) -> ResolvedModel:
    """``scripted-anthropic`` and the like choose the wire that the agent speaks; ``scripted`` is openai-compatible."""
    suffix = entry.model.removeprefix("scripted").removeprefix("-")
    wire = Wire(suffix) if suffix in set(Wire) else Wire.CHAT
    return _filled_in(alias, entry, SCRIPTED_FACTS, wire, provider="scripted", scripted=True)


def _filled_in(
    alias: str,
    entry: ModelAlias,
    facts: ModelFacts,
    wire: Wire,
    *,
    provider: str,
    base_url: str = "",
    api_key: str | None = None,
    scripted: bool = False,
) -> ResolvedModel:
    """What the alias says wins over what is known."""
    return ResolvedModel(
        alias=alias,
        wire=wire,
        scripted=scripted,
        model=entry.model,
        provider=provider,
        base_url=base_url,
        api_key=api_key,
        extra_headers={header.lower(): value.get_secret_value() for header, value in entry.extra_headers.items()},
        display_name=entry.display_name or alias,
        max_output_tokens=entry.max_output_tokens or facts.output_tokens,
        output_cap=entry.max_output_tokens,
        context_tokens=entry.context_window or facts.context_tokens,
        images=facts.images if entry.images is None else entry.images,
        pdf=facts.pdf,
        reasoning=facts.reasoning,
        tool_call=facts.tool_call,
        known=facts.known or scripted,
        hosted_tools=entry.hosted_tools,
        prices=_prices(entry.cost, facts.prices),
    )


def _prices(cost: Cost | None, known: Prices | None) -> Prices | None:
    """The alias's flat prices; a cache price that it leaves out is the known one. Both at zero: all free."""
    if cost is None:
        return known
    if cost.input == 0 and cost.output == 0:
        return FREE
    return Prices(
        input=cost.input,
        output=cost.output,
        cache_read=cost.cache_read if cost.cache_read is not None else known.cache_read if known else None,
        cache_write=cost.cache_write if cost.cache_write is not None else known.cache_write if known else None,
    )


def _base_url(wire: Wire, base: str | None, alias: str) -> str:
    """The address up to the version segment. A configured one without any path gets the provider's usual version."""
    base = base or _DEFAULT_BASE.get(wire)
    if base is None:
        raise RequestError(
            "not_ready",
            f"The model {alias!r} has no address.",
            hint="Set base_url on its credential or baseUrl on the model.",
        )
    base = base.rstrip("/")
    return base if urlsplit(base).path else base + _VERSION[wire]
