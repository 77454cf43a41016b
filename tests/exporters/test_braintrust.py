from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from exporter_bench import (
    ID,
    MEGABYTE,
    NOON,
    NOON_TEXT,
    REFUSED,
    ROOT,
    SECRET,
    SPAN,
    STATUSES,
    TRACE,
    UNCLEAR,
    answer,
    answering,
    asked,
    changed,
    contract,
    handle,
    judgements,
    paths,
    play,
    published,
    record,
    taken_back,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_feedback import BraintrustExporter, Part, RetryPolicy
from otel_feedback._deliver import LEASE_MILLIS, Deliverer
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import (
    PauseDestination,
    PermanentFailure,
    Result,
    RetryableFailure,
    Skipped,
    Success,
    Unclear,
    _braintrust_rows,
    braintrust,
)
from otel_feedback.exporters._http import HTTPOptions, NoAnswer
from otel_feedback.exporters.braintrust import GRACE_MILLIS, check_parent
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.testing import ExporterContract, FakeClock

UUID = "5a3c1f0e-8d5a-4d9f-9f6e-0b9a3a3b6f11"
OTHER = "00000000-0000-4000-8000-000000000002"
NO_SUCH = {"message": "Missing read access, or the project_log does not exist (user somebody@example.com)"}
PARENT = f"project_id:{UUID}"
LOGS = f"/v1/project_logs/{UUID}/feedback"
INSERT = f"/v1/project_logs/{UUID}/insert"
SPECIMEN = {
    "project_id": "/v1/project_logs/{project_id}/feedback",
    "experiment_id": "/v1/experiment/{experiment_id}/feedback",
}


def exporter(**options: Any) -> BraintrustExporter:
    return BraintrustExporter(options.pop("parent", PARENT), **options)


def items(made: BraintrustExporter, **said: Any) -> dict[str, Any]:
    """Answer the items of a judgement by kind of part, without what every item has."""
    always = ("id", "source", "metadata")
    return {
        part.kind: {name: value for name, value in part.body.items() if name not in always}
        for part in made.parts(record(**said))
    }


def rows(count: int, **said: Any) -> list[Part]:
    """Make one part each for many rows."""
    return [
        part
        for number in range(1, count + 1)
        for part in exporter().parts(record(target=handle(span_id=f"{number:016x}"), **{"value": True, **said}))
    ]


def batches(requests: Sequence[httpx.Request]) -> list[list[dict[str, Any]]]:
    """Answer the items of each request."""
    return [asked(request)[1]["feedback"] for request in requests]


class TestContract(ExporterContract):
    secret = SECRET

    def answered(self, status: int) -> BraintrustExporter:
        made = BraintrustExporter(PARENT, api_key=SECRET, options=answering(status))
        made.start()
        return made

    @pytest.fixture
    def exporter(self) -> Iterator[BraintrustExporter]:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"status": "success"}))
        made = BraintrustExporter(PARENT, api_key=SECRET, options=HTTPOptions(transport=transport))
        made.start()
        yield made
        made.shutdown()


class TestItems:
    @pytest.mark.parametrize(
        ("said", "expected"),
        [
            ({"value": True}, {"value": {"scores": {"rating": 1}}}),
            ({"value": False}, {"value": {"scores": {"rating": 0}}}),
            ({"name": "toxic", "value": True}, {"value": {"scores": {"toxic": 1}}}),
            ({"value": 0.25}, {"value": {"scores": {"rating": 0.25}}}),
            ({"value": 1, "scale": (1, 5)}, {"value": {"scores": {"rating": 0.0}}}),
            ({"value": 4, "scale": (1, 5)}, {"value": {"scores": {"rating": 0.75}}}),
            ({"value": 5, "scale": (1, 5)}, {"value": {"scores": {"rating": 1.0}}}),
            ({"value": -3.0, "scale": (-5, 5)}, {"value": {"scores": {"rating": 0.2}}}),
            ({"value": "warm"}, {"value": {}}),
            ({"correction": "Paris"}, {"value": {"expected": "Paris"}}),
            ({"correction": {"a": [1]}}, {"value": {"expected": {"a": [1]}}}),
            ({"correction": False}, {"value": {"expected": False}}),
            ({"value": True, "correction": "x"}, {"value": {"scores": {"rating": 1}, "expected": "x"}}),
            ({"comment": "Spot on"}, {"comment": {"comment": "Spot on"}}),
            ({"tags": ["a", "b"]}, {"tags": {"tags": ["a", "b"]}}),
            (
                {"value": True, "comment": "c", "tags": ["a"]},
                {"value": {"scores": {"rating": 1}}, "comment": {"comment": "c"}, "tags": {"tags": ["a"]}},
            ),
        ],
    )
    def test_each_field_has_its_place(self, said: dict[str, Any], expected: dict[str, Any]) -> None:
        """
        Scores between 0 and 1, expected, a comment and tags; comment and tags in items of their own.
        """
        assert expected == items(exporter(), **said)

    def test_a_score_is_no_boolean(self) -> None:
        """
        JSON's `true` is no score: a thumb is the number 1 on the wire.
        """
        made = exporter()
        (request,), _ = play(made.exchange(made.parts(record(value=True))))

        assert b'"scores":{"rating":1}' in request.content

    @given(
        ends=st.tuples(
            st.floats(-1e15, 1e15, allow_nan=False), st.floats(min_value=1e-300, max_value=1e15, allow_nan=False)
        ).filter(lambda ends: ends[0] < ends[0] + ends[1]),
        share=st.floats(0, 1),
    )
    def test_no_score_lies_beyond_its_ends(self, ends: tuple[float, float], share: float) -> None:
        """
        Rounding never puts a score below 0 or above 1, and both ends of a scale are exactly 0 and 1.
        """
        low, high = ends[0], ends[0] + ends[1]
        value = min(high, max(low, low + share * (high - low)))
        scores = [
            items(exporter(), value=float(each), scale=(low, high))["value"]["scores"]["rating"]
            for each in (low, value, high)
        ]

        assert (0, 1, True) == (scores[0], scores[2], 0 <= scores[1] <= 1)

    @pytest.mark.parametrize(("source", "expected"), [("human", "external"), ("llm", "api"), ("code", "api")])
    def test_the_source_is_in_braintrusts_words(self, source: Any, expected: str) -> None:
        """
        A person is external; a model and a program are the API.
        """
        (part,) = exporter().parts(record(value=True, source=source))

        assert expected == part.body["source"]

    @pytest.mark.parametrize(
        ("said", "more"),
        [
            ({"value": True}, {}),
            ({"value": True, "user_id": "u-1"}, {"user_id": "u-1"}),
            ({"value": "warm"}, {"rating": "warm"}),
            ({"value": ["warm", "short"]}, {"rating": ["warm", "short"]}),
            ({"value": True, "metadata": {"page": 3}}, {"page": 3}),
            ({"value": True, "metadata": {"feedback_id": "mine", "recorded_at": "then"}}, {}),
            ({"value": True, "metadata": {"user_id": "mine"}, "user_id": "u-1"}, {"user_id": "u-1"}),
            ({"name": "feedback_id", "value": "label"}, {}),
        ],
    )
    def test_the_audit_log_says_who_and_when(self, said: dict[str, Any], more: dict[str, Any]) -> None:
        """
        Metadata has the application's own, the labels, and the id, time and user that nothing overwrites.
        """
        (part,) = exporter().parts(record(**said))

        assert {"feedback_id": ID, "recorded_at": NOON_TEXT, **more} == part.body["metadata"]

    @pytest.mark.parametrize(
        ("said", "expected"),
        [
            ({"value": True, "comment": "c", "tags": ["t"]}, {"value": {"metadata"}, "comment": set(), "tags": set()}),
            ({"comment": "c", "tags": ["t"]}, {"comment": {"metadata"}, "tags": set()}),
            ({"tags": ["t"]}, {"tags": {"metadata"}}),
        ],
    )
    def test_metadata_is_answered_for_once(self, said: dict[str, Any], expected: dict[str, set[str]]) -> None:
        """
        Every item has the metadata, and the first part carries it: other metadata repeats no comment.
        """
        parts = exporter().parts(record(user_id="u", metadata={"m": 1}, correction=None, **said))

        assert {kind: {kind, "user_id"} | more for kind, more in expected.items()} == {
            part.kind: set(part.carries) for part in parts
        }
        assert [1] * len(parts) == [part.body["metadata"]["m"] for part in parts]

    @pytest.mark.parametrize("value", [True, 0.5, "warm"])
    def test_a_value_part_carries_value_and_correction(self, value: object) -> None:
        """
        Label, score and expected are carried by one part.
        """
        (part,) = exporter().parts(record(value=value, correction="x"))

        assert {"value", "correction"} == part.carries


