"""The API's description as a page for people: plain HTML of the OpenAPI document, without scripts or outside assets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

STYLESHEET = Path(__file__).resolve().parent / "reference.css"
_TEMPLATE = Path(__file__).resolve().parent / "reference.html.j2"


def reference(document: dict[str, Any]) -> str:
    """The page of an OpenAPI 3.1 document."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    schemas = document["components"]["schemas"]
    operations = [
        {
            "method": method.upper(),
            "path": path,
            "anchor": f"{method}{path.replace('/', '-').replace('{', '').replace('}', '')}",
            "text": operation.get("description") or operation.get("summary", ""),
            "locked": bool(operation.get("security")),
            "parameters": [_parameter(each) for each in operation.get("parameters", [])],
            "fields": _fields(schemas, operation["requestBody"]) if "requestBody" in operation else [],
            "answers": [_answer(status, answer) for status, answer in sorted(operation["responses"].items())],
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    shown = [
        {"name": name, "text": schema.get("description", ""), "fields": _rows(schema)}
        for name, schema in sorted(schemas.items())
        if "properties" in schema
    ]
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(info=document["info"], operations=operations, schemas=shown)


def _parameter(parameter: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": parameter["name"],
        "type": _type(parameter["schema"]) + ("" if parameter.get("required") else f", in the {parameter['in']}"),
        "text": parameter.get("description", ""),
    }


def _fields(schemas: dict[str, Any], body: dict[str, Any]) -> list[dict[str, Any]]:
    schema = body["content"]["application/json"]["schema"]
    return _rows(schemas[schema["$ref"].rpartition("/")[2]])


def _rows(schema: dict[str, Any]) -> list[dict[str, Any]]:
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "type": _type(value),
            "required": name in required,
            "default": value.get("default"),
            "text": value.get("description", ""),
        }
        for name, value in schema["properties"].items()
    ]


def _answer(status: str, answer: dict[str, Any]) -> dict[str, Any]:
    kinds = ", ".join(answer.get("content", {}))
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    return {"status": status, "text": answer.get("description", ""), "kinds": kinds, "schema": _named(schema)}


def _named(schema: dict[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _type(schema: dict[str, Any]) -> str:
    """A schema in few words, e.g. ``integer 1..8`` or ``array of string``."""
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "$ref" in schema:
        return _named(schema)
    if "enum" in schema or "const" in schema:
        return " | ".join(f'"{value}"' for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"array of {_type(schema['items'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None or high is not None:
        return f"{kind} {'' if low is None else low}..{'' if high is None else high}"
    return f"{kind}, at most {schema['maxLength']} characters" if "maxLength" in schema else kind
