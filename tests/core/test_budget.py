"""What fits, what waits, what is held; and that no order of events overspends."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from oubliette.core.budget import (
    USEFUL_OUTPUT_TOKENS,
    Account,
    Asked,
    Fits,
    Held,
    Later,
    LimitName,
    decide,
    microusd,
)
from oubliette.core.pricing import FREE, Prices, Tier

OPUS = Prices(5, 25, 0.5, 6.25)
DOLLAR = 1_000_000


def money(limit: float, used: float = 0, reserved: float = 0) -> Account:
    return Account(LimitName.TREE_COST, microusd(limit), microusd(used), microusd(reserved))


def tokens(limit: int, used: int = 0, reserved: int = 0) -> Account:
    return Account(LimitName.TREE_TOKENS, limit, used, reserved)


def asked(read: int = 10_000, write: int = 32_000, prices: Prices | None = OPUS) -> Asked:
    return Asked(read, write, prices)


# One request


def test_a_request_whose_worst_case_fits_gets_all_that_it_asks_for() -> None:
    assert decide([money(10)], asked()) == Fits(32_000)
    assert decide([], asked()) == Fits(32_000)


def test_a_budget_below_the_worst_case_bounds_the_output_instead_of_refusing() -> None:
    verdict = decide([money(0.5)], asked())
    assert verdict == Fits(17_500)
    assert asked().needs(LimitName.TREE_COST, 17_500) == microusd(0.5)
    assert asked().needs(LimitName.TREE_COST, 17_501) > microusd(0.5)


def test_too_little_for_a_useful_answer_is_held_and_says_what_it_takes() -> None:
    verdict = decide([money(1, used=0.95)], asked())
    assert isinstance(verdict, Held)
    assert verdict.needed == asked().needs(LimitName.TREE_COST, USEFUL_OUTPUT_TOKENS) == 113_700
    assert verdict.as_json() == {
        "name": "max_cost_usd",
        "limit": 1.0,
        "used": 0.95,
        "reserved": 0.0,
        "remaining": 0.05,
        "needed": 0.1137,
    }


def test_a_request_for_a_short_answer_may_be_as_short_as_it_asks() -> None:
    assert decide([money(0.0011)], asked(read=100, write=10)) == Fits(10)
    assert isinstance(decide([money(0.0008)], asked(read=100, write=10)), Held)


def test_what_is_set_aside_for_others_makes_it_wait_and_not_shorter() -> None:
    verdict = decide([money(2, used=0.5, reserved=1)], asked())
    assert verdict == Later(money(2, used=0.5, reserved=1))
    assert decide([money(2, used=0.6, reserved=0)], asked()) == Fits(32_000)


def test_a_free_request_fits_whatever_was_spent_and_one_of_unknown_price_too() -> None:
    for prices in (FREE, None):
        assert decide([money(1, used=5)], asked(prices=prices)) == Fits(32_000)
        assert isinstance(decide([money(1), tokens(100)], asked(prices=prices)), Held)


def test_tokens_are_read_and_written_ones() -> None:
    assert decide([tokens(50_000)], asked()) == Fits(32_000)
    assert decide([tokens(20_000)], asked()) == Fits(10_000)
    held = decide([tokens(20_000, used=9_000)], asked())
    assert isinstance(held, Held)
    assert held.as_json()["needed"] == 10_000 + USEFUL_OUTPUT_TOKENS
    assert isinstance(decide([tokens(60_000, reserved=30_000)], asked()), Later)


def test_the_tightest_limit_decides_and_is_named() -> None:
    verdict = decide([money(0.5), tokens(13_000)], asked())
    assert verdict == Fits(3_000)
    verdict = decide([money(0.5), tokens(11_000)], asked())
    assert isinstance(verdict, Held)
    assert verdict.account.name == "max_tokens_per_session"


def test_a_limit_of_nothing_lets_only_free_requests_through() -> None:
    assert isinstance(decide([money(0)], asked()), Held)
    assert decide([money(0)], asked(prices=FREE)) == Fits(32_000)


def test_dear_long_prompts_and_entries_kept_for_an_hour_are_weighed_at_their_price() -> None:
    tiered = Prices(2, 10, tiers=(Tier(200_000, 4, 20),))
    assert asked(read=300_000, prices=tiered).needs(LimitName.TREE_COST, 1_000) == 1_220_000
    assert Asked(1_000, 0, OPUS, hour_writes=True).needs(LimitName.TREE_COST, 0) == 10_000
    assert Asked(1_000, 0, OPUS).needs(LimitName.TREE_COST, 0) == 6_250


def test_limits_in_dollars_are_rounded_down_and_not_by_floating_dust() -> None:
    assert microusd(0.1 + 0.2) == 300_000
    assert microusd(1.9999999) == 1_999_999
    assert microusd(0) == 0


@pytest.mark.parametrize("seed", range(200))
def test_the_bound_is_the_longest_output_that_fits(seed: int) -> None:
    dice = random.Random(seed)
    prices = Prices(dice.uniform(0, 20), dice.uniform(0, 90), None, dice.choice([None, dice.uniform(0, 30)]))
    one = Asked(dice.randrange(1, 200_000), dice.randrange(1, 64_000), prices)
    amount = dice.randrange(0, 5 * DOLLAR)
    most = one.most_output(LimitName.TREE_COST, amount)
    assert most == -1 or one.needs(LimitName.TREE_COST, most) <= amount
    if most < one.output_tokens:
        assert one.needs(LimitName.TREE_COST, most + 1) > amount


# Many at once: any order of asking, answering, failing and leaving


@dataclass
class Ledger:
    """A 30-line oracle of what the gateway's rows do."""

    limit: int
    used: int = 0
    at_work: list[tuple[Asked, int]] = field(default_factory=list)
    waiting: list[Asked] = field(default_factory=list)

    @property
    def account(self) -> Account:
        return Account(LimitName.TREE_COST, self.limit, self.used, sum(cost for _, cost in self.at_work))

    def look(self) -> None:
        """The first in line, as often as it fits."""
        while self.waiting:
            one = self.waiting[0]
            verdict = decide([self.account], one)
            if not isinstance(verdict, Fits):
                return
            self.waiting.pop(0)
            self.at_work.append((one, one.needs(LimitName.TREE_COST, verdict.output_tokens)))

    def settle(self, dice: random.Random, error: int = 0) -> None:
        _, cost = self.at_work.pop(dice.randrange(len(self.at_work)))
        self.used += dice.choice([0, dice.randint(0, cost), cost]) + error


