"""Every request that the exporter can build, held against Weave's contracts.

The published page, the project's own document, the request types of the installed `weave` with unknown fields refused,
and VENDORS' rules about types and references. The long form takes a hundred thousand judgements:

    pytest -m chaos tests/exporters/test_weave_contract.py

Seeded bugs: a field too many, a field of another type, an encoded project, a user set by us, tags said twice, an
annotation without its reference. Each is found.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from exporter_bench import SPEC, judgements, record
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from weave_bench import (
    BATCH,
    CREATE,
    PROJECT,
    PURGE,
    REPLACE,
    SETUPS,
    assert_valid,
    published_fields,
    request_types,
    requests_of,
    weave_judgements,
)

from otel_feedback import FeedbackRecord, Part, WeaveExporter

SHORT, LONG = 200, 100_000


def check(count: int) -> Counter[str]:
    """Check what so many judgements lead to; answer how many requests of each path there were."""
    exporters = [WeaveExporter(PROJECT, **options) for options in SETUPS.values()]
    seen: Counter[str] = Counter()

    @seed(5)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(judgement=weave_judgements(), exporter=st.sampled_from(exporters))
    def keeps(judgement: FeedbackRecord, exporter: WeaveExporter) -> None:
        seen["judgements"] += 1
        for request in requests_of(exporter, judgement):
            seen[request.url.path] += 1
            assert_valid(request, is_mapped=not judgement.native)

    keeps()
    return seen


def test_every_request_is_valid() -> None:
    """
    In both views, at every level, to create, alone and together, to replace and to take back, native or not.
    """
    seen = check(SHORT)

    assert seen.keys() == {"judgements", CREATE, BATCH, REPLACE, PURGE}


@pytest.mark.chaos
def test_every_request_of_a_hundred_thousand_judgements_is_valid() -> None:
    """
    The same for many more.
    """
    seen = check(LONG)
    print(json.dumps(seen))

    assert seen["judgements"] >= LONG


def test_the_installed_weave_has_request_types() -> None:
    """
    What is checked against is there, so that nothing passes unchecked.
    """
    assert request_types().keys() >= {CREATE, BATCH, REPLACE}


@pytest.mark.skipif(not SPEC.exists(), reason=f"the reference documents are not there ({SPEC})")
def test_every_published_field_is_ours_to_set_or_the_servers() -> None:
    """
    The mapping, the settings and `native` together cover each field of the published page but the one that the server
    fills in.
    """
    mapped = {"project_id", "weave_ref", "id"}

    assert published_fields() - {"wb_user_id"} == mapped | set(WeaveExporter.native_type.__annotations__)


Bug = Callable[[dict[str, Any]], Any]


class Broken(WeaveExporter):
    """An exporter with a bug in its bodies."""

    bug: Bug = staticmethod(lambda body: None)

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        """Write the right bodies, and change them."""
        written = []
        for part in super().parts(record):
            body = {**part.body, "payload": {**part.body["payload"]}}
            type(self).bug(body)
            written.append(replace(part, body=body))
        return written


@pytest.mark.parametrize(
    ("options", "bug"),
    [
        ({}, lambda body: body.update(comment="c")),
        ({}, lambda body: body.update(wb_user_id="u")),
        ({}, lambda body: body.update(creator=7)),
        ({}, lambda body: body.update(payload=[])),
        ({}, lambda body: body.pop("weave_ref")),
        ({}, lambda body: body.update(weave_ref=body["weave_ref"].replace("acme/chat", "acme%2Fchat"))),
        ({}, lambda body: body.update(weave_ref=body["weave_ref"] + ":digest")),
        ({}, lambda body: body.update(feedback_type="wandb.mine")),
        ({}, lambda body: body.update(scorer_tags=["a"])),
        ({}, lambda body: body["payload"].pop("recorded_at")),
        ({}, lambda body: body["payload"].update(emoji="👍👍")),
        (
            {"annotations": {"rating": SETUPS["annotations"]["annotations"]["rating"]}},
            lambda body: body.pop("annotation_ref"),
        ),
        ({"view": "agents"}, lambda body: body.pop("scorer_tags")),
        ({"view": "agents"}, lambda body: body.update(scorer_tags=["a", "a"])),
        ({"view": "agents"}, lambda body: body.update(scorer_tags="a")),
        ({"view": "agents"}, lambda body: body.update(scorer_ratings={"r": 1.5})),
        ({"view": "agents"}, lambda body: body.update(scorer_ratings={"r": "high"})),
    ],
)
def test_a_seeded_bug_is_found(options: dict[str, Any], bug: Bug) -> None:
    """
    A body that is wrong in one way does not pass.
    """
    exporter = type("Buggy", (Broken,), {"bug": staticmethod(bug)})(PROJECT, **options)
    requests = requests_of(exporter, record(value=True))

    with pytest.raises((AssertionError, ValueError, KeyError)):
        assert_valid(requests[0], is_mapped=True)
    assert_valid(requests_of(WeaveExporter(PROJECT, **options), record(value=True))[0], is_mapped=True)


@settings(max_examples=50)
@given(judgement=judgements())
def test_what_is_mapped_is_never_refused(judgement: FeedbackRecord) -> None:
    """
    Whatever is accepted as a judgement, each set-up can carry it.
    """
    for options in SETUPS.values():
        assert requests_of(WeaveExporter(PROJECT, **options), judgement)
