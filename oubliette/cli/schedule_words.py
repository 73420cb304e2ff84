"""Schedules and runs in a few words, for lines and tables."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def word(schedule: Json) -> str:
    if schedule.get("paused"):
        return f"paused ({schedule['paused'].get('reason')})"
    return "enabled" if schedule.get("enabled", True) else "disabled"


def state(schedule: Json) -> str:
    paused = schedule.get("paused") or {}
    text = f": {paused['text']}" if paused.get("text") else ""
    return word(schedule) + text


def run_word(run: Json) -> str:
    status = str(run.get("status", ""))
    many = f" ×{run['missed_count']}" if run.get("missed_count", 1) > 1 else ""
    return status + many + (f" ({run['reason']})" if run.get("reason") else "")


def said(run: Json) -> str | None:
    error = run.get("error") or {}
    text = str(run.get("output") or error.get("message") or "").strip()
    return text.splitlines()[0][:80] if text else None


def limits(schedule: Json) -> str:
    parts = (
        f"${schedule['max_cost_usd']:g} a run" if "max_cost_usd" in schedule else "",
        f"{schedule['timeout_minutes']:g} min a run" if "timeout_minutes" in schedule else "",
        f"paused after {schedule['pause_after_failures']} failures" if schedule.get("pause_after_failures") else "",
    )
    return ", ".join(part for part in parts if part)
