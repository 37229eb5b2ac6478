"""Checks the arguments of a call against the tool's JSON schema, in words that the model can act on.

The schemas are those that `transformers.utils.get_json_schema` writes: a closed, small part of JSON Schema
with one word of its own, `nullable`, which the general validators do not know.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list, tuple),
    "object": (dict,),
}
_MAX_SHOWN_CHARS = 80


def unknown_types(schema: Mapping[str, Any]) -> list[str]:
    """Return the types of a schema that no JSON value has (`image`, `audio`).

    Args:
        schema: Schema of one value.
    """
    return [name for part in _parts(schema) for name in _type_names(part) if name not in _PYTHON_TYPES]


def argument_problems(parameters: Mapping[str, Any], arguments: object) -> list[str]:
    """Return what is wrong with the arguments of a call, a sentence each; empty if nothing is.

    Args:
        parameters: Schema of the arguments: `properties` and `required`.
        arguments: What the model wrote.
    """
    properties: Mapping[str, Any] = parameters.get("properties", {})
    if not isinstance(arguments, Mapping):
        return [f"The arguments are {_shown(arguments)}, wanted an object with {_signature(parameters)}."]
    problems = [
        f"Argument `{name}` is missing; wanted {_wanted(properties[name])}."
        for name in parameters.get("required", ())
        if name not in arguments
    ]
    for name, value in arguments.items():
        if name in properties:
            problems += _value_problems(f"Argument `{name}`", properties[name], value)
        else:
            near = difflib.get_close_matches(str(name), properties, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            problems.append(f"There is no argument `{name}`.{hint}")
    return [*problems, f"The arguments are {_signature(parameters)}."] if problems else []


def _value_problems(where: str, schema: Mapping[str, Any], value: object) -> list[str]:
    """Return what is wrong with one value."""
    if value is None and schema.get("nullable"):
        return []
    if "anyOf" in schema:
        if any(not _value_problems(where, option, value) for option in schema["anyOf"]):
            return []
        return [f"{where} is {_shown(value)}, wanted {_wanted(schema)}."]
    names = _type_names(schema)
    is_wrong_type = bool(names) and not any(_has_type(value, name) for name in names)
    if is_wrong_type or ("enum" in schema and not _is_among(value, schema["enum"])):
        return [f"{where} is {_shown(value)}, wanted {_wanted(schema)}."]
    problems: list[str] = []
    if isinstance(value, list | tuple):
        for index, (item_schema, item) in enumerate(zip(_item_schemas(schema, value), value, strict=False)):
            problems += _value_problems(f"{where}[{index}]", item_schema, item)
        if "prefixItems" in schema and len(value) != len(schema["prefixItems"]):
            problems.append(f"{where} has {len(value)} items, wanted {len(schema['prefixItems'])}.")
    if isinstance(value, Mapping) and "additionalProperties" in schema:
        for key, item in value.items():
            problems += _value_problems(f"{where}[{json.dumps(key)}]", schema["additionalProperties"], item)
    return problems


def _item_schemas(schema: Mapping[str, Any], value: Sequence[object]) -> Sequence[Mapping[str, Any]]:
    """Return the schema of each item of an array."""
    if "prefixItems" in schema:
        return list(schema["prefixItems"])
    return [schema.get("items", {})] * len(value)


def _has_type(value: object, name: str) -> bool:
    """Return whether a value has a JSON type; True is no number."""
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _PYTHON_TYPES[name])


def _is_among(value: object, choices: Sequence[object]) -> bool:
    """Return whether a value is one of the choices; 1 is not True."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _type_names(schema: Mapping[str, Any]) -> list[str]:
    """Return the JSON types that a schema allows; empty for any."""
    names = schema.get("type", [])
    return [names] if isinstance(names, str) else list(names)


def _parts(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a schema and all that it contains."""
    yield schema
    inner = [*schema.get("anyOf", ()), *schema.get("prefixItems", ())]
    inner += [schema[key] for key in ("items", "additionalProperties") if key in schema]
    for part in inner:
        yield from _parts(part)


def _wanted(schema: Mapping[str, Any]) -> str:
    """Return in words what a schema allows."""
    if "enum" in schema:
        words = "one of " + ", ".join(json.dumps(choice, ensure_ascii=False) for choice in schema["enum"])
    elif "anyOf" in schema:
        words = " or ".join(_wanted(option) for option in schema["anyOf"])
    else:
        words = " or ".join(_type_names(schema)) or "any value"
        if "items" in schema:
            words += f" of {_wanted(schema['items'])}"
    return f"{words} or null" if schema.get("nullable") else words


def _signature(parameters: Mapping[str, Any]) -> str:
    """Return the arguments of a tool in words."""
    required = parameters.get("required", ())
    shown = [
        f"`{name}` ({_wanted(schema)}{', required' if name in required else ''})"
        for name, schema in parameters.get("properties", {}).items()
    ]
    return ", ".join(shown) or "none"


def _shown(value: object) -> str:
    """Return a value as JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