class TestLabels:
    """Labels go to the audit log, and where a table says so, further."""

    def test_a_label_is_in_the_audit_log_only(self) -> None:
        """
        Without a table a label is in the metadata, and is neither a score nor a tag.
        """
        (part,) = exporter().parts(record(name="tone", value="warm"))

        assert ("value", "warm") == (part.kind, part.body["metadata"]["tone"])
        assert {"value": {}} == items(exporter(), name="tone", value="warm")

    def test_a_table_turns_a_label_into_a_score(self) -> None:
        """
        A label that the table has is a score under the judgement's name; one that it has not stays without.
        """
        made = exporter(labels={"tone": {"warm": 1, "cold": 0.0}})

        assert {"tone": 1} == items(made, name="tone", value="warm")["value"]["scores"]
        assert {"tone": 0.0} == items(made, name="tone", value="cold")["value"]["scores"]
        assert "scores" not in items(made, name="tone", value="odd")["value"]
        assert "scores" not in items(made, name="tone", value=["warm", "cold"])["value"]
        assert "scores" not in items(made, name="mood", value="warm")["value"]

    @pytest.mark.parametrize(("value", "tags"), [("billing", ["t", "billing"]), (["a", "t"], ["t", "a"])])
    def test_labels_go_among_the_tags(self, value: Any, tags: list[str]) -> None:
        """
        Labels of a name that goes to the tags stand behind the judgement's own tags, each once.
        """
        found = items(exporter(labels={"topic": "tags"}), name="topic", value=value, tags=["t"])

        assert tags == found["tags"]["tags"]

    def test_another_persons_label_counts_by_the_table_as_well(self) -> None:
        """
        Taking a judgement back leaves the score that the table gives to the label that still stands.
        """
        made = exporter(labels={"tone": {"warm": 1, "cold": 0}})
        mine = made.parts(record(name="tone", value="warm"))
        requests, _ = play(made.exchange(taken_back(mine, record(name="tone", value="cold"))), answer())

        assert [[{"tone": 0}]] == [[item["scores"] for item in batch] for batch in batches(requests)]

    @pytest.mark.parametrize(
        "place",
        ["tag", None, ["tags"], {"warm": 1.5}, {"warm": -0.1}, {"warm": "1"}, {"warm": True}, {"warm": None}, {1: 1}],
    )
    def test_a_place_that_is_none_is_refused(self, place: Any) -> None:
        """
        Labels go to the tags, or to scores between 0 and 1, and the error names which name was wrong.
        """
        with pytest.raises(ConfigurationError, match=r"labels\['tone'\]"):
            exporter(labels={"tone": place})


class TestRows:
    def test_the_row_is_the_span_and_of_tags_the_root(self) -> None:
        """
        A row's id is the span's; tags go where the list of traces filters.
        """
        parts = exporter().parts(record(value=True, comment="c", tags=["t"]))

        assert [SPAN, SPAN, ROOT] == [part.body["id"] for part in parts]

    @pytest.mark.parametrize(
        ("target", "tags_on", "expected"),
        [
            (handle(), "root", ROOT),
            (handle(), "span", SPAN),
            (handle(root=""), "root", SPAN),
            (handle(braintrust_row_id="row-1"), "root", "row-1"),
            (handle(root="", braintrust_row_id="row-1"), "root", "row-1"),
        ],
    )
    def test_where_tags_go(self, target: Any, tags_on: Any, expected: str) -> None:
        """
        To the root or the span as configured; of rows with ids of their own the root's is not known.
        """
        (part,) = exporter(tags_on=tags_on).parts(record(tags=["t"], target=target))

        assert expected == part.body["id"]

    def test_a_row_with_an_id_of_its_own(self) -> None:
        """
        Spans that Braintrust's SDK wrote are named by their row's id, since a span's id would make a stray row.
        """
        parts = exporter().parts(record(value=True, comment="c", target=handle(braintrust_row_id="row-1")))

        assert ["row-1", "row-1"] == [part.body["id"] for part in parts]

    @pytest.mark.parametrize(
        ("ended_at", "hold", "expected"),
        [
            (NOON - 5_000_000_000, 60_000, NOON + 55_000_000_000),
            (None, 60_000, NOON + 60_000_000_000),
            (NOON - 5_000_000_000, 0, NOON - 5_000_000_000),
            (0, 60_000, 60_000_000_000),
        ],
    )
    def test_feedback_is_held_until_the_span_has_arrived(self, ended_at: int | None, hold: int, expected: int) -> None:
        """
        The hold counts from the span's end, or from the acceptance where that is not known.
        """
        parts = exporter(hold_millis=hold).parts(
            record(value=True, comment="c", tags=["t"], target=handle(ended_at=ended_at))
        )

        assert [expected] * 3 == [part.not_before_unix_nano for part in parts]

    def test_the_spans_own_parent_wins(self) -> None:
        """
        The attribute `braintrust.parent` routes one span; the configured parent is for the others.
        """
        (routed,) = exporter().parts(record(value=True, target=handle(braintrust__parent=f"experiment_id:{OTHER}")))
        (plain,) = exporter().parts(record(value=True))

        assert (f"experiment_id:{OTHER}", PARENT) == (routed.route, plain.route)
        assert {"braintrust.parent": PARENT} == exporter().span_attributes
        assert {} == BraintrustExporter().span_attributes


