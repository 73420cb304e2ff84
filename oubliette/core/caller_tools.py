"""Tools that a caller declares for its session: what a declaration may say, and what several of them make. Pure.

The agent sees ``<caller_id>_<name>``. Its servers are of a whole workspace, so sessions that share one share the list
of a caller's id too: ``merged`` is what all of them declare under it, and who may call what is decided elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from oubliette.core import limits
from oubliette.core.caller_schemas import fault
from oubliette.core.model import Json
from oubliette.errors import Limit, RequestError

CALLER_ID: Final = re.compile(r"[a-z][a-z0-9-]{0,23}")
STAMP: Final = "_session"
"""The argument in which the agent's plugin says whose call it is; no tool may have one of that name."""
RESERVED: Final = frozenset({"oubliette"})
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_PROPERTY: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_AGENTS_OWN: Final = frozenset(
    {
        *("apply_patch", "external_directory", "doom_loop", "plan_enter", "plan_exit"),
        *("list_mcp_resources", "list_mcp_resource_templates", "read_mcp_resource"),  # hidden by the permission read
    }
)
"""Tools and permissions of the agent itself that a caller's tool could be taken for."""
_COMPOSED: Final = ("oneOf", "anyOf", "allOf", "not", "enum", "$ref")
"""Model providers refuse these at the root of a tool's schema."""
_SPELLINGS: Final = {"inputSchema": "input_schema"}


@dataclass(frozen=True, slots=True)
class CallerTools:
    """A declaration: one caller's whole list. Tools are ``{name, description, input_schema}``; none of them: the caller
    takes its tools back."""

    caller_id: str
    tools: Sequence[Json]


def full_name(caller_id: str, name: str) -> str:
    """What the model calls the tool."""
    return f"{caller_id}_{name}"


def server_glob(server: str) -> str:
    """Matches the names of all tools of an MCP server of the project, as OpenCode spells them."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", server) + "_*"


# --- what may be declared


def declaration(caller_id: str, tools: Sequence[Mapping[str, Any]]) -> CallerTools:
    """Check a declaration. Raises RequestError naming what is wrong with it."""
    if not CALLER_ID.fullmatch(caller_id):
        raise _wrong(
            "caller_id", "must be a small letter, then at most 23 small letters, digits or hyphens, for example ide"
        )
    if caller_id in RESERVED:
        raise _wrong("caller_id", f"may not be {caller_id}: the agent's own tools are called so")
    if len(tools) > limits.MAX_CALLER_TOOLS:
        raise RequestError(
            "limit_reached",
            f"caller_tools holds {len(tools)} tools; a caller may declare {limits.MAX_CALLER_TOOLS}.",
            field="caller_tools",
            limit=Limit("caller_tools", limits.MAX_CALLER_TOOLS, len(tools)),
        )
    checked = [_tool(caller_id, number, given) for number, given in enumerate(tools, start=1)]
    names = [str(tool["name"]) for tool in checked]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _wrong("caller_tools", f"has two tools named {twice}")
    if _bytes(checked) > limits.MAX_CALLER_TOOLS_BYTES:
        raise _wrong("caller_tools", f"is larger than {limits.MAX_CALLER_TOOLS_BYTES // 1024} KiB of JSON", "too_large")
    return CallerTools(caller_id, checked)


def check_clash(caller_id: str, servers: Iterable[str]) -> None:
    """Raises RequestError when an MCP server of the project has tools that this caller's could be taken for."""
    server = clashing(caller_id, servers)
    if server is not None:
        raise RequestError(
            "conflict",
            f"caller_id {caller_id} is taken: the project has an MCP server {server[:64]!r}.",
            hint="Choose another caller_id.",
            field="caller_id",
        )


def clashing(caller_id: str, servers: Iterable[str]) -> str | None:
    """The MCP server of the project whose tools this caller's could be taken for."""
    return next((one for one in servers if server_glob(one).startswith(f"{caller_id}_")), None)


def _tool(caller_id: str, number: int, given: Mapping[str, Any]) -> Json:
    said = {_SPELLINGS.get(key, key): value for key, value in given.items() if value is not None}
    name = said.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _wrong("caller_tools", f"tool {number} needs a name of letters, digits, hyphens and underscores")
    whole = full_name(caller_id, name)
    if len(whole) > limits.MAX_AGENT_TOOL_NAME_CHARACTERS:
        longest = limits.MAX_AGENT_TOOL_NAME_CHARACTERS
        raise _wrong("caller_tools", f"the agent would see {whole[:80]}, which is longer than {longest} characters")
    if whole in _AGENTS_OWN:
        raise _wrong("caller_tools", f"the agent would see {whole}, which is a name of its own; choose another")
    unknown = next((key for key in said if key not in ("name", "description", "input_schema")), None)
    if unknown is not None:
        raise _wrong("caller_tools", f"{name} has {unknown[:64]!r}; a tool has name, description and input_schema")
    description = said.get("description", "")
    if not isinstance(description, str):
        raise _wrong("caller_tools", f"the description of {name} must be a string")
    if len(description.encode()) > limits.MAX_DESCRIPTION_BYTES:
        most = limits.MAX_DESCRIPTION_BYTES // 1024
        raise _wrong("caller_tools", f"the description of {name} is longer than {most} KiB", "too_large")
    return {"name": name, "description": description, "input_schema": _schema(name, said.get("input_schema", {}))}


