"""Whether a model request fits into what may be spent: now, later, or not until somebody raises a limit. Pure.

Money is integer micro-USD. A request is weighed at its worst case: everything it sends is read at the highest price,
and it writes as much as it may. What it really came to is known when it has been answered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from oubliette.core.model import Json
from oubliette.core.pricing import Prices, worst_case

USEFUL_OUTPUT_TOKENS = 2_048
"""A request may be given less output than it asked for, so that it fits, but no less than this: enough to say
something or to call a tool."""
MICROUSD = 1_000_000


class LimitName(StrEnum):
    """What spending is limited by, as config, projects and sessions spell it."""

    TREE_COST = "max_cost_usd"
    DAY_COST = "max_cost_usd_per_day"
    TREE_TOKENS = "max_tokens_per_session"

    @property
    def is_money(self) -> bool:
        return self is not LimitName.TREE_TOKENS


@dataclass(frozen=True, slots=True)
class Account:
    """One limit and what is on it: settled (``used``) and set aside for requests at work (``reserved``).

    All three in micro-USD or tokens, as the limit's name says.
    """

    name: LimitName
    limit: int
    used: int
    reserved: int = 0

    @property
    def spent(self) -> bool:
        """Whether nothing is left, whatever becomes of the requests at work."""
        return self.used >= self.limit

    def as_json(self, needed: int | None = None) -> Json:
        """SHAPES' limit: USD or tokens; ``needed`` is what the request at hand takes at least."""
        shape: Json = {"name": str(self.name), "limit": self._shown(self.limit), "used": self._shown(self.used)}
        shape["reserved"] = self._shown(self.reserved)
        shape["remaining"] = self._shown(max(0, self.limit - self.used - self.reserved))
        if needed is not None:
            shape["needed"] = self._shown(needed)
        return shape

    def _shown(self, amount: int) -> float:
        return amount / MICROUSD if self.name.is_money else amount


@dataclass(frozen=True, slots=True)
class Asked:
    """A request before it is sent. ``prices`` None: nobody knows them, and only tokens can be limited."""

    input_tokens: int
    output_tokens: int
    prices: Prices | None
    hour_writes: bool = False
    """Whether it asks to keep something in the provider's cache for an hour, which costs more to write."""

    def needs(self, name: LimitName, output_tokens: int) -> int:
        """At most so much, with that much output."""
        if name is LimitName.TREE_TOKENS:
            return self.input_tokens + output_tokens
        return worst_case(self.prices, self.input_tokens, output_tokens, hour_writes=self.hour_writes)

    def most_output(self, name: LimitName, amount: int) -> int:
        """The longest output that ``amount`` pays for, up to what is asked; −1 when it does not pay for reading."""
        asked = self.output_tokens
        if name.is_money and self.needs(name, asked) == 0:
            return asked  # free, or of unknown price
        if self.needs(name, asked) <= amount:
            return asked
        if self.needs(name, 0) > amount:
            return -1
        least, most = 0, asked
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if self.needs(name, middle) <= amount else (least, middle)
        return least


@dataclass(frozen=True, slots=True)
class Fits:
    """It may be sent, with at most so much output."""

    output_tokens: int


@dataclass(frozen=True, slots=True)
class Later:
    """It fits once requests that are at work have come to less than was set aside for them."""

    account: Account


@dataclass(frozen=True, slots=True)
class Held:
    """It does not fit, whatever becomes of the requests at work. ``needed``: what it takes at least, in all."""

    account: Account
    needed: int

    def as_json(self) -> Json:
        return self.account.as_json(self.needed)


Verdict = Fits | Later | Held


def decide(accounts: Sequence[Account], asked: Asked) -> Verdict:
    """What becomes of the request. Where its whole worst case does not fit, its output is cut down to what does, as
    long as that is useful; where it would fit but for the requests at work, it waits for these."""
    bound = asked.output_tokens
    tightest: Account | None = None
    for account in accounts:
        most = asked.most_output(account.name, account.limit - account.used)
        if most < bound:
            bound, tightest = most, account
    least = min(asked.output_tokens, USEFUL_OUTPUT_TOKENS)
    if tightest is not None and bound < least:
        return Held(tightest, asked.needs(tightest.name, least))
    for account in accounts:
        needed = asked.needs(account.name, bound)
        if needed and needed > account.limit - account.used - account.reserved:
            return Later(account)
    return Fits(bound)


def microusd(usd: float) -> int:
    """A limit in USD as micro-USD, rounded down."""
    return math.floor(usd * MICROUSD + 1e-6)
