"""From autonomy, tool lists and protected paths to OpenCode's permission rules. Pure; explained in docs/autonomy.md.

OpenCode keeps a list of rules ``{permission, pattern, action}``; the last one whose permission and pattern both match
decides. A tool whose last matching rule is a deny with the pattern ``*`` vanishes from the model's list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from oubliette.agent.base import AgentSessionSpec
from oubliette.core.caller_tools import server_glob
from oubliette.core.model import Autonomy
from oubliette.errors import RequestError


class Rule(TypedDict):
    permission: str
    pattern: str
    action: str


ACTIONS = ("allow", "ask", "deny")
ALWAYS_DENIED = ("task",)
"""``task`` starts sub-sessions that nobody here would see; ours are spawned through the ``oubliette`` server."""
_PERMISSION_OF = {"write": "edit", "apply_patch": "edit", "patch": "edit", "multiedit": "edit", "list": "read"}
"""Tools that share the permission of another one: OpenCode cannot tell them apart."""
_NOT_TOOLS = ("external_directory", "doom_loop", "invalid")
"""Permissions that are conditions of a call, not tools (``invalid`` answers a call that does not parse)."""
_OURS = "oubliette_*"

_AGENTS_OWN = ("external_directory", "doom_loop", "apply_patch", _OURS)
"""Permissions with an underscore that are no foreign server's."""

_RISKY_COMMANDS = (
    "git push *", "git reset --hard *", "git clean *", "git filter-branch *", "rm -r *", "rm -rf *", "rm -fr *",
    "sudo *", "su *", "npm publish *", "pnpm publish *", "yarn publish *", "cargo publish *", "twine *",
    "gh *", "ssh *", "scp *", "rsync *", "docker *", "kubectl *", "terraform *",
)  # fmt: skip
"""What leaves the sandbox or cannot be taken back."""
_READING_COMMANDS = (
    "ls *", "pwd *", "cat *", "head *", "tail *", "wc *", "grep *", "rg *", "find *", "tree *", "file *", "stat *",
    "which *", "echo *", "true *", "cd *", "diff *", "du *", "date *", "uname *",
    "git status *", "git diff *", "git log *", "git show *", "git branch *", "git blame *", "git ls-files *",
)  # fmt: skip
_GIVEN_DIRECTORIES = ("/state/context/*", "/state/results/*")
"""Outside of the work tree, and the agent is told to read or write there."""
_WRITING_READERS = ("*>*", "find *-delete*", "find *-exec*", "git branch *-D*", "git branch *-d*", "git branch *-m*")
"""Forms of the reading commands that change something."""


def session_rules(spec: AgentSessionSpec) -> list[Rule]:
    """The rules of one agent session, complete: they override everything that OpenCode or its config would say.

    Raises RequestError for project permissions that are not ``{name: action | {pattern: action}}``.
    """
    rules = autonomy_rules(spec.autonomy)
    rules += [_rule(tool, "*", "allow") for tool in spec.caller_tools]  # whoever runs it sees the call
    rules += _own_rules(spec.permissions)
    rules += protected_rules(spec.directory, spec.protected_paths)
    if spec.tools_allowed is not None:
        rules = _restricted(rules, [_permission(name) for name in spec.tools_allowed])
    if spec.mcp_servers is not None:
        rules = _closed(rules, [*_AGENTS_OWN, *map(server_glob, spec.mcp_servers)], spec.caller_tools)
    return rules + hiding_rules(spec.tools_disallowed) + hiding_rules(ALWAYS_DENIED)


def hiding_rules(tools: Iterable[str]) -> list[Rule]:
    """Rules that make these tools (names or globs) vanish from the model's list."""
    return [_rule(permission, "*", "deny") for permission in dict.fromkeys(map(_permission, tools))]


def granting_rules(asked: Mapping[str, Any]) -> list[Rule]:
    """What ``always`` grants: the patterns that OpenCode proposes for that ask (``git push *``)."""
    permission, proposed = asked.get("permission"), asked.get("always") or asked.get("patterns")
    if not isinstance(permission, str) or not isinstance(proposed, list):
        return []
    return _all(permission, [pattern for pattern in proposed if isinstance(pattern, str)], "allow")