class TestRoutes:
    @pytest.mark.parametrize(
        ("parent", "path"),
        [
            (PARENT, LOGS),
            (f"experiment_id:{UUID}", f"/v1/experiment/{UUID}/feedback"),
        ],
    )
    def test_each_kind_of_parent_has_its_path(self, parent: str, path: str) -> None:
        """
        Production traffic is project logs; experiments have a path of their own; the key is a bearer.
        """
        made = exporter(parent=parent, api_key=SECRET)
        (request,), results = play(made.exchange(made.parts(record(value=True))))

        assert ("POST", path, f"Bearer {SECRET}") == (
            request.method,
            request.url.path,
            request.headers["authorization"],
        )
        assert [Success("HTTP 200")] == results

    def test_a_projects_name_is_looked_up_once(self) -> None:
        """
        The id is asked for by the name before the first feedback, and remembered.
        """
        made = exporter(parent="project_name:my chat/ü")
        parts = made.parts(record(value=True))
        found = answer(200, {"objects": [{"id": OTHER, "name": "my chat"}, {"id": UUID, "name": "my chat/ü"}]})
        first, _ = play(made.exchange(parts), found, answer())
        second, _ = play(made.exchange(parts))

        assert (["/v1/project", LOGS], [LOGS]) == (paths(first), paths(second))
        assert ("GET", "my chat/ü") == (first[0].method, first[0].url.params["project_name"])

    @pytest.mark.parametrize(
        "objects",
        [
            [],
            [{"id": UUID, "name": "another"}],
            [{"id": "no-uuid", "name": "chat"}],
            [{"name": "chat"}],
            ["chat", None],
        ],
    )
    def test_an_unknown_project_pauses(self, objects: list[Any]) -> None:
        """
        A project that is not there yet buries nothing, and is asked for again.
        """
        made = exporter(parent="project_name:chat")
        parts = made.parts(record(value=True, comment="c"))
        requests, results = play(made.exchange(parts), answer(200, {"objects": objects}))
        later, _ = play(made.exchange(parts[:1]), answer(200, {"objects": [{"id": UUID, "name": "chat"}]}), answer())

        assert ["/v1/project"] == paths(requests)
        assert [PauseDestination] * 2 == [type(result) for result in results]
        assert ["/v1/project", LOGS] == paths(later)

    @pytest.mark.parametrize(
        "body", [b"no JSON", b"", b'{"objects"', [], {}, {"objects": None}, {"objects": 5}, "text"]
    )
    def test_an_answer_that_cannot_be_read_is_asked_for_again(self, body: object) -> None:
        """
        Garbage for an answer to a look-up is no reason to bury or to pause anything.
        """
        made = exporter(parent="project_name:chat")
        _, results = play(made.exchange(made.parts(record(value=True))), answer(200, body))

        assert [RetryableFailure("the project's id could not be looked up: HTTP 200, unreadable")] == results

    @pytest.mark.parametrize("status", [status for status in STATUSES if status >= 300])
    def test_a_look_up_that_fails_sinks_no_item(self, status: int) -> None:
        """
        What concerns the look-up is never an item's fault, and never unclear: no feedback was on its way.
        """
        means = STATUSES[status]
        expected = {PermanentFailure: PauseDestination, Unclear: RetryableFailure}.get(means, means)
        made = exporter(parent="project_name:chat", comments="at_most_once")
        _, results = play(made.exchange(made.parts(record(comment="c"))), answer(status))

        assert [expected] == [type(result) for result in results]

    @pytest.mark.parametrize("silence", [UNCLEAR, REFUSED])
    def test_silence_at_the_look_up_applied_nothing(self, silence: Any) -> None:
        """
        A comment that was never sent is not lost to the policy of sending it at most once.
        """
        made = exporter(parent="project_name:chat", comments="at_most_once")
        _, results = play(made.exchange(made.parts(record(comment="c"))), silence)

        assert [RetryableFailure(f"the project's id could not be looked up: {silence.result.reason}")] == results

    def test_a_look_up_that_was_not_tried_is_no_try_of_the_feedback(self) -> None:
        """
        Where an export took too long for a look-up, the items have made no attempt.
        """
        late = RetryableFailure("this export took too long already", is_tried=False)
        made = exporter(parent="project_name:chat")
        _, results = play(made.exchange(made.parts(record(value=True))), NoAnswer(late))

        reason = f"the project's id could not be looked up: {late.reason}"
        assert [RetryableFailure(reason, is_tried=False)] == results

    def test_so_many_projects_are_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        Names come from spans, and may be as many as there are tenants: what is remembered of them has an end.
        """
        monkeypatch.setattr(braintrust, "MAX_PROJECTS", 2)
        made = exporter()

        def asked_for(name: str) -> int:
            own = made.parts(record(value=True, target=handle(braintrust__parent=f"project_name:{name}")))
            found = answer(200, {"objects": [{"id": UUID, "name": name}]})
            return paths(play(made.exchange(own), found, answer())[0]).count("/v1/project")

        assert [1, 1, 0, 1, 0, 1] == [asked_for(name) for name in ("a", "b", "a", "c", "c", "a")]

    def test_a_project_that_was_made_anew_is_looked_up_again(self) -> None:
        """
        Where the id that a name stood for is none any more, the name is asked for once more.
        """
        made = exporter(parent="project_name:chat")
        parts = made.parts(record(value=True))
        old = answer(200, {"objects": [{"id": OTHER, "name": "chat"}]})
        new = answer(200, {"objects": [{"id": UUID, "name": "chat"}]})
        _, (gone,) = play(made.exchange(parts), old, answer(400, NO_SUCH))
        requests, (result,) = play(made.exchange(parts), new, answer())

        assert PauseDestination is type(gone)
        assert (["/v1/project", LOGS], Success) == (paths(requests), type(result))

    @pytest.mark.parametrize("said", [400, 403])
    def test_a_place_that_is_not_there_buries_nothing(self, said: int) -> None:
        """
        An unknown experiment or project, and one that the key may not write to, pauses: no item is to blame.
        """
        many = rows(4)
        requests, results = play(exporter().exchange(many), answer(said, NO_SUCH))

        assert 1 == len(requests)
        assert {PauseDestination} == set(map(type, results))
        assert "somebody" not in repr(results)

    @pytest.mark.parametrize("said", [400, 403])
    def test_a_spans_own_place_that_is_not_there_concerns_the_span(self, said: int) -> None:
        """
        It waits for its project for some hours and pauses nobody else; a wrong key pauses everybody.
        """
        own = exporter().parts(record(value=True, target=handle(braintrust__parent=f"project_id:{OTHER}")))
        mine = [*own, *rows(1)]
        _, (theirs, ours) = play(exporter().exchange(mine), answer(said, NO_SUCH), answer())
        _, (unauthorized, _) = play(exporter().exchange(mine), answer(401), answer())

        assert RetryableFailure is type(theirs)
        assert (GRACE_MILLIS, True) == (theirs.give_up_after_millis, theirs.is_tried)
        assert "the span's own parent" in theirs.reason
        assert [Success, PauseDestination] == [type(ours), type(unauthorized)]

    @pytest.mark.parametrize("found", [answer(200, {"objects": []}), answer(400), answer(403)])
    def test_a_spans_own_project_that_is_not_known_by_name_concerns_the_span(self, found: httpx.Response) -> None:
        """
        A tenant whose project has no span yet delays no other tenant.
        """
        own = exporter().parts(record(value=True, target=handle(braintrust__parent="project_name:new")))
        _, (theirs, ours) = play(exporter().exchange([*own, *rows(1)]), found, answer())

        assert RetryableFailure is type(theirs)
        assert GRACE_MILLIS == theirs.give_up_after_millis
        assert Success is type(ours)

    def test_words_that_somebody_else_wrote_prove_nothing(self) -> None:
        """
        A refusal that quotes a comment which says "does not exist" is about the item, as any other 400 is.
        """
        parts = exporter().parts(record(comment="The city does not exist."))
        _, (result,) = play(exporter().exchange(parts), answer(400, {"message": "bad: The city does not exist."}))

        assert PermanentFailure is type(result)

    @pytest.mark.parametrize("parent", ["", "chat", "project_id:chat", "experiment_id:", "project_name:", "other:1"])
    def test_a_spans_parent_of_another_form_concerns_the_span(self, parent: str) -> None:
        """
        A span that names a parent of no known form is a dead letter and delays no other.
        """
        part = replace(exporter().parts(record(value=True))[0], route=parent)
        requests, results = play(exporter().exchange([part, *rows(1)]))

        assert ([LOGS], [PermanentFailure, Success]) == (paths(requests), [type(result) for result in results])


class TestRaters:
    """`per_rater="child"`: each judgement's score is a row of its own."""

    def test_a_judgement_is_a_row_below_the_spans(self) -> None:
        """
        Its id is the judgement's, its parent the span, its trace the span's; comment and tags stay where they are.
        """
        made = exporter(per_rater="child")
        said = record("relevance", 4, scale=(1, 5), correction="Paris", comment="c", tags=["t"], user_id="u-1")
        requests, results = play(made.exchange(made.parts(said)))

        assert [INSERT, LOGS] == paths(requests)
        (row,) = asked(requests[0])[1]["events"]
        assert {
            "id": ID,
            "span_id": ID,
            "root_span_id": TRACE,
            "span_parents": [SPAN],
            "created": NOON_TEXT,
            "span_attributes": {"name": "relevance", "type": "review"},
            "scores": {"relevance": 0.75},
            "expected": "Paris",
            "metadata": {"feedback_id": ID, "recorded_at": NOON_TEXT, "user_id": "u-1", "source": "external"},
        } == row
        assert [{"comment": "c"}, {"tags": ["t"]}] == [
            {name: item[name] for name in ("comment", "tags") if name in item}
            for request in requests[1:]
            for item in asked(request)[1]["feedback"]
        ]
        assert [Success("HTTP 200")] * 3 == results

    def test_a_label_is_a_row_without_a_score(self) -> None:
        """
        What has no score is in the row's metadata.
        """
        (part,) = exporter(per_rater="child").parts(record("tone", "warm"))

        assert ("warm", False) == (part.body["metadata"]["tone"], "scores" in part.body)

    def test_what_the_application_sets_is_in_the_row(self) -> None:
        """
        Scores, expected output, metadata and source of `native` are the row's; a source is no field of a row.
        """
        native = {"scores": {"x": 0.5}, "metadata": {"a": 1}, "source": "app"}
        (part,) = exporter(per_rater="child").parts(record(value=True, native={"braintrust": native}))

        assert {"x": 0.5, "rating": 1} == part.body["scores"]
        assert (1, "app") == (part.body["metadata"]["a"], part.body["metadata"]["source"])
        assert "source" not in part.body

    def test_a_row_of_ones_own_waits_for_no_span(self) -> None:
        """
        No span overwrites it, and none of somebody else's: it is neither held back nor kept in line.
        """
        ended = record(value=True, comment="c", target=handle(ended_at=NOON))
        held = {part.kind: part.not_before_unix_nano for part in exporter(per_rater="child").parts(ended)}

        assert (0, True) == (held["value"], held["comment"] > NOON)
        assert [False, True] == [exporter(per_rater=rows).orders_by_call for rows in ("child", "span")]

    def test_a_changed_mind_writes_the_row_anew(self) -> None:
        """
        The same id, whole: nothing of the first word is merged into it, and nobody else's score is touched.
        """
        made = exporter(per_rater="child")
        first, second = (record(value=value, correction=c) for value, c in ((True, "x"), (False, None)))
        requests, _ = play(made.exchange(changed(made, first, second)))

        (row,) = asked(requests[0])[1]["events"]
        assert ([INSERT], ID, {"rating": 0}) == (paths(requests), row["id"], row["scores"])
        assert {"expected", "_is_merge"}.isdisjoint(row)

    @pytest.mark.parametrize("said", [{"value": True}, {"name": "tone", "value": "warm"}, {"correction": "x"}])
    @pytest.mark.parametrize("stands", [None, record(value=False)])
    def test_what_is_taken_back_is_gone(self, said: dict[str, Any], stands: Any) -> None:
        """
        The row is deleted, whatever it said and whatever others say: the answer promises nothing that is not known.
        """
        made = exporter(per_rater="child")
        requests, results = play(made.exchange(taken_back(made.parts(record(**said)), stands)))

        assert [(INSERT, {"events": [{"id": ID, "_object_delete": True}]})] == [asked(each) for each in requests]
        assert [Success("HTTP 200")] == results

    def test_rows_and_feedback_fail_by_themselves(self) -> None:
        """
        What one refuses for an item sinks nothing of the other.
        """
        made = exporter(per_rater="child")
        requests, results = play(made.exchange(made.parts(record(value=True, comment="c"))), answer(400), answer())

        assert ([INSERT, LOGS], [PermanentFailure, Success]) == (paths(requests), list(map(type, results)))

    @settings(max_examples=200)
    @given(judgement=judgements())
    def test_every_row_keeps_to_the_contract(self, judgement: Any) -> None:
        """
        Whatever is said, changed or taken back, each row is valid by the published contract.
        """
        made = exporter(per_rater="child")
        parts = made.parts(judgement)
        requests, _ = play(made.exchange([*parts, *changed(made, judgement, judgement), *taken_back(parts)]))
        validator = contract("braintrust", "/v1/project_logs/{project_id}/insert")
        for request in requests:
            if request.url.path == INSERT:
                assert [] == list(validator.iter_errors(asked(request)[1]))


