"""Results of the ``schedule`` tool in words. See ``prose``."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from oubliette.api.tools.prose import error_words, fact, lines, untrusted, usage_words
from oubliette.core.model import Json
from oubliette.safe_text import safe_line

PROMPT = "--- the prompt ---"
_PROMPT_CHARACTERS = 2_000


def moment(at: str | None, timezone: str | None) -> str | None:
    """``2026-11-23 03:00 Europe/Berlin (2026-11-23T02:00:00.000Z)``."""
    if at is None:
        return None
    if timezone in (None, "UTC"):
        return at
    try:
        local = datetime.fromisoformat(at).astimezone(ZoneInfo(str(timezone)))
    except (ValueError, KeyError, OSError):
        return at
    return f"{local:%Y-%m-%d %H:%M} {timezone} ({at})"


def created(data: Json) -> str:
    return lines(f"Schedule created: {data['schedule_id']}", _facts(data), _prompt(data))


def schedule(data: Json) -> str:
    return lines(f"Schedule: {data['schedule_id']}", _facts(data), _prompt(data))


def _facts(data: Json) -> str:
    zone = data.get("timezone")
    following = [moment(at, zone) for at in data.get("next_runs", ())]
    return lines(
        fact("Name", data.get("name")),
        fact("When", " ".join(str(data[name]) for name in ("cron_expr", "timezone") if name in data)),
        fact("In words", data.get("cron_text")),
        f"Status: {status_words(data)}",
        fact("Notice", (data.get("notice") or {}).get("text")),
        fact("Next runs", ", ".join(str(at) for at in following))
        or fact("Next run", moment(data.get("next_run_at"), zone)),
        fact("Last run", moment(data.get("last_run_at"), zone)),
        fact("Failures in a row", data.get("consecutive_failures") or None),
        fact("Sessions", data.get("session_behavior")),
        fact("Overlap", data.get("overlap_behavior")),
        fact("Missed runs", data.get("misfire")),
        fact("Model", data.get("model")),
        fact("Cost limit of a run", f"${data['max_cost_usd']}" if "max_cost_usd" in data else None),
        *(target_words(one) for one in data.get("targets", ())),
        "Deduplicated: yes, this is the first call's result" if data.get("deduplicated") else None,
    )


def _prompt(data: Json) -> str | None:
    text = data.get("message")
    if not text:
        return None
    more = "" if len(text) <= _PROMPT_CHARACTERS else f"\n[cut: {len(text):,} characters]"
    return f"{PROMPT}\n{text[:_PROMPT_CHARACTERS]}{more}"


def status_words(data: Json) -> str:
    paused = data.get("paused")
    if paused:
        why = paused.get("text") or paused.get("reason") or ""
        return f"paused since {paused.get('since')}: {safe_line(str(why), 300)}"
    return "enabled" if data.get("enabled", True) else "disabled"


def target_words(target: Json) -> str:
    last = target.get("last_run") or {}
    parts = [
        f"Target: project {target.get('project_id')}",
        f"workspace {target['workspace_id']}" if target.get("workspace_id") else "",
        f"session {target['session_id']}" if target.get("session_id") else "",
        f"last run {last.get('run_id')} {run_status(last)}" if last else "",
    ]
    return "  ".join(part for part in parts if part)


def run_status(run: Json) -> str:
    status = str(run.get("status", "unknown"))
    if run.get("missed_count", 0) > 1:
        status += f" ×{run['missed_count']}"
    return status + (f" ({run['reason']})" if run.get("reason") else "")


def schedules(data: Json) -> str:
    rows = []
    for one in data["schedules"]:
        targets = len(one.get("targets", ()))
        parts = [
            str(one["schedule_id"]),
            status_words(one),
            f"{one.get('cron_expr')} {one.get('timezone', '')}".strip(),
            f"next {one['next_run_at']}" if one.get("next_run_at") else "",
            f"{targets} target{'s' if targets != 1 else ''}",
            safe_line(str(one.get("name", "")), 80),
        ]
        rows.append("  ".join(part for part in parts if part))
    return lines(f"Schedules: {len(rows)}", *rows, fact("Next cursor", data.get("next_cursor")))


def deleted(data: Json) -> str:
    return lines(
        f"Schedule deleted: {data['schedule_id']}",
        "Its history is gone; its sessions stay, and a run that was going on goes on.",
        "Deduplicated: yes, this is the first call's result" if data.get("deduplicated") else None,
    )


def triggered(data: Json) -> str:
    return lines(
        f"Runs: {', '.join(data.get('run_ids', ())) or 'none'}",
        fact("Schedule", data.get("schedule_id")),
        *(_run_line(run) for run in data.get("runs", ())),
        f'Next: schedule history schedule_id="{data.get("schedule_id")}"',
        "Deduplicated: yes, this is the first call's result" if data.get("deduplicated") else None,
    )


def runs(data: Json) -> str:
    said = [f"{run['run_id']}: {run['output']}" for run in data["runs"] if run.get("output")]
    return lines(
        f"Runs: {len(data['runs'])}",
        *(_run_line(run) for run in data["runs"]),
        fact("Next cursor", data.get("next_cursor")),
        untrusted(*said),
    )


def _run_line(run: Json) -> str:
    parts = [
        str(run["run_id"]),
        run_status(run),
        str(run.get("trigger", "")),
        f"planned {run['planned_at']}" if run.get("planned_at") else "",
        f"{run.get('session', '')} session {run['session_id']}".strip() if run.get("session_id") else "",
        f"turn {run['turn']}" if run.get("turn") else "",
        usage_words(run.get("usage")) or "",
        error_words(run.get("error")) or "",
    ]
    return "  ".join(part for part in parts if part)


def preview(data: Json) -> str:
    times = zip(data.get("next_runs", ()), data.get("next_runs_local", ()), strict=False)
    return lines(
        fact("When", f"{data['cron_expr']} {data.get('timezone', '')}"),
        fact("In words", data.get("cron_text")),
        *(f"{local} ({utc})" if local != utc else utc for utc, local in times),
    )
