"""The permission rules of each agent session, as OpenCode keeps them, and how they are changed while it lives."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

from oubliette.agent.opencode_parts import list_at, text_at
from oubliette.agent.permissions import Rule, asking_rule, granting_rules, hiding_rules, is_hidden


class Call(Protocol):
    def __call__(self, method: str, path: str, directory: str, body: Any = None) -> Awaitable[Any]: ...


class SessionRules:
    """OpenCode only ever appends to a session's rules, and the last match counts: complete rules override all earlier
    ones. Not by a prompt's ``tools``: OpenCode would replace all rules of the session by those. A change takes effect
    with the next turn."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._known: dict[str, list[Rule]] = {}

    def made(self, session_id: str, rules: list[Rule]) -> None:
        """A session was created with these."""
        self._known[session_id] = rules

    def gone(self, session_id: str) -> None:
        self._known.pop(session_id, None)

    async def replace(self, session_id: str, directory: str, rules: list[Rule]) -> None:
        """These and no others. When they are the same as before, what was granted meanwhile stays granted."""
        known = await self._get(session_id, directory)
        if known == rules:
            return
        if known[-len(rules) :] != rules:
            await self._append(session_id, directory, rules)
        self._known[session_id] = rules

    async def hide(self, session_id: str, directory: str, tools: Sequence[str]) -> None:
        """Hide these too."""
        if tools:
            known = await self._get(session_id, directory)
            missing = [rule for rule in hiding_rules(tools) if not is_hidden(rule, known)]
            if missing:
                await self._append(session_id, directory, missing)
                self._known[session_id] = known + missing

    async def grant(self, session_id: str, directory: str, asked: Mapping[str, Any]) -> None:
        """Allow what that ask proposes for the rest of the session. Rules that are stronger than the one that asked
        (denied patterns, protected paths) stay so."""
        known = await self._get(session_id, directory)
        await self._append(session_id, directory, granting_rules(asked) + known[asking_rule(asked, known) + 1 :])

    async def _append(self, session_id: str, directory: str, rules: list[Rule]) -> None:
        await self._call("PATCH", f"/session/{session_id}", directory, {"permission": rules})

    async def _get(self, session_id: str, directory: str) -> list[Rule]:
        known = self._known.get(session_id)
        if known is None:
            session = await self._call("GET", f"/session/{session_id}", directory)
            known = [
                {
                    "permission": text_at(rule, "permission"),
                    "pattern": text_at(rule, "pattern"),
                    "action": text_at(rule, "action"),
                }
                for rule in list_at(session, "permission")
            ]
            self._known[session_id] = known
        return known
