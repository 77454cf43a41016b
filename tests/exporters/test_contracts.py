"""Every request that the exporters of orq and Braintrust can build, held against their contracts.

The project's own documents, and what the vendors publish where that is at hand: orq's page, Braintrust's page, and the
document of Braintrust's server, which is OpenAPI 3.0, where null is said with `nullable`. The long form takes a hundred
thousand judgements for each vendor:

    pytest -m chaos tests/exporters/test_contracts.py

Weave has its own, `test_weave_contract.py`. Seeded bugs are found by all of them.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]  # its types come apart, as types-jsonschema
import pytest
import yaml  # type: ignore[import-untyped]  # as types-PyYAML
from exporter_bench import SPEC, asked, changed, contract, handle, judgements, play, record, taken_back
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from otel_feedback import BraintrustExporter, FeedbackRecord, OrqExporter, Part
from otel_feedback.exceptions import InvalidFeedbackError

if TYPE_CHECKING:
    import httpx

    from otel_feedback.exporters._http import HTTPFeedbackExporter

SHORT, LONG = 200, 100_000
UUID = "5a3c1f0e-8d5a-4d9f-9f6e-0b9a3a3b6f11"
OTHER = "00000000-0000-4000-8000-000000000002"
ULID = re.compile("[0-9A-HJKMNP-TV-Z]{26}")

_TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)
_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
_CHOICES = st.lists(_TEXTS, min_size=1, max_size=3)


@dataclass(frozen=True)
class Vendor:
    """One vendor's API: the set-ups that change what is sent, what may be set natively, and the paths with a body."""

    name: str
    make: Callable[..., HTTPFeedbackExporter]
    setups: tuple[Mapping[str, Any], ...]
    native: Mapping[str, st.SearchStrategy[Any]]
    # From a method and a pattern of the path to the path in the documents.
    paths: Mapping[tuple[str, str], str]


OWN = {"properties": ("relevance", "toxic", "defects"), "comment_property": "remark"}
VENDORS = {
    "orq": Vendor(
        "orq",
        OrqExporter,
        ({}, OWN, {**OWN, "thumbs": ("toxic",)}, {"product": "agents"}),
        {"property": _TEXTS, "value": _TEXTS | _NUMBERS | _CHOICES, "product": st.sampled_from(["otel", "agents"])},
        {
            ("POST", r"/v2/feedback"): "/v2/feedback",
            ("POST", r"/v2/feedback/remove"): "/v2/feedback/remove",
        },
    ),
    "orq annotations": Vendor(
        "orq",
        functools.partial(OrqExporter, api="annotations"),
        ({}, OWN, {**OWN, "thumbs": ("toxic",)}),
        {
            "key": _TEXTS,
            "value": _TEXTS | _NUMBERS | _CHOICES | st.booleans(),
            "parent_annotation_id": _TEXTS,
            "explanation": _TEXTS,
        },
        {
            (method, r"/v2/traces/[0-9a-f]{32}/spans/[0-9a-f]{16}/annotation"): (
                "/v2/traces/{trace_id}/spans/{span_id}/annotation"
            )
            for method in ("POST", "DELETE")
        },
    ),
    "braintrust": Vendor(
        "braintrust",
        BraintrustExporter,
        tuple(
            {"parent": parent, **options}
            for parent in (f"project_id:{UUID}", f"experiment_id:{UUID}")
            for options in (
                {},
                {"per_rater": "child"},
                {"tags_on": "span", "labels": {"relevance": "tags", "rating": {"good": 1, "saved": 0.25}}},
            )
        ),
        {
            "scores": st.dictionaries(_TEXTS, st.floats(0, 1) | st.none(), max_size=2),
            "expected": _TEXTS | st.none() | st.dictionaries(_TEXTS, _NUMBERS, max_size=2),
            "comment": _TEXTS,
            "metadata": st.dictionaries(_TEXTS, _TEXTS, max_size=2),
            "source": st.sampled_from(["app", "api", "external"]),
            "tags": st.lists(_TEXTS, min_size=1, max_size=3),
        },
        {
            ("POST", rf"/v1/{table}/{UUID}/{verb}"): f"/v1/{table}/{{{parameter}}}/{verb}"
            for table, parameter in (("project_logs", "project_id"), ("experiment", "experiment_id"))
            for verb in ("feedback", "insert")
        },
    ),
}


# --- what may come ---------------------------------------------------------------------------------------------


