"""Declarations of several sessions as one list."""

from __future__ import annotations

from typing import Any

import pytest

from oubliette.core.caller_tools import check_clash, declaration, merged
from oubliette.core.model import Json
from oubliette.errors import RequestError


def tool(name: str, about: str = "d", **schema: Any) -> Json:
    return {"name": name, "description": about, "input_schema": {"type": "object", "properties": {}, **schema}}


def test_what_all_declare_alike_is_there_once_and_as_it_is() -> None:
    same = tool("a", properties={"x": {"$ref": "#/$defs/X"}}, required=["x"])
    same["input_schema"]["$defs"] = {"X": {"type": "string"}}
    assert merged([[same, tool("b")], [same], [tool("c")]]) == [same, tool("b"), tool("c")]


def test_what_differs_is_left_open_and_described_by_all() -> None:
    text, number = {"type": "string"}, {"type": "number"}
    newer = tool("a", "newer", properties={"x": text, "y": text, "z": {"$ref": "#/$defs/Z"}}, required=["x", "y"])
    older = tool("a", "older", properties={"x": text, "y": number, "w": text}, required=["x", "w"])
    [both] = merged([[newer], [older]])
    assert both["description"] == "newer\n\nolder"
    assert both["input_schema"] == {
        "type": "object",
        "properties": {"x": text, "y": {}, "z": {}, "w": text},
        "required": ["x"],
    }
    [three] = merged([[newer], [older], [tool("a", "newer")]])
    assert three["description"] == "newer\n\nolder"
    assert "required" not in three["input_schema"]


def test_the_longest_name_that_models_take_is_taken() -> None:
    [longest] = declaration("i", [{"name": "x" * 62}]).tools
    assert longest["input_schema"] == {"type": "object", "properties": {}}
    with pytest.raises(RequestError):
        declaration("i", [{"name": "x" * 63}])


@pytest.mark.parametrize(
    ("server", "taken"), [("ide", True), ("ide.x", True), ("ide_x", True), ("ide-x", False), ("id", False)]
)
def test_a_caller_is_not_called_like_a_server_of_the_project(server: str, taken: bool) -> None:
    if taken:
        with pytest.raises(RequestError, match="caller_id ide is taken"):
            check_clash("ide", [server])
    else:
        check_clash("ide", [server])


@pytest.mark.parametrize("whole", ["list_mcp_resources", "list_mcp_resource_templates", "read_mcp_resource"])
def test_no_tool_is_called_like_one_of_the_agents_own(whole: str) -> None:
    caller_id, _, name = whole.partition("_")
    with pytest.raises(RequestError, match="a name of its own"):
        declaration(caller_id, [{"name": name}])


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ({"type": "object", "properties": "abc", "required": ["a"]}, r"properties\.x\.properties must be an object"),
        ({"type": "text"}, r"properties\.x\.type must be one of"),
        ({"type": []}, r"properties\.x\.type must be one of"),
        ({"enum": 5}, r"properties\.x\.enum must be a list"),
        ({"anyOf": {}}, r"properties\.x\.anyOf must be a list"),
        ({"items": ["a"]}, r"properties\.x\.items must be a schema"),
        ({"type": "array", "items": {"properties": {"y": {"required": [1]}}}}, r"items\.properties\.y\.required must"),
        ({"additionalProperties": {"minimum": "0"}}, r"additionalProperties\.minimum must be a number"),
        ({"description": 7}, r"properties\.x\.description must be a string"),
    ],
)
def test_a_schema_that_programs_stumble_over_is_refused_however_deep_it_lies(inner: Json, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        declaration("ide", [{"name": "t", "input_schema": {"properties": {"x": inner}}}])


def test_schemas_as_people_write_them_are_taken() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Args",
        "properties": {
            "kind": {"enum": ["a", None], "default": None, "x-order": 1},
            "size": {"type": ["integer", "null"], "minimum": 0, "exclusiveMaximum": True},
            "pair": {"type": "array", "items": [{"type": "string"}, True], "minItems": 2},
            "tree": {"$ref": "#/$defs/Tree"},
            "either": {
                "anyOf": [{"type": "string", "format": "uri"}, {"type": "object", "additionalProperties": False}]
            },
        },
        "$defs": {"Tree": {"type": "object", "properties": {"below": {"$ref": "#/$defs/Tree"}}}},
        "additionalProperties": False,
    }
    [taken] = declaration("ide", [{"name": "t", "input_schema": schema}]).tools
    assert taken["input_schema"] == {"type": "object", **schema}
