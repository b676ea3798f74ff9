"""The OpenAPI 3.1 document and its page, both made from the tables of operations.

The page is plain HTML without scripts, so it works where there is no internet and under the
strictest content policy.
"""

from collections import defaultdict
from collections.abc import Iterable
from html import escape
from typing import Any

import msgspec

from api import problems
from api.commands import Batch, BatchItem, BatchProblem, Results
from api.http import Reply
from api.operations import MULTIPART, Call, Operation, Parameter
from api.problems import Internal, Problem, RateLimited, ServiceUnavailable, Unauthenticated
from commands import HANDLERS
from domain.refusals import Refusal

Schema = dict[str, Any]

REFERENCE = "#/components/schemas/{name}"
POSITION = {"type": "integer", "minimum": 0, "description": "A place in the log."}
FORM_FILE = {"type": "string", "format": "binary"}
FORM_ID = {"type": "string", "format": "uuid"}
USUAL_PROBLEMS: tuple[type[Refusal], ...] = (ServiceUnavailable, Internal)
RATE_LIMIT_HEADERS = {
    "RateLimit-Limit": "Requests at once, of the limit with the least remaining.",
    "RateLimit-Remaining": "How many of them are left.",
    "RateLimit-Reset": "Seconds until all are there again; refused, as Retry-After.",
}
SECURITY: dict[str, list[Schema]] = {
    "needed": [{"access_token": []}],
    "optional": [{}, {"access_token": []}],
    "none": [],
}
PAGE_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    ),
]


def document(operations: tuple[Operation, ...]) -> Schema:
    schemas = _schemas(operations)
    paths: dict[str, Schema] = defaultdict(dict)
    for operation in operations:
        paths[_path(operation)][operation.method.lower()] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "messenger",
            "version": "1",
            "description": "Commands change things, queries read them; a position in the log "
            "ties both together. Ids are UUIDs, times RFC 3339 in UTC.",
        },
        "paths": dict(paths),
        "components": {
            "schemas": schemas,
            "headers": {
                "Request-Id": {"schema": {"type": "string"}, "required": True},
                "Log-Position": {"schema": POSITION, "required": True},
                "Retry-After": {"schema": {"type": "integer", "minimum": 1}, "required": True},
                **_rate_limit_headers(),
            },
            "securitySchemes": {
                "access_token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
        },
    }


def operations(described: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """The two that serve the document: encoded once, as it never changes."""
    made = document(described)
    encoded, page = msgspec.json.encode(made), _page(made).encode()

    async def show_document(call: Call) -> Reply:
        return Reply(200, encoded)

    async def show_page(call: Call) -> Reply:
        return Reply(200, page, PAGE_HEADERS, b"text/html; charset=utf-8")

    return (
        Operation(
            "GET",
            "/schema/openapi.json",
            "openapi",
            "This document",
            show_document,
            token="none",
            rate_limit="none",
        ),
        Operation(
            "GET", "/schema", "schema", "Its page", show_page, token="none", rate_limit="none"
        ),
    )


def _rate_limit_headers() -> Schema:
    whole = {"type": "integer", "minimum": 0}
    return {
        name: {"schema": whole, "description": text} for name, text in RATE_LIMIT_HEADERS.items()
    }


def _schemas(operations: tuple[Operation, ...]) -> dict[str, Schema]:
    types = {op.body for op in operations} | {op.answer for op in operations if _is_whole(op)}
    types = {kind for kind in types if _is_struct(kind)} | {Problem, BatchItem, BatchProblem}
    ordered = sorted(types, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=REFERENCE)
    found: dict[str, Schema] = dict(schemas)
    found[Problem.__name__]["properties"]["code"] = {
        "type": "string",
        "enum": sorted({refusal.code for refusal in problems.REFUSALS}),
    }
    _describe_batch(found)
    _describe_forms(operations, found)
    return found


def _describe_batch(schemas: dict[str, Schema]) -> None:
    """The batch takes and gives raw JSON: what that is, only the table of commands knows."""
    item = schemas[BatchItem.__name__]
    item["properties"]["name"] = {"type": "string", "enum": [h.name for h in HANDLERS]}
    item["properties"]["data"] = {"type": "object", "description": "The command's own body."}
    schemas[Batch.__name__]["properties"]["commands"]["items"] = _reference(BatchItem)
    done = {
        "type": "object",
        "description": "The command's own answer.",
        "properties": {"position": POSITION, "idempotency_replayed": {"const": True}},
        "required": ["position"],
    }
    results = schemas[Results.__name__]["properties"]["results"]
    results["items"] = {"oneOf": [done, _reference(BatchProblem)]}


def _describe_forms(operations: tuple[Operation, ...], schemas: dict[str, Schema]) -> None:
    """A form's parts are a file's bytes and ids; as JSON the structs would say otherwise."""
    for operation in operations:
        if operation.body_type == MULTIPART:
            fields = schemas[operation.body.__name__]["properties"]
            for name in fields:
                fields[name] = FORM_FILE if name == "file" else FORM_ID


def _describe(operation: Operation) -> Schema:
    described: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": _responses(operation),
        "security": SECURITY[operation.token],
    }
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {operation.body_type: {"schema": _reference(operation.body)}},
        }
    return described


