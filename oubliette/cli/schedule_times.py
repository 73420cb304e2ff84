"""Moments as people read them: in the schedule's own zone, and in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo


def both(at: str | None, timezone: str | None) -> str:
    """``Mon 2026-11-23 03:00 Europe/Berlin (02:00 UTC)``; a schedule in UTC is shown in this machine's time as well."""
    if not at:
        return ""
    utc = datetime.fromisoformat(at).astimezone(UTC)
    zone = _zone(timezone)
    if zone is None:
        here = utc.astimezone()
        if here.utcoffset() == utc.utcoffset():
            return f"{utc:%a %Y-%m-%d %H:%M} UTC"
        return f"{utc:%a %Y-%m-%d %H:%M} UTC ({_other(here, utc)} here)"
    local = utc.astimezone(zone)
    return f"{local:%a %Y-%m-%d %H:%M} {timezone} ({_other(utc, local)} UTC)"


def short(at: str | None, timezone: str | None) -> str:
    """``2026-11-23 03:00 (02:00Z)``, for tables."""
    if not at:
        return ""
    utc = datetime.fromisoformat(at).astimezone(UTC)
    zone = _zone(timezone)
    if zone is None:
        return f"{utc:%Y-%m-%d %H:%M}Z"
    local = utc.astimezone(zone)
    return f"{local:%Y-%m-%d %H:%M} ({_other(utc, local)}Z)"


def _other(moment: datetime, shown: datetime) -> str:
    """The time of day, with its date where that differs from what is shown beside it."""
    return f"{moment:%H:%M}" if moment.date() == shown.date() else f"{moment:%Y-%m-%d %H:%M}"


def _zone(timezone: str | None) -> tzinfo | None:
    """None for UTC, and for a zone that this machine does not know."""
    if timezone in (None, "UTC"):
        return None
    try:
        return ZoneInfo(str(timezone))
    except (ValueError, KeyError, OSError):
        return None
