"""The document is complete and whole, and its page needs nothing from elsewhere."""

import re
from typing import Any

from api.app import DESCRIBED
from api.openapi import document
from commands import HANDLERS
from tests.api.served import Api, good


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


async def test_the_document_is_served_and_every_command_is_in_it(api: Api) -> None:
    served = good(await api.client.get("/schema/openapi.json"))
    assert served["openapi"].startswith("3.1")
    paths = served["paths"]
    assert {f"/v1/commands/{handler.name}" for handler in HANDLERS} < set(paths)
    for handler in HANDLERS:
        operation = paths[f"/v1/commands/{handler.name}"]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{handler.command.__name__}"}
        answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(answer["properties"]) == {"position", *handler.answer.__struct_fields__}
        assert bool(operation["security"]) is handler.needs_actor


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    made = document(DESCRIBED)
    found = references(made)
    for reference in found:
        place: Any = made
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    unused = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]} - found
    assert unused == set()


def test_every_operation_is_typed_and_named_once() -> None:
    made = document(DESCRIBED)
    operations = [one for methods in made["paths"].values() for one in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names)) == len(DESCRIBED)
    for path, methods in made["paths"].items():
        for operation in methods.values():
            named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))
            for status, response in operation["responses"].items():
                assert "content" in response or status == "204"


async def test_the_page_works_without_internet_and_scripts(api: Api) -> None:
    response = await api.client.get("/schema")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"<script|<link|<img|https?://(?!json-schema)", response.text)
    for operation in DESCRIBED:
        assert f"id='{operation.name}'" in response.text
