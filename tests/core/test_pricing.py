from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from oubliette.core.model import ModelUsage
from oubliette.core.pricing import FREE, Prices, Tier, estimate_tokens, facts_for, price, prices_from, worst_case

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "refresh_model_facts"
OPUS = Prices(5, 25, cache_read=0.5, cache_write=6.25)


def usage(read: int = 0, written: int = 0, cache_read: int = 0, cache_write: int = 0) -> ModelUsage:
    return ModelUsage(
        requests=1,
        input_tokens=read,
        output_tokens=written,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
    )


def test_each_kind_of_token_has_its_price() -> None:
    assert price(usage(1_000_000), OPUS) == (5_000_000, True)
    assert price(usage(0, 1_000_000), OPUS) == (25_000_000, True)
    assert price(usage(1000, 200, 40_000, 300), OPUS) == (5000 + 5000 + 20_000 + 1875, True)


def test_reasoning_is_paid_once_as_output() -> None:
    thought = ModelUsage(requests=1, output_tokens=100, reasoning_tokens=90)
    assert price(thought, OPUS) == (2500, True)


def test_hour_long_cache_writes_cost_twice_the_input() -> None:
    assert price(usage(cache_write=300), OPUS, cache_write_hour_tokens=200) == (625 + 2000, True)
    assert price(usage(cache_write=100), OPUS, cache_write_hour_tokens=9_999) == (1000, True)


def test_without_a_cache_price_cached_tokens_cost_as_input() -> None:
    assert price(usage(0, 0, 10, 20), Prices(3, 1)) == (90, True)


def test_a_fraction_of_a_micro_dollar_is_rounded_up() -> None:
    assert price(usage(1), Prices(0.1, 0)) == (1, True)
    assert price(usage(10), Prices(0.1, 0)) == (1, True)
    assert price(usage(3), Prices(0.1, 0.3)) == (1, True)


def test_no_price_is_not_the_same_as_free() -> None:
    assert price(usage(1000, 1000), None) == (0, False)
    assert price(usage(1000, 1000, 50, 50), FREE) == (0, True)


def test_a_long_prompt_makes_the_whole_request_dearer() -> None:
    prices = Prices(2, 10, 0.1, 2.5, tiers=(Tier(272_000, 4, 15, 0.2, 5), Tier(500_000, 8, 30)))
    assert price(usage(272_000), prices) == (544_000, True)
    assert price(usage(200_000, 10, 72_001), prices) == (800_000 + 150 + 14_401, True)
    assert price(usage(600_000, 10, 5), prices) == (4_800_000 + 300 + 40, True)


def test_the_worst_case_is_never_below_the_price() -> None:
    for prices in (OPUS, Prices(2, 10, 0.1, 2.5, tiers=(Tier(272_000, 4, 15),)), Prices(1, 4)):
        for tokens in (0, 10, 300_000):
            for share in (0, 3, 10):
                cached = tokens * share // 10
                cost, _ = price(usage(tokens - cached, 500, 0, cached), prices)
                assert worst_case(prices, tokens, 500) >= cost
    assert worst_case(None, 10, 10) == 0


def test_an_estimate_is_on_the_safe_side() -> None:
    assert estimate_tokens(0) == 0
    assert estimate_tokens(1) == 1
    assert estimate_tokens(3000) == 1000


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("claude-opus-4-6", "claude-opus-4-6"),
        ("claude-opus-4-6@20260204", "claude-opus-4-6"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("anthropic/claude-opus-4.6", "claude-opus-4-6"),
        ("us.anthropic.claude-opus-4-6-v1:0", "claude-opus-4-6"),
        ("gpt-5.4-2026-03-05", "gpt-5.4"),
        ("gpt-5.4-mini", "gpt-5.4-mini"),
        ("GPT-5.4", "gpt-5.4"),
        ("models/gemini-3.8-flash", "gemini-3.8-flash"),
        ("gemini-2.5-flash-lite", "gemini-2.5-flash-lite"),
        ("openai/gpt-6-sol", "gpt-6-sol"),
    ],
)
def test_the_longest_known_beginning_of_a_name_counts(asked: str, found: str) -> None:
    facts = facts_for(asked)
    assert facts.known
    assert facts.name == found
    assert facts.prices is not None


@pytest.mark.parametrize("asked", ["gpt-5.9", "claude-opus-5-7", "claude-opus-40", "llama-4", "", "gpt", "gemini-3"])
def test_another_version_is_another_model(asked: str) -> None:
    facts = facts_for(asked)
    assert not facts.known
    assert facts.prices is None
    assert facts.output_tokens > 0


def test_the_facts_file_is_dated_and_every_entry_is_usable() -> None:
    document = json.loads(resources.files("oubliette.core").joinpath("model_facts.json").read_text())
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", document["as_of"])
    assert len(document["models"]) > 50
    for name, entry in document["models"].items():
        facts = facts_for(name)
        assert facts.name == name
        assert facts.tool_call
        assert 1000 <= facts.output_tokens <= facts.context_tokens
        if "cost" in entry:
            prices = prices_from(entry["cost"])
            assert 0 < prices.input < prices.output < 1000
            assert (prices.cache_read or 0) < prices.input
            assert all(tier.input >= prices.input for tier in prices.tiers)


def test_the_script_rebuilds_the_file_from_a_catalogue(tmp_path: Path) -> None:
    entry = {
        "limit": {"context": 1000, "output": 100},
        "modalities": {"input": ["text", "image"], "output": ["text"]},
        "tool_call": True,
        "reasoning": True,
        "cost": {
            "input": 2,
            "output": 4,
            "cache_read": 0.5,
            "tiers": [{"input": 3, "output": 6, "tier": {"type": "context", "size": 500}}],
        },
    }
    embedding = {**entry, "tool_call": False}
    catalogue = {"openai": {"models": {"new": entry, "embedding": embedding}}, "elsewhere": {"models": {"x": entry}}}
    source, target = tmp_path / "api.json", tmp_path / "facts.json"
    source.write_text(json.dumps(catalogue))
    target.write_text(json.dumps({"as_of": "2020-01-01", "models": {"old": {"context": 1}}}))
    arguments = [sys.executable, str(SCRIPT), str(source), "--as-of", "2026-11-23", "--output", str(target)]
    subprocess.run(arguments, check=True, capture_output=True, timeout=30)
    made = json.loads(target.read_text())
    assert made["as_of"] == "2026-11-23"
    assert list(made["models"]) == ["new", "old"]
    assert prices_from(made["models"]["new"]["cost"]) == Prices(2, 4, 0.5, tiers=(Tier(500, 3, 6),))
    subprocess.run([*arguments, "--prune"], check=True, capture_output=True, timeout=30)
    assert list(json.loads(target.read_text())["models"]) == ["new"]
    source.write_text("{}")
    assert subprocess.run(arguments, capture_output=True, timeout=30, check=False).returncode == 1