def asking_rule(asked: Mapping[str, Any], rules: Sequence[Rule]) -> int:
    """The place of the rule because of which this was asked (the last of them); -1: none of these."""
    permission, patterns = str(asked.get("permission")), asked.get("patterns")
    places = [-1]
    for pattern in patterns if isinstance(patterns, list) else ():
        for place in range(len(rules) - 1, -1, -1):
            if matches(rules[place]["permission"], permission) and matches(rules[place]["pattern"], str(pattern)):
                if rules[place]["action"] == "ask":
                    places.append(place)
                break
    return max(places)


def is_granted(asked: Mapping[str, Any], granted: Sequence[Rule]) -> bool:
    """Whether every pattern of an ask was granted before."""
    permission, patterns = asked.get("permission"), asked.get("patterns")
    if not isinstance(permission, str) or not isinstance(patterns, list) or not patterns:
        return False
    fitting = [rule["pattern"] for rule in granted if rule["permission"] == permission]
    return all(isinstance(one, str) and any(matches(pattern, one) for pattern in fitting) for one in patterns)


def is_hidden(hiding: Rule, rules: Sequence[Rule]) -> bool:
    """Whether a hiding rule is in force already."""
    for rule in reversed(rules):
        if matches(rule["permission"], hiding["permission"]):
            return rule["pattern"] == "*" and rule["action"] == "deny"
    return False


def autonomy_rules(autonomy: Autonomy) -> list[Rule]:
    """What is asked at this level, before any list of tools."""
    if autonomy is Autonomy.OFF:
        return [_rule("*", "*", "allow"), _rule("question", "*", "deny")]
    if autonomy is Autonomy.HIGH:
        return [_rule("*", "*", "allow"), *_all("bash", _RISKY_COMMANDS, "ask")]
    outside = [_rule(name, "*", "ask") for name in ("external_directory", "webfetch", "websearch")]
    outside += _all("external_directory", _GIVEN_DIRECTORIES, "allow")
    reading = [_rule("bash", "*", "ask"), *_all("bash", _READING_COMMANDS, "allow")]
    if autonomy is Autonomy.MEDIUM:
        return [_rule("*", "*", "allow"), *outside, *_doom_loop(), *reading, *_all("bash", _WRITING_READERS[1:], "ask")]
    quiet = ("read", "glob", "grep", "todowrite", "question", "skill", "invalid", _OURS)
    return [
        _rule("*", "*", "ask"),
        *(_rule(name, "*", "allow") for name in quiet),
        *_all("read", ("*.env", "*.env.*"), "ask"),
        _rule("read", "*.env.example", "allow"),
        *outside,
        *_doom_loop(),
        *reading,
        *_all("bash", _WRITING_READERS, "ask"),
    ]


def protected_rules(directory: str, paths: Sequence[str]) -> list[Rule]:
    """No editing tool may touch these. (The wall is the read-only mount; this gives the model a clear refusal.)

    OpenCode matches paths relative to the repository's top, or to ``/`` where there is no repository.
    """
    rules: list[Rule] = []
    for path in paths:
        inside = path.strip("/")
        whole = f"{directory.strip('/')}/{inside}"
        rules += _all("edit", (inside, f"{inside}/*", whole, f"{whole}/*"), "deny")
    return rules


def _own_rules(permissions: Mapping[str, Any]) -> list[Rule]:
    rules: list[Rule] = []
    for name, value in permissions.items():
        patterns = value if isinstance(value, Mapping) else {"*": value}
        for pattern, action in patterns.items():
            if action not in ACTIONS:
                raise RequestError(
                    "invalid_argument",
                    f"The project's permission {name!r} says {action!r}.",
                    hint=f"An action is one of {', '.join(ACTIONS)}.",
                    field="permissions",
                )
            rules.append(_rule(_permission(name), str(pattern), action))
    return rules


