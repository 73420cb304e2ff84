"""What current models can do and cost, and what a request costs. Pure, apart from reading its own data file once.

Token counts are disjoint: ``input_tokens`` are those neither read from nor written to a cache. ``output_tokens``
include the reasoning ones. Prices are USD per million tokens, which is micro-USD per token.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from oubliette.core.model import ModelUsage

HOUR_WRITE_FACTOR = 2.0
"""Writing a cache entry that is kept for an hour costs twice the input price (Anthropic)."""
CHARACTERS_PER_TOKEN = 3
"""For estimates, on the safe side: English text has about four, code and other languages fewer."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Prices of the whole request once its prompt has more than ``above`` tokens."""

    above: int
    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per million tokens. An absent cache price means that such tokens cost as plain input."""

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None
    tiers: tuple[Tier, ...] = ()

    def at(self, prompt_tokens: int) -> Prices | Tier:
        """The prices that hold for a prompt of that size."""
        chosen: Prices | Tier = self
        for tier in self.tiers:
            if prompt_tokens > tier.above:
                chosen = tier
        return chosen


FREE = Prices(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model. ``known`` False: nothing; limits are cautious guesses and there is no price."""

    name: str
    context_tokens: int = 128_000
    output_tokens: int = 16_384
    images: bool = True
    pdf: bool = False
    reasoning: bool = False
    tool_call: bool = True
    prices: Prices | None = None
    known: bool = False


def price(usage: ModelUsage, prices: Prices | None, *, cache_write_hour_tokens: int = 0) -> tuple[int, bool]:
    """Cost in micro-USD (rounded up: a budget is never overrun by rounding) and whether it is complete.

    ``cache_write_hour_tokens`` is the part of ``cache_write_tokens`` that was written to be kept for an hour.
    """
    if prices is None:
        return 0, False
    prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    at = prices.at(prompt)
    read = at.input if at.cache_read is None else at.cache_read
    write = at.input if at.cache_write is None else at.cache_write
    hour = min(cache_write_hour_tokens, usage.cache_write_tokens)
    cost = (
        usage.input_tokens * at.input
        + usage.output_tokens * at.output
        + usage.cache_read_tokens * read
        + (usage.cache_write_tokens - hour) * write
        + hour * at.input * HOUR_WRITE_FACTOR
    )
    return math.ceil(cost - 1e-6), True


def worst_case(prices: Prices | None, input_tokens: int, output_tokens: int, *, hour_writes: bool = False) -> int:
    """The most that a request of that size can cost, in micro-USD: nothing cached yet, all of it written to a cache
    (``hour_writes``: to be kept for an hour)."""
    if prices is None:
        return 0
    at = prices.at(input_tokens)
    write = at.input * HOUR_WRITE_FACTOR if hour_writes else at.cache_write or 0
    return math.ceil(input_tokens * max(at.input, write) + output_tokens * at.output)


def estimate_tokens(characters: int) -> int:
    """A cautious guess for text of that length."""
    return -(-characters // CHARACTERS_PER_TOKEN)


def prices_from(cost: Mapping[str, Any]) -> Prices:
    """From ``{input, output, cache_read?, cache_write?, tiers?: [{above, ...}]}``, as the facts file spells it."""
    return Prices(
        input=float(cost["input"]),
        output=float(cost["output"]),
        cache_read=_optional(cost.get("cache_read")),
        cache_write=_optional(cost.get("cache_write")),
        tiers=tuple(
            Tier(
                above=int(tier["above"]),
                input=float(tier["input"]),
                output=float(tier["output"]),
                cache_read=_optional(tier.get("cache_read")),
                cache_write=_optional(tier.get("cache_write")),
            )
            for tier in cost.get("tiers") or ()
        ),
    )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


@cache
def _catalogue() -> Mapping[str, ModelFacts]:
    text = resources.files("oubliette.core").joinpath("model_facts.json").read_text(encoding="utf-8")
    return {
        name: ModelFacts(
            name=name,
            context_tokens=entry["context"],
            output_tokens=entry["output"],
            images=entry["images"],
            pdf=entry["pdf"],
            reasoning=entry["reasoning"],
            tool_call=entry["tool_call"],
            prices=prices_from(entry["cost"]) if "cost" in entry else None,
            known=True,
        )
        for name, entry in json.loads(text)["models"].items()
    }


@lru_cache(maxsize=256)
def facts_for(model_name: str) -> ModelFacts:
    """What is known of the model: the entry with the longest name that ``model_name`` begins with.

    Dates and other suffixes are fine (``claude-opus-4-5-20251101``, ``gpt-5.4-2026-03-05``), so are the spellings of
    resellers (``anthropic/claude-opus-4.6``). Another version (``gpt-5.9``, ``claude-opus-5-7``) is another model.
    """
    catalogue = _catalogue()
    for spelling in _spellings(model_name):
        fitting = [name for name in catalogue if _extends(spelling, name)]
        if fitting:
            return catalogue[max(fitting, key=len)]
    return ModelFacts(name=model_name)


def _spellings(model_name: str) -> tuple[str, ...]:
    bare = model_name.strip().lower().rpartition("/")[2]
    without_vendor = bare.rpartition("anthropic.")[2]
    return (bare, without_vendor, without_vendor.replace(".", "-"))


_ANOTHER_VERSION = re.compile(r"-\d{1,2}(?![\d])")


def _extends(name: str, known: str) -> bool:
    if not name.startswith(known):
        return False
    rest = name[len(known) :]
    return not rest or (rest[0] in "-@:_[" and not _ANOTHER_VERSION.match(rest))