def _request(dice: random.Random) -> Asked:
    return Asked(dice.randrange(1, 100_000), dice.randrange(1, 40_000), OPUS)


@pytest.mark.parametrize("seed", range(300))
def test_no_order_of_events_spends_more_than_the_limit(seed: int) -> None:
    dice = random.Random(seed)
    ledger = Ledger(limit=dice.randrange(0, 3 * DOLLAR))
    for _ in range(200):
        match dice.choice(["ask", "ask", "settle", "settle", "leave", "raise"]):
            case "ask":
                ledger.waiting.append(_request(dice))
            case "settle" if ledger.at_work:
                ledger.settle(dice)
            case "leave" if ledger.waiting:
                ledger.waiting.pop(dice.randrange(len(ledger.waiting)))
            case "raise" if dice.random() < 0.05:
                ledger.limit += dice.randrange(0, DOLLAR)
        ledger.look()
        assert ledger.used + ledger.account.reserved <= ledger.limit
        if ledger.waiting and not ledger.at_work:
            assert isinstance(decide([ledger.account], ledger.waiting[0]), Held), "nothing at work: nobody waits softly"


@pytest.mark.parametrize("seed", range(100))
def test_one_that_costs_more_than_estimated_overspends_by_no_more_than_that(seed: int) -> None:
    dice = random.Random(seed)
    ledger = Ledger(limit=dice.randrange(DOLLAR, 3 * DOLLAR))
    error, at = dice.randrange(1, DOLLAR), dice.randrange(40)
    wrong = 0
    for step in range(100):
        ledger.waiting.append(_request(dice))
        ledger.look()
        if ledger.at_work and dice.random() < 0.7:
            mistaken = step >= at and not wrong
            ledger.settle(dice, error if mistaken else 0)
            wrong = wrong or (error if mistaken else 0)
        ledger.look()
        assert ledger.used <= ledger.limit + wrong