@st.composite
def everything(draw: st.DrawFn, vendor: Vendor) -> FeedbackRecord:
    """Make any judgement that is accepted, declared or not, with native fields or without."""
    judgement = draw(judgements())
    native = draw(st.none() | st.none() | st.fixed_dictionaries({}, optional=dict(vendor.native)))
    attributes = draw(st.sampled_from([{}, {}, {"braintrust_row_id": "row-1"}]))
    return replace(
        judgement,
        native={} if native is None else {vendor.name: native},
        handle=replace(judgement.handle, attributes=handle(**attributes).attributes),
        is_thumb=draw(st.sampled_from([None, True, False])),
        lower_is_better=draw(st.booleans()),
    )


# --- what is sent, and what it must be -------------------------------------------------------------------------


def requests_of(exporter: HTTPFeedbackExporter, judgement: FeedbackRecord) -> list[httpx.Request]:
    """Answer each request that a judgement can lead to: to create, again, to replace, to take back, in a batch."""
    try:
        parts = exporter.parts(judgement)
    except InvalidFeedbackError:
        # Refused before it is accepted. Only what is native can lead to that.
        assert judgement.native, judgement
        return []
    again = [replace(part, may_have_arrived=True) for part in parts]
    other = exporter.parts(replace(judgement, id=OTHER, handle=handle(span_id="00000000000000a1")))
    tries: tuple[Sequence[Part], ...] = (
        [*parts, *other],
        again,
        changed(exporter, judgement, judgement),
        taken_back(parts),
        taken_back(parts, judgement),
    )
    return [request for each in tries for request in play(exporter.exchange(each))[0]]


def assert_valid(vendor: Vendor, request: httpx.Request) -> str:
    """Check a request against each contract that is at hand; answer the path in it."""
    path = next(
        template
        for (method, pattern), template in vendor.paths.items()
        if request.method == method and re.fullmatch(pattern, request.url.path)
    )
    _, body = asked(request)
    for validator in validators(vendor.name, path, request.method.lower()):
        assert [] == [error.message for error in validator.iter_errors(body)]
    RULES[vendor.name](body)
    return path