def _restricted(rules: Sequence[Rule], allowed: Sequence[str]) -> list[Rule]:
    """``rules`` for the allowed tools alone: everything else is denied."""
    found = [_rule("*", "*", "deny")]
    for rule in rules:
        name = rule["permission"]
        if name == "*":
            found += [_rule(one, rule["pattern"], rule["action"]) for one in (*allowed, *_NOT_TOOLS)]
        elif name in _NOT_TOOLS or any(_covers(one, name) for one in allowed):
            found.append(rule)
    return found


def _closed(rules: Sequence[Rule], known: Sequence[str], own: Sequence[str]) -> list[Rule]:
    """``rules`` that allow of all tools with an underscore in their names, as those of MCP servers have, only ``known``
    ones and the session's ``own``: servers of others may be added to the process at any time."""
    found: list[Rule] = []
    for rule in rules:
        name, whole = rule["permission"], rule["pattern"] == "*"
        if rule["action"] == "deny":
            found.append(rule)
            continue
        if "_" not in name:
            found.append(rule)
            foreign = _with_underscore(name) if whole else []
            if not foreign:
                continue
            found += [_rule(one, "*", "deny") for one in foreign]
        narrowed = dict.fromkeys(one for server in (*known, *own) for one in _within(name, server))
        found += [_rule(one, rule["pattern"], rule["action"]) for one in narrowed]
    return found


def _with_underscore(glob: str) -> list[str]:
    """Globs for those of its names that have an underscore, though it has none itself."""
    places = [(at, one) for at, one in enumerate(glob) if one in "*?"]
    return [f"{glob[:at]}{'*_*' if one == '*' else '_'}{glob[at + 1 :]}" for at, one in places]


def _within(glob: str, known: str) -> list[str]:
    """Globs for what ``glob`` and ``known`` (a name, or the beginning of names and ``*``) both match."""
    start = known.removesuffix("*")
    if start == known:
        return [known] if matches(glob, known) else []
    left = [glob]
    for character in start:
        left = [rest for one in left for rest in _after(one, character)]
    return [start + rest for rest in dict.fromkeys(left)]


def _after(glob: str, character: str) -> list[str]:
    """Globs for what may follow that character in a name that ``glob`` matches."""
    if glob.startswith("*"):
        return [glob, *_after(glob.lstrip("*"), character)]
    return [glob[1:]] if glob and glob[0] in ("?", character) else []


def _covers(glob: str, name: str) -> bool:
    """Whether the tool glob matches that permission, itself perhaps a glob."""
    return matches(glob, name) or matches(name, glob)


def names_tool(glob: str, tool: str) -> bool:
    """Whether an entry of a tool list means that tool, by its own name or by one that shares its permission."""
    return matches(_permission(glob), _permission(tool))


def is_covered(tool: str, allowed: Iterable[str]) -> bool:
    """Whether all that ``tool`` means (a name, or a glob of them) is among what ``allowed`` means."""
    wanted = _permission(tool)
    for one in map(_permission, allowed):
        start = one.removesuffix("*")
        exact = "*" not in wanted and "?" not in wanted
        whole = one.endswith("*") and not {"*", "?"} & set(start) and wanted.startswith(start)
        if one == wanted or whole or (exact and matches(one, wanted)):
            return True
    return False


def matches(glob: str, text: str) -> bool:
    """OpenCode's wildcards: ``*`` is anything, ``?`` one character, a final `` *`` may be absent."""
    pattern = re.escape(glob).replace(r"\*", ".*").replace(r"\?", ".")
    if pattern.endswith(r"\ .*"):
        pattern = pattern.removesuffix(r"\ .*") + r"(\ .*)?"
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def _permission(tool: str) -> str:
    return _PERMISSION_OF.get(tool, tool)


def _doom_loop() -> list[Rule]:
    """The same call three times in a row; waiting for children is just that, and fine."""
    return [_rule("doom_loop", "*", "ask"), _rule("doom_loop", _OURS, "allow")]


def _all(permission: str, patterns: Iterable[str], action: str) -> list[Rule]:
    return [_rule(permission, pattern, action) for pattern in patterns]


def _rule(permission: str, pattern: str, action: str) -> Rule:
    return {"permission": permission, "pattern": pattern, "action": action}
