from __future__ import annotations

import json
from typing import Any

import pytest

from oubliette.core import place_shapes, shapes
from oubliette.core.shape import Shape, dump, output_schema

ALL = sorted(
    {
        one
        for module in (shapes, place_shapes)
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Shape) and one is not Shape
    },
    key=lambda one: one.__name__,
)


def walk(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, list):
        return [found for item in node for found in walk(item)]
    if not isinstance(node, dict):
        return []
    return [node, *(found for item in node.values() for found in walk(item))]


@pytest.mark.parametrize("shape", ALL, ids=lambda shape: shape.__name__)
def test_an_output_schema_is_flat_optional_and_without_null(shape: type[Shape]) -> None:
    schema = output_schema(shape)
    assert schema["type"] == "object"
    assert set(schema["properties"]) == {field.alias or name for name, field in shape.model_fields.items()}
    for node in walk({key: value for key, value in schema.items() if key != "properties"} | schema["properties"]):
        assert not {"$ref", "anyOf", "oneOf", "allOf", "required", "$defs"} & set(node)
    assert '"null"' not in json.dumps(schema)


def test_absent_fields_are_left_out_and_aliases_are_what_clients_see() -> None:
    turn = shapes.Turn.model_validate({"turn": 3, "from_": shapes.Actor(kind="token", id="tok_1")})
    assert dump(turn) == {"turn": 3, "from": {"kind": "token", "id": "tok_1"}}
    assert shapes.Turn.model_validate({"turn": 3, "from": {"kind": "token"}}).from_ is not None


def test_an_unknown_field_of_ours_is_a_bug() -> None:
    with pytest.raises(ValueError, match="extra"):
        shapes.Session.model_validate({"session_id": "s", "nonsense": 1})


def test_the_examples_of_the_documentation_fit() -> None:
    shapes.Event.model_validate(
        {
            "session_id": "gogol_1", "index": 17, "seq": 203, "ts": "2026-11-22T08:15:40.002Z", "turn": 3,
            "type": "tool_result", "part": "prt_9", "role": "assistant", "text": "…", "text_truncated": True,
            "text_bytes": 262144,
            "tool": {"id": "call_7", "name": "bash", "title": "run tests", "status": "completed",
                     "input": {"command": "pytest -q"}, "output": "…", "output_truncated": True, "output_bytes": 81234,
                     "duration_ms": 5120},
            "status": {"from": "running", "to": "paused", "reason": "budget"}, "code": "container_lost", "data": {},
            "child": {"session_id": "gogol_2", "title": "…", "outcome": "completed"}, "files": [], "usage": {},
            "outcome": "completed", "error": {},
        }
    )  # fmt: skip
    place_shapes.Container.model_validate(
        {
            "container_id": "3f2a", "project_id": "7b1c", "workspace_id": "91aa", "runtime": "bubblewrap", "image": "…",
            "state": "ready", "since": "…", "progress": {"what": "pulling", "done": 1, "total": 2, "unit": "bytes"},
            "agent": {"version": "1.18.33", "state": "ready", "restarts": 0},
            "relay": {"version": "1", "connected": True}, "network": "none",
            "limits": {"memory_bytes": 1, "cpus": 4, "pids": 1, "disk_bytes": 1, "enforced": ["memory"]},
            "error": {},
        }
    )  # fmt: skip
    place_shapes.Project.model_validate(
        {
            "project_id": "7b1c", "credentials": {"provider": "anthropic", "github": "x", "github_token_set": True},
            "mcp_servers": {"docs": {"type": "remote", "headers": {"Authorization": "***"}}},
            "counts": {"workspaces": 2, "sessions": 40, "open": 3, "schedules": 1}, "containers": [],
        }
    )  # fmt: skip