@functools.cache
def validators(vendor: str, path: str, method: str) -> tuple[Any, ...]:
    """Build all validators of a body: of our own document, and of those that are published."""
    pages = (f"{vendor}-feedback.openapi.yaml", f"{vendor}-server.openapi.json")
    found = [contract(vendor, path, method)]
    for page in pages:
        if not (SPEC / page).exists():
            continue
        document = yaml.safe_load((SPEC / page).read_text(encoding="utf-8"))
        if method in document["paths"].get(path, {}):
            said = document if document["openapi"].startswith("3.1") else json_schema(document)
            body = said["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
            found.append(jsonschema.Draft202012Validator({"allOf": [body], "components": said["components"]}))
    return tuple(found)


def json_schema(node: Any) -> Any:
    """Read OpenAPI 3.0 as JSON Schema: `nullable` lets a type be null, and means nothing without one."""
    if isinstance(node, list):
        return [json_schema(each) for each in node]
    if not isinstance(node, dict):
        return node
    read = {key: json_schema(value) for key, value in node.items() if key != "nullable"}
    if node.get("nullable") is True and isinstance(node.get("type"), str):
        read["type"] = [node["type"], "null"]
        if "enum" in node:
            read["enum"] = [*dict.fromkeys([*node["enum"], None])]
    return read


def _orq_rules(body: Mapping[str, Any]) -> None:
    """Check what VENDORS says of orq and no schema: its ids, its values, its closed set of fields."""
    if "trace_id" in body:
        assert ULID.fullmatch(body["id"])
        assert re.fullmatch(r"(?!0+$)[0-9a-f]{32}", body["trace_id"])
        assert body["product"] in ("otel", "agents")
        assert "property" not in body or not isinstance(body["value"], (bool, type(None)))
        assert body.keys() <= {"id", "property", "value", "trace_id", "product"}
    else:
        assert body.keys() <= {"annotations", "metadata", "keys", "parent_annotation_ids"}
        for each in body.get("annotations", ()):
            assert each.keys() in ({"key", "value"}, {"parent_annotation_id", "value"}) or (
                each.keys() == {"parent_annotation_id", "value", "explanation"}
            )


ITEM = frozenset({"id", "scores", "expected", "comment", "metadata", "source", "tags"})
ROW = frozenset(
    {"id", "span_id", "root_span_id", "span_parents", "created", "span_attributes", "scores", "expected", "metadata"}
)


def _braintrust_rules(body: Mapping[str, Any]) -> None:
    """Check what VENDORS says of Braintrust and no schema: scores, tags, rows, limits, its closed set of fields."""
    ((name, items),) = body.items()
    assert 1 <= len(items) <= 100
    assert len({item["id"] for item in items}) == len(items)
    for item in items:
        assert item.keys() <= (ITEM if name == "feedback" else ROW | {"_object_delete"})
        assert not any(isinstance(score, bool) for score in item.get("scores", {}).values())
        assert len(item.get("tags", [])) == len(set(item.get("tags", [])))
        assert "_object_delete" in item or "feedback_id" in item["metadata"]
        assert not {"comment", "scores"} <= item.keys(), "a comment travels alone"


RULES: Mapping[str, Callable[[Mapping[str, Any]], None]] = {"orq": _orq_rules, "braintrust": _braintrust_rules}


# --- the tests ---------------------------------------------------------------------------------------------------


def check(vendor: Vendor, count: int) -> Counter[str]:
    """Check what so many judgements lead to; answer how many requests of each path there were."""
    exporters = [vendor.make(**setup) for setup in vendor.setups]
    seen: Counter[str] = Counter()

    @seed(5)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(judgement=everything(vendor), exporter=st.sampled_from(exporters))
    def keeps(judgement: FeedbackRecord, exporter: HTTPFeedbackExporter) -> None:
        seen["judgements"] += 1
        for request in requests_of(exporter, judgement):
            seen[assert_valid(vendor, request)] += 1

    keeps()
    return seen


@pytest.mark.parametrize("name", VENDORS)
def test_every_request_is_valid(name: str) -> None:
    """
    In every set-up, to create, again, to replace and to take back, native or not; each path is reached.
    """
    seen = check(VENDORS[name], SHORT)

    assert {"judgements", *VENDORS[name].paths.values()} == seen.keys()


@pytest.mark.chaos
@pytest.mark.parametrize("name", VENDORS)
def test_every_request_of_a_hundred_thousand_judgements_is_valid(name: str) -> None:
    """
    The same for many more.
    """
    seen = check(VENDORS[name], LONG)
    print(name, json.dumps(seen))

    assert seen["judgements"] >= LONG


def bugs() -> Iterator[Any]:
    """Break a body in one way: for the vendor, a set-up, and what is wrong."""
    for wrong in (
        {"value": True},
        {"value": None},
        {"value": 1, "id": ID_IN_SMALL},
        {"trace_id": "0" * 32},
        {"trace_id": "0AF7651916CD43DD8448EB211C80319C"},
        {"product": "deployments"},
        {"comment": "c"},
    ):
        yield pytest.param("orq", 0, wrong, id=f"orq {wrong}")
    for wrong in (
        {"annotations": []},
        {"annotations": [{"value": 1}]},
        {"annotations": [{"key": "a", "value": None}]},
        {"metadata": {"identity_id": 7}},
        {"product": "otel"},
    ):
        yield pytest.param("orq annotations", 0, wrong, id=f"annotations {wrong}")
    for setup, wrong in (
        (0, {"scores": {"rating": True}}),
        (0, {"scores": {"rating": 1.01}}),
        (0, {"scores": {"rating": "1"}}),
        (0, {"source": "human"}),
        (0, {"tags": ["a", "a"]}),
        (0, {"comment": "c"}),
        (0, {"comment": None, "note": "c"}),
        (0, {"metadata": {}}),
        (0, {"id": 5}),
        (1, {"span_parents": "a"}),
        (1, {"span_attributes": {"type": "feedback"}}),
        (1, {"source": "external"}),
        (1, {"scores": {"rating": 2}}),
    ):
        yield pytest.param("braintrust", setup, wrong, id=f"braintrust {wrong}")


ID_IN_SMALL = "01j3rz57cbfmzvb8ccjhs4yfkv"


@pytest.mark.parametrize(("name", "setup", "wrong"), list(bugs()))
def test_a_seeded_bug_is_found(name: str, setup: int, wrong: Mapping[str, Any]) -> None:
    """
    A body that is wrong in one way does not pass, and the right one does.
    """
    vendor = VENDORS[name]
    exporter = vendor.make(**vendor.setups[setup])
    parts = exporter.parts(record(value=True, user_id="u"))
    broken = [replace(part, body={**part.body, **wrong}) for part in parts]

    assert_valid(vendor, play(exporter.exchange(parts))[0][0])
    with pytest.raises((AssertionError, TypeError)):
        assert_valid(vendor, play(exporter.exchange(broken))[0][0])


def test_the_published_documents_are_used_where_they_are() -> None:
    """
    Where the vendors' pages are at hand, a request is held against each of them, and not against ours alone.
    """
    if not SPEC.exists():
        pytest.skip(f"the reference documents are not there ({SPEC})")

    assert 2 == len(validators("orq", "/v2/feedback", "post"))
    assert 3 == len(validators("braintrust", "/v1/experiment/{experiment_id}/feedback", "post"))
    assert 2 == len(validators("braintrust", "/v1/project_logs/{project_id}/insert", "post"))
