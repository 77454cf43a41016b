"""`FIELDS.md` says of every field of each vendor's API where it comes from; it is held against the documents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import otel_feedback.exporters
import otel_feedback.sandbox
from otel_feedback.exporters.braintrust import BraintrustNative
from otel_feedback.exporters.orq import OrqAnnotationNative, OrqNative
from otel_feedback.exporters.weave import WeaveNative

TABLE = Path(otel_feedback.exporters.__file__).with_name("FIELDS.md").read_text(encoding="utf-8")
DOCUMENTS = Path(otel_feedback.sandbox.__file__).parent / "openapi"

# The requests that send or take back a judgement, by vendor; one stands for those with the same fields.
REQUESTS = (
    ("orq", "POST", "/v2/feedback"),
    ("orq", "POST", "/v2/feedback/remove"),
    ("orq", "POST", "/v2/traces/{trace_id}/spans/{span_id}/annotation"),
    ("orq", "DELETE", "/v2/traces/{trace_id}/spans/{span_id}/annotation"),
    ("braintrust", "POST", "/v1/project_logs/{project_id}/feedback"),
    ("braintrust", "POST", "/v1/experiment/{experiment_id}/feedback"),
    ("braintrust", "POST", "/v1/project_logs/{project_id}/insert"),
    ("braintrust", "POST", "/v1/experiment/{experiment_id}/insert"),
    ("braintrust", "POST", "/btql"),
    ("weave", "POST", "/feedback/create"),
    ("weave", "POST", "/feedback/batch/create"),
    ("weave", "POST", "/feedback/replace"),
    ("weave", "POST", "/feedback/purge"),
)


def fields_of(schema: Any, document: Any, before: str = "") -> Iterator[str]:
    """Name every field of a body: its own, and those of its lists and objects, but not of free ones."""
    while "$ref" in schema:
        found = document
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        schema = found
    for kind in ("anyOf", "oneOf", "allOf"):
        for each in schema.get(kind, ()):
            yield from fields_of(each, document, before)
    if isinstance(schema.get("items"), dict):
        yield from fields_of(schema["items"], document, f"{before}[]")
    for name, each in schema.get("properties", {}).items():
        path = f"{before}.{name}".lstrip(".")
        yield path
        yield from fields_of(each, document, path)


def rows_of(method: str, path: str) -> list[str]:
    """Read the fields that have a row under a request's heading."""
    heading = re.search(rf"^#+ .*`{re.escape(f'{method} {path}')}`.*$", TABLE, re.MULTILINE)
    assert heading is not None, f"no heading names {method} {path}"
    section = TABLE[heading.end() :].partition("\n#")[0]
    return [
        field
        for cell in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        for field in re.findall(r"`([^`]+)`", cell)
    ]


@pytest.mark.parametrize(("vendor", "method", "path"), REQUESTS)
def test_each_field_has_a_row_and_each_row_a_field(vendor: str, method: str, path: str) -> None:
    """
    A field that a vendor adds fails this until somebody has said where it comes from, and so does one that is gone.
    """
    document = json.loads((DOCUMENTS / f"{vendor}.json").read_text(encoding="utf-8"))
    body = document["paths"][path][method.lower()]["requestBody"]["content"]["application/json"]["schema"]
    rows = rows_of(method, path)

    assert sorted(set(fields_of(body, document))) == sorted(rows)


@pytest.mark.parametrize(
    ("vendor", "heading", "native"),
    [
        ("orq", "POST /v2/feedback", OrqNative),
        ("orq", "POST /v2/traces/{trace_id}/spans/{span_id}/annotation", OrqAnnotationNative),
        ("braintrust", "POST /v1/project_logs/{project_id}/feedback", BraintrustNative),
        ("weave", "POST /feedback/create", WeaveNative),
    ],
)
def test_what_is_said_to_be_native_can_be_set(vendor: str, heading: str, native: Any) -> None:
    """
    Each row that names `native` is a field that `native={…}` takes, and each such field is in one.
    """
    start = TABLE.index(f"`{heading}`")
    section = TABLE[start:].partition("\n#")[0]
    said = {
        re.sub(r".*\.", "", name)
        for cell, source in re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.MULTILINE)
        if "native" in source
        for name in re.findall(r"`([^`]+)`", cell)
    }

    assert set(annotations_of(native)) == said, vendor


def annotations_of(native: Any) -> Mapping[str, Any]:
    """Name what may be set."""
    found: Mapping[str, Any] = native.__annotations__
    return found
