"""What all shapes share: the base of their models, how they are dumped, their JSON schema."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

Object = dict[str, Any]


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


def dump(shape: Shape) -> Object:
    """The JSON object of a shape: absent fields left out, aliases (``from``) as clients see them."""
    return shape.model_dump(mode="json", by_alias=True, exclude_none=True)


def output_schema(shape: type[Shape]) -> Object:
    """JSON Schema of a shape with every property optional, ``null`` nowhere, references resolved in place."""
    schema = shape.model_json_schema(by_alias=True, mode="serialization")
    flat: Object = _flat(schema, schema.get("$defs", {}))
    return flat


def _flat(node: Any, definitions: Object) -> Any:
    if isinstance(node, list):
        return [_flat(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _flat(definitions[node["$ref"].rpartition("/")[2]], definitions)
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1:
        return _flat({**{k: v for k, v in node.items() if k not in {"anyOf", "default"}}, **options[0]}, definitions)
    flat: Object = {}
    for key, value in node.items():
        if key in {
            "$defs",
            "required",
            "title",
            "description",
            "default",
            "additionalProperties",
        } and not _is_property_map(node, key):
            continue
        if key == "properties":
            flat[key] = {name: _flat(item, definitions) for name, item in value.items()}
        else:
            flat[key] = _flat(value, definitions)
    return flat


def _is_property_map(node: Object, key: str) -> bool:
    """A free-form map's ``additionalProperties`` says what its values are: kept."""
    return key == "additionalProperties" and isinstance(node[key], dict)
