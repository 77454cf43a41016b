from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from otel_feedback.sandbox._contracts import MAX_MESSAGE_CHARACTERS, body_violations, document
from otel_feedback.sandbox._core import HANDLERS

PUBLISHED = Path(__file__).parents[3] / "shared" / "spec"
PROSE = frozenset({"description", "title", "summary", "example", "examples", "tags", "operationId", "externalDocs"})
VENDORS = ("orq", "braintrust", "weave")


def structure(node, whole, *, names=False):
    """Answer a document's facts: references followed, prose left out; `names` where keys are names."""
    if isinstance(node, list):
        return [structure(each, whole) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = whole
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return structure(target, whole)
    kept = {key: value for key, value in node.items() if names or key not in PROSE}
    return {
        key: sorted(value)
        if key == "required" and isinstance(value, list)
        else structure(value, whole, names=key == "properties")
        for key, value in kept.items()
    }


@pytest.mark.parametrize("vendor", VENDORS)
def test_our_document_says_what_is_published(vendor):
    """
    Our words differ from the published document; paths, types and bounds do not.
    """
    published = PUBLISHED / f"{vendor}-feedback.openapi.yaml"
    if not published.exists():
        pytest.skip(f"the reference document {published} is not on this machine")
    theirs = yaml.safe_load(published.read_text(encoding="utf-8"))
    ours = document(vendor)

    for path, item in theirs["paths"].items():
        assert structure(item, theirs) == structure(ours["paths"][path], ours)
    assert structure(theirs["components"]["securitySchemes"], theirs) == structure(
        ours["components"]["securitySchemes"], ours
    )


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_documents_schemas_are_schemas(vendor):
    """
    Every schema and every body of a document is valid JSON Schema 2020-12.
    """
    whole = document(vendor)
    bodies = [
        operation["requestBody"]["content"]["application/json"]["schema"]
        for item in whole["paths"].values()
        for operation in item.values()
        if "requestBody" in operation
    ]

    assert bodies
    for schema in (*whole["components"]["schemas"].values(), *bodies):
        Draft202012Validator.check_schema(schema)


def test_every_documented_operation_is_answered():
    """
    What a document describes, the table of handlers has.
    """
    documented = {
        (vendor, method.upper(), path)
        for vendor in VENDORS
        for path, item in document(vendor)["paths"].items()
        for method in item
    }

    assert documented <= set(HANDLERS)


def test_a_message_does_not_repeat_a_whole_body():
    """
    A violation quotes as much of a value as a person reads, and says where it was.
    """
    (violation,) = body_violations("weave", "POST", "/feedback/create", ["x" * 1_000])

    assert MAX_MESSAGE_CHARACTERS + 1 == len(violation.message)
    assert str(violation).startswith("body: ")