class TestRowCheck:
    """`check_rows=True`: feedback goes only to a row that is there."""

    FOUND = answer(200, {"data": [{"id": SPAN}]})
    NONE = answer(200, {"data": []})

    def test_a_row_is_asked_for_once_and_then_gets_its_feedback(self) -> None:
        """
        By the trace and the span, in the very project; what was found is not asked for again.
        """
        made = exporter(check_rows=True)
        parts = made.parts(record(value=True))
        first, results = play(made.exchange(parts), self.FOUND, answer())
        second, _ = play(made.exchange(parts))

        assert (["/btql", LOGS], [LOGS]) == (paths(first), paths(second))
        assert {
            "query": f"select: id | from: project_logs('{UUID}') spans | "
            f"filter: root_span_id = '{TRACE}' AND span_id = '{SPAN}' | limit: 1",
            "fmt": "json",
        } == asked(first[0])[1]
        assert [Success("HTTP 200")] == results

    @pytest.mark.parametrize(
        ("options", "said", "condition"),
        [
            ({}, {"tags": ["t"]}, f"root_span_id = '{TRACE}' AND span_id = '{ROOT}'"),
            ({"tags_on": "span"}, {"tags": ["t"]}, f"root_span_id = '{TRACE}' AND span_id = '{SPAN}'"),
            ({"per_rater": "child"}, {"value": True}, f"root_span_id = '{TRACE}' AND span_id = '{SPAN}'"),
            ({}, {"value": True, "target": handle(braintrust_row_id="row-1")}, "id = 'row-1'"),
        ],
    )
    def test_the_row_that_is_asked_for_is_the_one_that_gets_it(
        self, options: dict[str, Any], said: dict[str, Any], condition: str
    ) -> None:
        """
        Tags are about the root's row, a row of one's own about its parent's, what Braintrust's SDK wrote has an id.
        """
        made = exporter(check_rows=True, **options)
        requests, _ = play(made.exchange(made.parts(record(**said))), self.FOUND, answer())

        assert f" filter: {condition} | " in asked(requests[0])[1]["query"]

    def test_an_experiments_rows_are_asked_for_there(self) -> None:
        """
        What is called project_logs for a project is called experiment for one.
        """
        made = exporter(check_rows=True, parent=f"experiment_id:{UUID}")
        requests, _ = play(made.exchange(made.parts(record(value=True))), self.FOUND, answer())

        assert f"from: experiment('{UUID}') spans" in asked(requests[0])[1]["query"]

    def test_without_its_row_a_judgement_waits(self) -> None:
        """
        Nothing is sent, so that there is no stray row; after some hours it is a dead letter, and others go meanwhile.
        """
        made = exporter(check_rows=True, options=HTTPOptions(clock=FakeClock()))
        parts = made.parts(record(value=True, comment="c"))
        requests, (value, comment) = play(made.exchange(parts), self.NONE)

        assert ["/btql"] == paths(requests)
        assert RetryableFailure is type(value)
        assert (GRACE_MILLIS, True) == (value.give_up_after_millis, value.is_tried)
        assert RetryableFailure("not tried after: " + value.reason, is_tried=False) == comment

    def test_questions_keep_to_braintrusts_pace(self) -> None:
        """
        The second row is asked for three seconds later; until then its feedback has made no attempt.
        """
        clock = FakeClock()
        made = exporter(check_rows=True, options=HTTPOptions(clock=clock))
        requests, results = play(made.exchange(rows(3)), self.FOUND, answer())
        clock.advance(seconds=2.5)
        early, (soon,) = play(made.exchange(rows(3)[1:2]), self.FOUND, answer())
        clock.advance(seconds=0.5)
        late, again = play(made.exchange(rows(3)[:2]), self.FOUND, answer())

        assert ["/btql", LOGS] == paths(requests)
        assert [1] == [len(batch) for batch in batches(requests[1:])]
        assert [Success, RetryableFailure, RetryableFailure] == list(map(type, results))
        assert {(3_000, False)} == {(each.retry_after_millis, each.is_tried) for each in results[1:]}
        assert ([], 500, int) == (early, soon.retry_after_millis, type(soon.retry_after_millis))
        assert (["/btql", LOGS], {Success}) == (paths(late), set(map(type, again)))

    @pytest.mark.parametrize("status", [status for status in STATUSES if status >= 300])
    def test_a_question_that_fails_sinks_no_item(self, status: int) -> None:
        """
        What concerns the question is never an item's fault, and never unclear: no feedback was on its way.
        """
        means = STATUSES[status]
        expected = {PermanentFailure: PauseDestination, Unclear: RetryableFailure}.get(means, means)
        made = exporter(check_rows=True, comments="at_most_once")
        _, results = play(made.exchange(made.parts(record(comment="c"))), answer(status))

        assert [expected] == [type(result) for result in results]

    @pytest.mark.parametrize("body", [b"not JSON", [], {}, {"data": None}, {"data": "row"}])
    def test_an_answer_that_cannot_be_read_is_asked_for_again(self, body: object) -> None:
        """
        Garbage says neither that the row is there nor that it is not.
        """
        made = exporter(check_rows=True)
        requests, results = play(made.exchange(made.parts(record(value=True))), answer(200, body))

        assert ["/btql"] == paths(requests)
        assert [RetryableFailure("the row could not be looked up: HTTP 200, unreadable")] == results

    @pytest.mark.parametrize("silence", [UNCLEAR, REFUSED])
    def test_silence_at_the_question_applied_nothing(self, silence: Any) -> None:
        """
        A comment that was never sent is not lost to the policy of sending it at most once.
        """
        made = exporter(check_rows=True, comments="at_most_once")
        _, results = play(made.exchange(made.parts(record(comment="c"))), silence)

        assert [RetryableFailure(f"the row could not be looked up: {silence.result.reason}")] == results

    @pytest.mark.parametrize("row", ["a' OR id = 'b", "rangée-é", "a b"])
    def test_a_row_that_cannot_be_asked_for_is_sent_to(self, row: str) -> None:
        """
        An id with a quotation mark, say, stands in no query: nobody's row is found by it.
        """
        made = exporter(check_rows=True)
        target = handle(braintrust_row_id=row)
        requests, _ = play(made.exchange(made.parts(record(value=True, target=target))))

        assert [LOGS] == paths(requests)

    def test_so_many_rows_are_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        What is remembered has an end: at worst a row is asked for once more.
        """
        monkeypatch.setattr(_braintrust_rows, "MAX_ROWS", 2)
        seen = _braintrust_rows.RowCheck(FakeClock())
        for row in ("a", "b", "c"):
            seen.see(row)

        assert [False, False, True] == [seen.is_seen(row) for row in ("a", "b", "c")]

    def test_a_refused_batch_asks_no_second_time(self) -> None:
        """
        The halves of a refused batch are of rows that have been found.
        """
        clock = FakeClock()
        made = exporter(check_rows=True, options=HTTPOptions(clock=clock))
        for part in rows(2):
            play(made.exchange([part]), self.FOUND, answer())
            clock.advance(seconds=3)
        requests, results = play(made.exchange(rows(2)), answer(400), answer(400), answer())

        assert [LOGS] * 3 == paths(requests)
        assert [PermanentFailure, Success] == list(map(type, results))


class TestBatches:
    def test_a_hundred_rows_are_one_request(self) -> None:
        """
        Up to 100 items for one place go together.
        """
        requests, results = play(exporter().exchange(rows(205)))

        assert [100, 100, 5] == [len(batch) for batch in batches(requests)]
        assert [Success("HTTP 200")] * 205 == results

    def test_a_row_is_in_a_request_once(self) -> None:
        """
        A score, a comment and tags of many rows are three requests, in that order, each row once in each.
        """
        made = exporter(tags_on="span")
        parts = [
            part
            for number in range(1, 51)
            for part in made.parts(record(value=True, comment="c", tags=["t"], target=handle(span_id=f"{number:016x}")))
        ]
        requests, _ = play(made.exchange(parts))

        assert [{"scores"}, {"comment"}, {"tags"}] == [
            {name for item in batch for name in item if name in ("scores", "comment", "tags")}
            for batch in batches(requests)
        ]
        assert [50, 50, 50] == [len({item["id"] for item in batch}) for batch in batches(requests)]

    def test_a_request_stays_below_a_megabyte(self) -> None:
        """
        Long comments are spread over requests; one that is too long alone goes alone.
        """
        # Four of them are between a megabyte and a mebibyte.
        parts = [*rows(5, value=None, comment="c" * 255_000), *rows(1, value=None, comment="c" * (MEGABYTE + 1))]
        requests, _ = play(exporter().exchange(parts))

        assert [3, 2, 1] == [len(batch) for batch in batches(requests)]
        assert [True, True, False] == [len(request.content) <= MEGABYTE for request in requests]

    @given(
        sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 400_000), st.sampled_from("ab")), max_size=20),
    )
    def test_batches_keep_order_and_limits(self, sizes: list[tuple[int, int, str]]) -> None:
        """
        However items are spread, each is sent once, to its place, within the limits, and a row's items in order.
        """
        made = exporter()
        parts = [
            replace(
                made.parts(record(comment="c" * size, target=handle(span_id=f"{row:016x}")))[0],
                route=PARENT if place == "a" else f"experiment_id:{OTHER}",
            )
            for row, size, place in sizes
        ]
        requests, results = play(made.exchange(parts))
        sent = [(request.url.path, item) for request in requests for item in asked(request)[1]["feedback"]]

        assert len(parts) == len(results) == len(sent)
        assert all(len(request.content) <= MEGABYTE for request in requests)
        for batch in batches(requests):
            assert len(batch) == len({item["id"] for item in batch}) <= 100
        for place, path in (("a", LOGS), ("b", f"/v1/experiment/{OTHER}/feedback")):
            for row in range(1, 5):
                assert [size for each, size, at in sizes if (each, at) == (row, place)] == [
                    len(item["comment"]) for at, item in sent if (at, item["id"]) == (path, f"{row:016x}")
                ]

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_one_bad_item_sinks_no_other(self, status: int) -> None:
        """
        A request that is refused is halved until the bad item stands alone.
        """

        def pick(request: httpx.Request) -> httpx.Response:
            bad = any(item["id"] == f"{7:016x}" for item in asked(request)[1]["feedback"])
            return answer(status if bad else 200)

        requests, results = play(exporter().exchange(rows(10)), pick)

        assert [6] == [number for number, result in enumerate(results) if not isinstance(result, Success)]
        assert isinstance(results[6], PermanentFailure)
        assert len(requests) <= 9

    def test_silence_in_a_half_is_that_halfs(self) -> None:
        """
        While a request is halved, no answer to one half leaves the other its own.
        """
        _, results = play(exporter().exchange(rows(4)), answer(400), UNCLEAR, answer(200))

        assert [UNCLEAR.result] * 2 + [Success("HTTP 200")] * 2 == results

    @pytest.mark.parametrize("said", [answer(429), answer(503), answer(401), UNCLEAR, REFUSED])
    def test_a_rows_later_feedback_does_not_overtake(self, said: Any) -> None:
        """
        After a failure that may pass nothing more goes to that place: an older rating never lands after a newer one.
        """
        made = exporter()
        parts = [*made.parts(record(value=True, id=OTHER)), *made.parts(record(value=False))]
        requests, results = play(made.exchange(parts), said, answer(200))

        assert [LOGS] == paths(requests)
        assert all(isinstance(result, (RetryableFailure, Unclear, PauseDestination)) for result in results)

    def test_a_refused_item_stops_nothing(self) -> None:
        """
        What the vendor refuses for good lets a row's later feedback pass.
        """
        made = exporter()
        parts = [*made.parts(record(value=True, id=OTHER)), *made.parts(record(value=False))]
        _, results = play(made.exchange(parts), answer(400), answer(200))

        assert [PermanentFailure, Success] == [type(result) for result in results]

    def test_one_place_that_fails_delays_no_other(self) -> None:
        """
        A project that is unknown leaves the other projects' feedback on its way.
        """
        made = exporter(parent="project_name:gone")
        routed = [replace(part, route=PARENT) for part in rows(1)]
        requests, results = play(
            made.exchange([*made.parts(record(value=True)), *routed]), answer(200, {"objects": []}), answer(200)
        )

        assert ["/v1/project", LOGS] == paths(requests)
        assert [PauseDestination, Success] == [type(result) for result in results]


class TestAnswers:
    @pytest.mark.parametrize(("status", "expected"), STATUSES.items())
    def test_each_status_has_its_result(self, status: int, expected: type[Result]) -> None:
        """
        Braintrust's statuses mean what the shared table says.
        """
        made = exporter()
        _, results = play(made.exchange(made.parts(record(value=True))), answer(status))

        assert [expected] == [type(result) for result in results]

    @pytest.mark.parametrize(
        ("status", "hint"),
        [(400, "cannot see"), (401, "not valid"), (403, "may not write"), (404, "base URL"), (421, "data plane")],
    )
    def test_a_reason_says_what_may_be_wrong(self, status: int, hint: str) -> None:
        """
        Bodies stay unread, since one has an e-mail address: the hint is ours, the request id theirs.
        """
        made = exporter()
        body = {"message": "user somebody@example.com has no access"}
        _, (result,) = play(
            made.exchange(made.parts(record(value=True))), answer(status, body, x_bt_internal_trace_id="bt-1")
        )

        assert (True, True, False) == (hint in result.reason, "bt-1" in result.reason, "somebody" in result.reason)

    @pytest.mark.parametrize("said", [answer(500), answer(503, retry_after="5"), UNCLEAR])
    def test_a_comment_that_may_have_arrived_follows_its_policy(self, said: Any) -> None:
        """
        At least once it is tried again, at most once it becomes a dead letter; a score is tried again either way.
        """
        parts = exporter().parts(record(comment="c"))
        (again,) = play(exporter().exchange(parts), said)[1]
        (never,) = play(exporter(comments="at_most_once").exchange(parts), said)[1]
        (score,) = play(exporter(comments="at_most_once").exchange(exporter().parts(record(value=True))), said)[1]

        assert [Unclear, PermanentFailure, Unclear] == [type(result) for result in (again, never, score)]
        assert "at most once" in never.reason

    @pytest.mark.parametrize("said", [answer(429), answer(408), REFUSED])
    def test_a_comment_that_did_not_arrive_is_tried_again(self, said: Any) -> None:
        """
        Where it is proven that nothing was applied, no policy stands in the way.
        """
        made = exporter(comments="at_most_once")
        (result,) = play(made.exchange(made.parts(record(comment="c"))), said)[1]

        assert isinstance(result, RetryableFailure)

    @pytest.mark.parametrize("action", ["create", "replace"])
    def test_a_comment_that_may_have_arrived_before_is_sent_at_most_once(self, action: Any) -> None:
        """
        Where nobody knows how an earlier try ended, the policy decides before anything is sent; the rest goes.
        """
        parts = [
            replace(part, action=action, may_have_arrived=True)
            for part in exporter().parts(record(value=True, comment="c", tags=["t"]))
        ]
        never_asked, never = play(exporter(comments="at_most_once").exchange(parts))
        again_asked, again = play(exporter().exchange(parts))

        refused = PermanentFailure("it may have arrived, and comments are sent at most once")
        assert [Success("HTTP 200"), refused, Success("HTTP 200")] == never
        assert [Success("HTTP 200")] * 3 == again
        assert [0, 1] == [
            sum("comment" in item for batch in batches(requests) for item in batch)
            for requests in (never_asked, again_asked)
        ]

    def test_a_comment_that_did_not_arrive_before_is_sent(self) -> None:
        """
        Where it is known that nothing was applied, sending it again is still sending it once.
        """
        made = exporter(comments="at_most_once")
        requests, results = play(made.exchange(made.parts(record(comment="c"))))

        assert ([LOGS], [Success("HTTP 200")]) == (paths(requests), results)

    @pytest.mark.parametrize("how", ["no answer", "a worker that ended"])
    def test_a_comment_that_may_have_arrived_is_not_repeated_by_a_change_of_mind(self, how: str) -> None:
        """
        Who changes their thumb and leaves the comment as it was has not asked for it twice.
        """
        clock = FakeClock()
        comments: list[str] = []

        def vendor(request: httpx.Request) -> httpx.Response:
            said = [item["comment"] for item in asked(request)[1]["feedback"] if "comment" in item]
            comments.extend(said)
            if said and how == "no answer":
                raise httpx.ReadTimeout("lost", request=request)
            return httpx.Response(200, json={})

        made = exporter(
            api_key=SECRET,
            comments="at_most_once",
            hold_millis=0,
            options=HTTPOptions(transport=httpx.MockTransport(vendor), clock=clock),
        )
        store = MemoryStore(clock=clock)
        deliverer = Deliverer(
            store,
            made,
            policy=RetryPolicy(),
            clock=clock,
            rng=random.Random(1),
            is_released=lambda handle: True,
        )
        store.put(record(value=True, comment="c"), [made.name])
        if how == "a worker that ended":
            (lease,) = store.lease(made.name, limit=1, duration_millis=LEASE_MILLIS, by_call=True)
            made.export(made.parts(lease.record))
            clock.advance(millis=LEASE_MILLIS)
        deliverer.run_once()
        clock.advance(seconds=60)
        deliverer.run_once()
        store.put(record(value=False, comment="c"), [made.name])
        deliverer.run_once()
        made.shutdown()

        assert ["c"] == comments

    def test_the_judgements_of_a_span_are_delivered_in_their_order(self) -> None:
        """
        A row keeps one score for all who judge it, so the engine is told that order matters.
        """
        assert exporter().orders_by_call


class TestRetraction:
    @pytest.mark.parametrize("comments", ["at_least_once", "at_most_once"])
    @pytest.mark.parametrize("may_have_arrived", [False, True])
    def test_a_comment_is_never_taken_back(self, comments: Any, may_have_arrived: bool) -> None:
        """
        Whatever became of an earlier try: nothing is asked of Braintrust, and nothing is dead for it.
        """
        made = exporter(comments=comments)
        parts = [
            replace(part, may_have_arrived=may_have_arrived) for part in taken_back(made.parts(record(comment="c")))
        ]

        assert ([], [Skipped("Braintrust cannot take back comment")]) == play(made.exchange(parts))

    @pytest.mark.parametrize(
        ("stands", "expected"),
        [
            (None, None),
            (record(value=False, id=OTHER), 0),
            (record(value=4, scale=(1, 5), id=OTHER), 0.75),
            (record(value="warm", id=OTHER), None),
        ],
    )
    def test_a_score_gives_way_to_the_one_that_stands(self, stands: Any, expected: float | None) -> None:
        """
        A retraction writes the newest score of somebody else, or null, and says that it is a request.
        """
        made = exporter()
        (request,), (result,) = play(made.exchange(taken_back(made.parts(record(value=True)), stands)))

        (item,) = batches([request])[0]
        assert {
            "id": SPAN,
            "scores": {"rating": expected},
            "metadata": {"feedback_id": ID, "retracted": True},
            "source": "external",
        } == item
        assert (Success, True) == (type(result), "requested" in result.reason)

    def test_what_cannot_be_taken_back_is_said(self) -> None:
        """
        A label, a correction, a comment and tags stay, and no request is made for them.
        """
        made = exporter()
        parts = taken_back(made.parts(record(value="warm", correction="x", comment="c", tags=["t"])))
        requests, results = play(made.exchange(parts))

        assert [] == requests
        assert [Skipped(f"Braintrust cannot take back {kind}") for kind in ("value", "comment", "tags")] == results

    def test_a_correction_beside_a_score_stays(self) -> None:
        """
        The score is taken back, and the reason says that the correction is not.
        """
        made = exporter()
        _, (result,) = play(made.exchange(taken_back(made.parts(record(value=True, correction="x")))))

        assert "a correction cannot be taken back" in result.reason

    def test_a_retraction_that_fails_is_a_failure(self) -> None:
        """
        Only a success is called a request.
        """
        made = exporter()
        _, (result,) = play(made.exchange(taken_back(made.parts(record(value=True)))), answer(500))

        assert Unclear("HTTP 500") == result

    def test_the_others_are_sent_all_the_same(self) -> None:
        """
        Parts that cannot be taken back keep their place among the results.
        """
        made = exporter()
        gone = taken_back(made.parts(record(comment="c")))
        _, results = play(made.exchange([*rows(1), *gone, *rows(1)]))

        assert [Success, Skipped, Success] == [type(result) for result in results]

    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            ({"value": True}, {"value": False}, {"rating": 0}),
            ({"value": True}, {"value": "warm"}, {"rating": None}),
            ({"value": "warm"}, {"value": True}, {"rating": 1}),
            ({"name": "a", "value": True}, {"name": "b", "value": True}, {"a": None, "b": 1}),
        ],
    )
    def test_a_change_takes_back_what_is_no_longer_said(
        self, before: dict[str, Any], after: dict[str, Any], expected: dict[str, Any]
    ) -> None:
        """
        A judgement is replaced as a whole: a score that it has no more is null.
        """
        made = exporter()
        (request,), _ = play(made.exchange(changed(made, record(**before), record(**after, revision=1))))

        assert expected == batches([request])[0][0]["scores"]

    def test_a_change_without_any_score_has_none(self) -> None:
        """
        A changed comment or label says nothing of scores.
        """
        made = exporter()
        parts = changed(made, record(value="a", comment="c"), record(value="b", comment="d", revision=1))
        parts[0] = replace(parts[0], replaces=None)
        requests, _ = play(made.exchange(parts))

        assert [] == [item for batch in batches(requests) for item in batch if "scores" in item]


class TestContracts:
    @pytest.mark.parametrize("kind", SPECIMEN)
    @settings(max_examples=200)
    @given(judgement=judgements())
    def test_every_body_keeps_to_the_contract(self, kind: str, judgement: Any) -> None:
        """
        Whatever is said, changed or taken back, each request is valid by the published contract.
        """
        check_requests(kind, judgement, contract("braintrust", SPECIMEN[kind]))

    def test_every_body_keeps_to_braintrusts_own_page(self) -> None:
        """
        The same by the page that Braintrust publishes.
        """
        validator = published("braintrust", SPECIMEN["experiment_id"])

        @settings(max_examples=200)
        @given(judgement=judgements())
        def check(judgement: Any) -> None:
            check_requests("experiment_id", judgement, validator)

        check()


def check_requests(kind: str, judgement: Any, validator: Any) -> None:
    """Check each request that a judgement can lead to."""
    made = exporter(parent=f"{kind}:{UUID}")
    parts = made.parts(judgement)
    everything = [*parts, *changed(made, judgement, judgement), *taken_back(parts, judgement), *taken_back(parts)]
    requests, _ = play(made.exchange(everything))
    for request in requests:
        assert SPECIMEN[kind].format(**{kind: UUID}) == request.url.path
        assert [] == list(validator.iter_errors(asked(request)[1]))
        for item in asked(request)[1]["feedback"]:
            assert not any(isinstance(score, bool) for score in item.get("scores", {}).values())
            assert len(item.get("tags", [])) == len(set(item.get("tags", [])))


class TestNative:
    @pytest.mark.parametrize(
        ("native", "kind", "name", "expected"),
        [
            ({"scores": {"a": 0.5}}, "value", "scores", {"rating": 1, "a": 0.5}),
            ({"scores": {"rating": 0}}, "value", "scores", {"rating": 0}),
            ({"scores": {"a": None}}, "value", "scores", {"rating": 1, "a": None}),
            ({"expected": [1, {"b": None}]}, "value", "expected", [1, {"b": None}]),
            ({"expected": "Paris"}, "value", "expected", "Paris"),
            ({"source": "app"}, "value", "source", "app"),
            ({"comment": "Mine"}, "comment", "comment", "Mine"),
            ({"tags": ["a", "b", "a"]}, "tags", "tags", ["a", "b"]),
            (
                {"metadata": {"page": 3, "feedback_id": "mine"}},
                "value",
                "metadata",
                {"page": 3, "feedback_id": ID, "recorded_at": NOON_TEXT},
            ),
        ],
    )
    def test_each_published_field_can_be_set(
        self, native: dict[str, Any], kind: str, name: str, expected: object
    ) -> None:
        """
        A field is sent in the item that it belongs to.
        """
        parts = exporter().parts(record(value=True, correction="x", native={"braintrust": native}))

        assert [expected] == [part.body[name] for part in parts if part.kind == kind]

    def test_what_every_item_has_makes_no_item(self) -> None:
        """
        Metadata and source for a comment travel with the comment.
        """
        native = {"metadata": {"page": 3}, "source": "app"}
        (part,) = exporter().parts(record(comment="c", native={"braintrust": native}))

        assert ("comment", 3, "app") == (part.kind, part.body["metadata"]["page"], part.body["source"])

    @pytest.mark.parametrize(
        "native",
        [
            {"id": "row"},
            {"api_key": "x"},
            {"scores": {"a": 1.5}},
            {"scores": {"a": -0.1}},
            {"scores": {"a": True}},
            {"scores": {"a": "1"}},
            {"scores": [1]},
            {"comment": 1},
            {"comment": ""},
            {"comment": " "},
            {"metadata": []},
            {"source": "human"},
            {"tags": "a"},
            {"tags": [1]},
            {"tags": ["a", ""]},
        ],
    )
    def test_ids_and_wrong_types_are_refused(self, native: dict[str, Any]) -> None:
        """
        What is not published, or of another type, is refused before acceptance.
        """
        with pytest.raises(InvalidFeedbackError, match="native") as caught:
            exporter().parts(record(value=True, native={"braintrust": native}))

        assert caught.value.field.startswith(f"native.braintrust.{next(iter(native))}")


class TestConstructor:
    def test_arguments_win_over_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        Key, URL, parent and hold come from the environment where they are not given.
        """
        for name, value in {
            "BRAINTRUST_API_KEY": "key-1\n",
            "BRAINTRUST_API_URL": "https://api-eu.braintrust.dev/",
            "BRAINTRUST_PARENT": "project_name:chat",
            "OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS": "5",
        }.items():
            monkeypatch.setenv(name, value)

        assert [
            ("https://api-eu.braintrust.dev", "project_name:chat", 5, "Bearer key-1"),
            ("https://bt.internal", PARENT, 0, "Bearer key-2"),
        ] == [
            (made.base_url, made.parent, made.hold_millis, made.headers["authorization"])
            for made in (
                BraintrustExporter(),
                BraintrustExporter(PARENT, api_key="key-2", base_url="https://bt.internal", hold_millis=0),
            )
        ]

    def test_defaults(self) -> None:
        """
        The global data plane, a hold of a minute, comments at least once, tags on the root.
        """
        made = BraintrustExporter()

        assert ("https://api.braintrust.dev", "", 60_000, "at_least_once", "root") == (
            made.base_url,
            made.parent,
            made.hold_millis,
            made.comments,
            made.tags_on,
        )

    @pytest.mark.parametrize(
        "parent",
        [PARENT, f"experiment_id:{UUID.upper()}", "project_name:chat", "project_name:a:b", "project_name:ü x", ""],
    )
    def test_what_is_a_parent(self, parent: str) -> None:
        """
        One of three forms, blanks around it aside; nothing is no parent yet.
        """
        assert parent == check_parent(parent) == check_parent(f" {parent}\n")

    @pytest.mark.parametrize(
        "parent",
        [
            "chat",
            "project_name:",
            "project_name: ",
            "project_id:",
            "project_id:chat",
            "experiment_id:123",
            f"project_id:{{{UUID}}}",
            f"project_id:urn:uuid:{UUID}",
            f"dataset_id:{UUID}",
            "Project_Name:chat",
        ],
    )
    def test_what_is_no_parent(self, parent: str) -> None:
        """
        Anything else is refused when the exporter is made.
        """
        with pytest.raises(ConfigurationError) as caught:
            BraintrustExporter(parent)

        assert "BRAINTRUST_PARENT" == caught.value.setting

    @pytest.mark.parametrize("text", ["-1", "1.5", "soon", "٣"])
    def test_a_hold_is_a_whole_number(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        """
        A hold that is no number of milliseconds is refused.
        """
        monkeypatch.setenv("OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS", text)

        with pytest.raises(ConfigurationError) as caught:
            BraintrustExporter()

        assert "OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS" == caught.value.setting

    @pytest.mark.parametrize(
        ("setting", "given_value"),
        [
            ("per_rater", "both"),
            ("check_rows", 1),
            ("check_rows", "yes"),
            ("api_key", 3),
            ("base_url", 3),
            ("name", ""),
            ("name", None),
            ("options", 3),
            ("parent", 3),
            ("hold_millis", "a"),
            ("hold_millis", True),
            ("hold_millis", 1.5),
            ("hold_millis", -1),
            ("comments", "foo"),
            ("comments", None),
            ("tags_on", "x"),
            ("labels", 3),
            ("labels", {"tone": {"warm": "cold"}}),
        ],
    )
    def test_a_wrong_argument_is_refused_by_name(self, setting: str, given_value: Any) -> None:
        """
        What would fail later, or do nothing in silence, is refused when the exporter is made.
        """
        with pytest.raises(ConfigurationError) as caught:
            BraintrustExporter(**{setting: given_value})

        assert setting == caught.value.setting

    @pytest.mark.parametrize(
        ("make", "setting"),
        [
            (lambda: BraintrustExporter(PARENT), "BRAINTRUST_API_KEY"),
            (lambda: BraintrustExporter(api_key=SECRET), "BRAINTRUST_PARENT"),
        ],
    )
    def test_to_deliver_it_needs_a_key_and_a_parent(self, make: Callable[[], BraintrustExporter], setting: str) -> None:
        """
        Starting without one of them is refused, naming what to set.
        """
        with pytest.raises(ConfigurationError, match=setting) as caught:
            make().start()

        assert setting == caught.value.setting

    def test_a_key_that_no_header_holds_is_refused_by_its_variable(self) -> None:
        """
        Which of all the keys it is, and never the key.
        """
        with pytest.raises(ConfigurationError, match="BRAINTRUST_API_KEY") as caught:
            exporter(api_key=f"{SECRET}\u00e9")

        assert SECRET not in str(caught.value)

    def test_its_repr_has_no_key(self) -> None:
        """
        The repr names the exporter and its place.
        """
        assert "<BraintrustExporter name='braintrust' base_url='https://api.braintrust.dev'>" == repr(
            exporter(api_key=SECRET)
        )

    def test_a_body_is_json(self) -> None:
        """
        What a part says can be shown as text.
        """
        assert json.dumps([dict(part.body) for part in exporter().parts(record(value=("a",), tags=["t"]))])
