"""Glob patterns matched name by name while a tree is walked: no backtracking, and directories that cannot match are
never entered. ``**`` stands for any number of directories; ``*`` and ``?`` never cross a slash."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from functools import lru_cache

from oubliette.errors import RequestError

MAX_PATTERN = 1000
MAX_PARTS = 50


class Glob:
    """A compiled pattern. ``states`` are how many of its parts a path has used up, each way it could have."""

    def __init__(self, pattern: str) -> None:
        """Raises RequestError invalid_argument."""
        parts = [part for part in pattern.removeprefix("./").split("/") if part != "."]
        if len(pattern) > MAX_PATTERN or len(parts) > MAX_PARTS or "" in parts or ".." in parts or "\0" in pattern:
            raise RequestError(
                "invalid_argument",
                "This is not a pattern for paths in the workspace.",
                field="glob",
                hint='Relative, for example "src/**/*.py".',
            )
        self._parts = parts
        self._names = [re.compile(fnmatch.translate(part), re.DOTALL) for part in parts]
        self.hides_git = not any(part == ".git" for part in parts)
        """Whether ``.git`` directories stay out, because the pattern does not ask for them."""
        self._after = lru_cache(maxsize=256)(self._states_after)

    def matches(self, path: Sequence[str], name: str) -> bool:
        """Whether ``path``/``name`` matches as a whole."""
        return len(self._parts) in self._step(self._after(tuple(path)), name)

    def may_match_below(self, path: Sequence[str], name: str) -> bool:
        """Whether anything in the directory ``path``/``name`` could match."""
        if name == ".git" and self.hides_git:
            return False
        states = self._step(self._after(tuple(path)), name)
        return any(state < len(self._parts) for state in states)

    def _states_after(self, path: tuple[str, ...]) -> frozenset[int]:
        states = self._closed({0})
        for name in path:
            states = self._step(states, name)
        return states

    def _step(self, states: frozenset[int], name: str) -> frozenset[int]:
        following: set[int] = set()
        for state in states:
            if state == len(self._parts):
                continue
            if self._parts[state] == "**":
                following.add(state)
                if state == len(self._parts) - 1:
                    following.add(state + 1)
            elif self._names[state].match(name):
                following.add(state + 1)
        return self._closed(following)

    def _closed(self, states: set[int]) -> frozenset[int]:
        """``**`` may also stand for no directory at all (but a last one stands for at least one name)."""
        todo = list(states)
        while todo:
            state = todo.pop()
            if state < len(self._parts) - 1 and self._parts[state] == "**" and state + 1 not in states:
                states.add(state + 1)
                todo.append(state + 1)
        return frozenset(states)
