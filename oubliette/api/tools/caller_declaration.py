"""The two arguments with which a client offers tools of its own to the agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oubliette.api.tools.fields import invalid
from oubliette.core.caller_tools import CallerTools, declaration


def of(caller_id: str | None, tools: Sequence[Mapping[str, Any]] | None) -> CallerTools | None:
    """None: nothing changes. Raises RequestError."""
    if caller_id is None:
        if tools is not None:
            raise invalid("caller_id", "is needed with caller_tools", hint="It is the prefix of their names: ide.")
        return None
    checked = declaration(caller_id, tools or ())
    return checked if tools is not None else None