def _schema(name: str, given: Any) -> Json:
    if not isinstance(given, dict):
        raise _wrong("caller_tools", f"the input_schema of {name} must be a JSON Schema object")
    schema: Json = {"type": "object", **given}
    if schema["type"] != "object":
        raise _wrong("caller_tools", f"the input_schema of {name} must have type object at its root")
    composed = next((key for key in _COMPOSED if key in schema), None)
    if composed is not None:
        raise _wrong("caller_tools", f"the input_schema of {name} has {composed} at its root, which models do not take")
    properties = schema.setdefault("properties", {})
    if not isinstance(properties, dict) or not all(isinstance(one, dict | bool) for one in properties.values()):
        raise _wrong("caller_tools", f"the properties of {name} must be an object of schemas")
    for key in properties:
        if key == STAMP or not _PROPERTY.fullmatch(key):
            raise _wrong("caller_tools", f"{name} may not have a property named {key[:64]!r}")
    wrong = fault(schema)
    if wrong is not None:
        raise _wrong("caller_tools", f"the input_schema of {name} is no JSON Schema: {wrong}")
    if _bytes(schema) > limits.MAX_CALLER_SCHEMA_BYTES:
        most = limits.MAX_CALLER_SCHEMA_BYTES // 1024
        raise _wrong("caller_tools", f"the input_schema of {name} is larger than {most} KiB of JSON", "too_large")
    return schema


# --- what an agent's call may say


def check_arguments(whole: str, schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """The names of a call's arguments against its session's own declaration: the schema that the model was shown may
    be that of several sessions. What is in the arguments is the caller's to check. Raises RequestError."""
    missing = next((one for one in schema.get("required", ()) if one not in arguments), None)
    if missing is not None:
        raise RequestError("invalid_argument", f"{whole} needs {missing[:64]}.", field=missing[:64])
    known = schema.get("properties", {})
    if schema.get("additionalProperties") is False and "patternProperties" not in schema:
        strange = next((one for one in arguments if one not in known), None)
        if strange is not None:
            hint = f"It takes {', '.join(known)}." if known else "It takes none."
            raise RequestError("invalid_argument", f"{whole} has no argument {strange[:64]!r}.", hint=hint)
    if _bytes(arguments) > limits.MAX_CALLER_ARGUMENTS_BYTES:
        most = limits.MAX_CALLER_ARGUMENTS_BYTES // 1024
        raise RequestError("too_large", f"The arguments of {whole} are larger than {most} KiB of JSON.")


# --- what several declarations are together


def merged(declared: Iterable[Sequence[Json]]) -> list[Json]:
    """Every tool that any of these lists has, once. What differs between them is left open: then the description says
    what each of them says, and the schema takes what any of them takes."""
    by_name: dict[str, list[Json]] = {}
    for tools in declared:
        for tool in tools:
            known = by_name.setdefault(tool["name"], [])
            if tool not in known:
                known.append(tool)
    return [same[0] if len(same) == 1 else _either(same) for same in by_name.values()]


def _either(tools: Sequence[Json]) -> Json:
    schemas = [tool["input_schema"] for tool in tools]
    names = dict.fromkeys(name for schema in schemas for name in schema["properties"])
    required = [one for one in schemas[0].get("required", ()) if all(one in s.get("required", ()) for s in schemas)]
    return {
        "name": tools[0]["name"],
        "description": "\n\n".join(dict.fromkeys(tool["description"] for tool in tools if tool["description"])),
        "input_schema": {
            "type": "object",
            "properties": {name: _common(name, schemas) for name in names},
            **({"required": required} if required else {}),
        },
    }


def _common(name: str, schemas: Sequence[Json]) -> Any:
    """The property as all that have it say it; anything at all where they differ or lean on definitions elsewhere."""
    found = [schema["properties"][name] for schema in schemas if name in schema["properties"]]
    return found[0] if all(one == found[0] for one in found) and '"$ref"' not in json.dumps(found[0]) else {}


def _bytes(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"))


def _wrong(field: str, reason: str, code: str = "invalid_argument") -> RequestError:
    return RequestError(code, f"{field}: {reason}.", field=field)