def _path(operation: Operation) -> str:
    return operation.path.replace(":str}", "}")


def _parameter(parameter: Parameter) -> Schema:
    return {
        "name": parameter.name,
        "in": parameter.location,
        "required": parameter.location == "path",
        "schema": parameter.schema,
        "description": parameter.description,
    }


def _responses(operation: Operation) -> Schema:
    limits = () if operation.rate_limit == "none" else tuple(RATE_LIMIT_HEADERS)
    headers = ("Request-Id", *limits)
    position = ("Log-Position",) if operation.states_position else ()
    success: Schema = {"description": "Done", "headers": _headers(*headers, *position)}
    if operation.answer is not None:
        success["content"] = {operation.media_type: {"schema": _answer(operation)}}
    responses: Schema = {str(operation.status): success}
    for status, refusals in sorted(_by_status(operation).items()):
        retry = ("Retry-After",) if status == RateLimited.status else ()
        responses[str(status)] = {
            "description": "; ".join(f"`{r.code}`: {problems.title(r)}" for r in refusals),
            "headers": _headers(*headers, *retry),
            "content": {"application/problem+json": {"schema": _reference(Problem)}},
        }
    return responses


def _headers(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _by_status(operation: Operation) -> dict[int, list[type[Refusal]]]:
    usual: tuple[type[Refusal], ...] = USUAL_PROBLEMS
    if operation.token == "needed":
        usual = (Unauthenticated, *usual)
    if operation.rate_limit != "none":
        usual = (RateLimited, *usual)
    by_status: dict[int, list[type[Refusal]]] = defaultdict(list)
    for refusal in dict.fromkeys((*operation.problems, *usual)):
        by_status[refusal.status].append(refusal)
    return by_status


def _answer(operation: Operation) -> Schema:
    if not _is_struct(operation.answer):
        return {"type": "string"}
    if _is_whole(operation):
        return _reference(operation.answer)
    _, schemas = msgspec.json.schema_components([operation.answer], ref_template=REFERENCE)
    own = schemas[operation.answer.__name__]
    return {
        "type": "object",
        "properties": {"position": POSITION, **own["properties"]},
        "required": ["position", *own["required"]],
    }


def _is_whole(operation: Operation) -> bool:
    """Whether the answer is a body by itself: a command's is one together with the position."""
    return not operation.answers_position


def _reference(kind: Any) -> Schema:
    return {"$ref": REFERENCE.format(name=kind.__name__)}


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


# ------------------------------------------------------------------------------- the page

STYLE = """
    body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
        padding: 0 1rem; color: #1c1e21 }
    details { border: 1px solid #d5d9df; border-radius: 6px; margin: .5rem 0; padding: .4rem .8rem }
    summary { cursor: pointer } code, pre { font: 13px/1.45 ui-monospace, monospace }
    pre { background: #f5f6f8; padding: .6rem; overflow-x: auto } b { display: inline-block;
        min-width: 4.5rem } td, th { text-align: left; padding: .15rem 1rem .15rem 0 }
    @media (prefers-color-scheme: dark) { body { background: #17191c; color: #e3e5e8 }
        pre { background: #23262b } details { border-color: #3a3f46 } }
"""


def _page(made: Schema) -> str:
    sections = [
        _section(method.upper(), path, described)
        for path, methods in made["paths"].items()
        for method, described in methods.items()
    ]
    schemas = [
        _details(f"<code>{escape(name)}</code>", _json(schema), f"schema-{name}")
        for name, schema in sorted(made["components"]["schemas"].items())
    ]
    return "\n".join(
        (
            "<!doctype html><html lang=en><meta charset=utf-8><title>messenger API</title>",
            "<meta name=viewport content='width=device-width'>",
            f"<style>{STYLE}</style><h1>messenger API</h1>",
            f"<p>{escape(made['info']['description'])} ",
            "<a href=/schema/openapi.json>openapi.json</a></p><h2>Operations</h2>",
            *sections,
            "<h2>Schemas</h2>",
            *schemas,
            "</html>",
        )
    )


def _section(method: str, path: str, described: Schema) -> str:
    head = f"<b>{method}</b> <code>{escape(path)}</code> {escape(described['summary'])}"
    parts = [_parameters(described["parameters"])] if described["parameters"] else []
    if not described["security"]:
        parts.append("<p>Needs no token.</p>")
    if "requestBody" in described:
        parts.append("<h4>Body</h4>" + _json(described["requestBody"]["content"]))
    for status, response in described["responses"].items():
        parts.append(f"<h4>{status}</h4><p>{escape(response['description'])}</p>")
        if status.startswith("2"):
            parts.append(_json(response.get("content", {})))
    return _details(head, "".join(parts), described["operationId"])


def _parameters(parameters: Iterable[Schema]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(p['name'])}</code><td>{p['in']}<td>{escape(p['description'])}"
        for p in parameters
    )
    return f"<table><tr><th>Parameter<th>In<th>{rows}</table>"


def _details(head: str, body: str, anchor: str) -> str:
    return f"<details id='{escape(anchor)}'><summary>{head}</summary>{body}</details>"


def _json(value: Any) -> str:
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return f"<pre>{escape(text)}</pre>"
