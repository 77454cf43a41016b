"""orq's newer API, `OrqExporter(api="annotations")`: a span's annotations, known by their keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from exporter_bench import (
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
    play,
    record,
    taken_back,
)
from hypothesis import given, settings
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_feedback as of
from otel_feedback import OrqExporter, Part
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import PauseDestination, Result, RetryableFailure, Success
from otel_feedback.sandbox import Fault, Sandbox, Switches
from otel_feedback.testing import ExporterContract

if TYPE_CHECKING:
    import httpx

PLACE = f"/v2/traces/{TRACE}/spans/{SPAN}/annotation"
SPECIMEN = "/v2/traces/{trace_id}/spans/{span_id}/annotation"


def exporter(**options: Any) -> OrqExporter:
    return OrqExporter(api="annotations", **options)


def bodies(made: OrqExporter, **said: Any) -> dict[str, Any]:
    """Answer the body of each part of a judgement."""
    return {part.kind: part.body for part in made.parts(record(**said))}


def calls(requests: list[httpx.Request]) -> list[tuple[str, str, Any]]:
    """Answer what was asked: method, path and body."""
    return [(request.method, *asked(request)) for request in requests]


def keyed(key: str, value: Any, **more: Any) -> dict[str, Any]:
    """Write a body with one annotation."""
    return {"annotations": [{"key": key, "value": value}], **more}


class TestContract(ExporterContract):
    secret = SECRET

    def answered(self, status: int) -> OrqExporter:
        made = exporter(api_key=SECRET, options=answering(status))
        made.start()
        return made

    @pytest.fixture
    def exporter(self) -> Iterator[OrqExporter]:
        made = self.answered(200)
        yield made
        made.shutdown()


class TestMapping:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("rating", True, ("rating", ["good"])),
            ("thumb", False, ("rating", ["bad"])),
            ("toxic", True, ("toxic", True)),
            ("toxic", False, ("toxic", False)),
            ("relevance", 0.5, ("relevance", 0.5)),
            ("tone", "warm", ("tone", ["warm"])),
            ("defects", ["spelling"], ("defects", ["spelling"])),
        ],
    )
    def test_each_value_has_its_key(self, name: str, value: object, expected: tuple[str, object]) -> None:
        """
        A thumb is orq's rating; another boolean stays one, which /v2/feedback has no word for.
        """
        made = exporter(properties=("toxic", "relevance", "tone"))

        assert {"value": keyed(*expected)} == bodies(made, name=name, value=value)

    def test_a_declared_thumb_is_one_under_any_name(self) -> None:
        """
        What the application declared wins over the names that an exporter takes for thumbs.
        """
        thumb, flag = (
            replace(record(name, value=True), is_thumb=is_thumb)
            for name, is_thumb in (("liked", True), ("rating", False))
        )

        assert keyed("rating", ["good"]) == exporter().parts(thumb)[0].body
        assert [] == exporter().parts(flag)

    def test_each_part_is_an_annotation_of_the_span_by_its_user(self) -> None:
        """
        The correction and the comment have keys of their own; who judged is with each of them.
        """
        made = exporter(comment_property="remark")
        parts = made.parts(record(value=True, comment="c", correction={"a": 1}, user_id="u-1"))
        requests, results = play(made.exchange(parts))
        who = {"metadata": {"identity_id": "u-1"}}

        assert [
            ("POST", PLACE, keyed("rating", ["good"], **who)),
            ("POST", PLACE, keyed("correction", '{"a":1}', **who)),
            ("POST", PLACE, keyed("remark", "c", **who)),
        ] == calls(requests)
        assert [Success("HTTP 200")] * 3 == results
        assert {"value", "correction", "comment", "user_id"} == frozenset().union(*(part.carries for part in parts))

    def test_the_span_is_the_targets(self) -> None:
        """
        Not its root: a trace has many spans.
        """
        (part,) = exporter().parts(record(value=True, target=handle(span_id=ROOT)))

        assert part.route == f"/v2/traces/{TRACE}/spans/{ROOT}/annotation"

    def test_it_keeps_the_order_of_those_who_judge(self) -> None:
        """
        Under a key of a span the newest word may be the only one: it has to arrive last.
        """
        assert [True, False] == [OrqExporter(api=api).orders_by_call for api in ("annotations", "feedback")]

    def test_it_has_no_product(self) -> None:
        """
        An annotation is on a span, and a product is no part of it.
        """
        with pytest.raises(ConfigurationError) as caught:
            exporter(product="agents")
        assert ("an annotation has no product: leave product= out", "product") == (
            str(caught.value),
            caught.value.setting,
        )
        with pytest.raises(InvalidFeedbackError, match="cannot set product"):
            exporter().parts(record(value=True, native={"orq": {"product": "agents"}}))

    def test_an_unknown_api_is_refused(self) -> None:
        """
        There are two.
        """
        with pytest.raises(ConfigurationError, match="api must be one of feedback, annotations"):
            OrqExporter(api="v3")  # type: ignore[arg-type]


class TestKeys:
    @pytest.mark.parametrize(
        ("options", "key", "setting"),
        [
            ({"comment_property": "correction"}, "correction", "comment_property"),
            ({"comment_property": "remark", "properties": ("tone", "remark")}, "remark", "comment_property"),
            ({"properties": ("correction",)}, "correction", "properties"),
        ],
    )
    def test_a_key_for_two_parts_of_a_judgement_is_refused(
        self, options: dict[str, Any], key: str, setting: str
    ) -> None:
        """
        Under one key orq may keep the newest alone: the correction would go, and the receipt say that it was delivered.
        """
        with pytest.raises(ConfigurationError) as caught:
            exporter(**options)

        said = f"{key!r} would be the key of two parts of one judgement, and the second would replace the first"
        assert (f"{said}; choose another", setting) == (str(caught.value), caught.value.setting)

    @pytest.mark.parametrize(
        ("said", "key"), [({"correction": "Paris"}, "correction"), ({"comment": "too vague"}, "remark")]
    )
    def test_a_native_key_that_another_part_has_is_refused(self, said: dict[str, Any], key: str) -> None:
        """
        Before the judgement is accepted.
        """
        made = exporter(comment_property="remark")

        with pytest.raises(InvalidFeedbackError, match=f"key to '{key}'") as caught:
            made.parts(record(value=True, native={"orq": {"key": key}}, **said))
        assert "native.orq.key" == caught.value.field

    @pytest.mark.parametrize(
        ("said", "key"), [({"comment": "too vague"}, "correction"), ({"correction": "Paris"}, "remark")]
    )
    def test_the_key_of_a_part_that_a_judgement_has_not_is_free(self, said: dict[str, Any], key: str) -> None:
        """
        There is nothing that it would replace.
        """
        made = exporter(comment_property="remark")

        assert {"value": keyed(key, ["good"])}.items() <= bodies(
            made, value=True, native={"orq": {"key": key}}, **said
        ).items()

    def test_the_id_of_what_is_corrected_is_no_key(self) -> None:
        """
        It may be spelt as one.
        """
        native = {"orq": {"parent_annotation_id": "correction"}}

        assert {"value", "correction"} == bodies(exporter(), value=True, correction="Paris", native=native).keys()

    def test_ids_of_their_own_keep_parts_of_one_property_apart(self) -> None:
        """
        By /v2/feedback a comment may go under `correction`, the one text that every workspace has.
        """
        parts = OrqExporter(comment_property="correction").parts(record(comment="c", correction="Paris"))

        assert [("correction", "Paris"), ("correction", "c")] == [
            (part.body["property"], part.body["value"]) for part in parts
        ]
        assert 2 == len({part.body["id"] for part in parts})


class TestNative:
    @pytest.mark.parametrize(
        ("native", "expected"),
        [
            ({"key": "quality"}, {"key": "quality", "value": ["good"]}),
            ({"key": "quality", "value": False}, {"key": "quality", "value": False}),
            ({"value": ["bad"]}, {"key": "rating", "value": ["bad"]}),
            ({"parent_annotation_id": "a-1"}, {"parent_annotation_id": "a-1", "value": True}),
            (
                {"parent_annotation_id": "a-1", "explanation": "too mild", "value": 0.5},
                {"parent_annotation_id": "a-1", "value": 0.5, "explanation": "too mild"},
            ),
        ],
    )
    def test_each_published_field_can_be_set(self, native: dict[str, Any], expected: dict[str, Any]) -> None:
        """
        An annotation has a key, or it corrects what an evaluator said, and perhaps says why.
        """
        assert {"value": {"annotations": [expected]}} == bodies(exporter(), value=True, native={"orq": native})

    @pytest.mark.parametrize(
        ("native", "words"),
        [
            ({"key": "a", "parent_annotation_id": "b"}, "both key and parent_annotation_id"),
            ({"key": "a", "explanation": "e"}, "explanation only with parent_annotation_id"),
            ({"property": "a"}, "cannot set property"),
            ({"identity_id": "u"}, "cannot set identity_id"),
            ({"key": ""}, "cannot set key"),
            ({"value": {}}, "cannot set value"),
        ],
    )
    def test_what_contradicts_itself_is_refused(self, native: dict[str, Any], words: str) -> None:
        """
        Before the judgement is accepted, naming the field.
        """
        with pytest.raises(InvalidFeedbackError, match=words):
            exporter().parts(record(value=True, native={"orq": native}))

    def test_a_value_without_a_key_is_refused(self) -> None:
        """
        Under a name that orq does not know there is nowhere to put it.
        """
        with pytest.raises(InvalidFeedbackError, match="needs both a property that orq knows and a value"):
            exporter().parts(record("mood", native={"orq": {"value": 3}}, comment="c"))


class TestChanges:
    def test_a_change_deletes_what_stood_under_the_key(self) -> None:
        """
        What a repeated key does is not documented: the old one is deleted, with its user's name, then the new one made.
        """
        made = exporter()
        first, second = (record(value=value, user_id="u-1") for value in (True, False))
        requests, results = play(made.exchange(changed(made, first, second)))
        who = {"metadata": {"identity_id": "u-1"}}

        assert [
            ("DELETE", PLACE, {"keys": ["rating"], **who}),
            ("POST", PLACE, keyed("rating", ["bad"], **who)),
        ] == calls(requests)
        assert [Success("HTTP 200")] == results

    def test_what_may_have_arrived_is_deleted_before_it_is_sent_again(self) -> None:
        """
        There is no id under which it could be told apart.
        """
        (part,) = exporter().parts(record(value=True))
        requests, _ = play(exporter().exchange([replace(part, may_have_arrived=True)]))

        assert ["DELETE", "POST"] == [request.method for request in requests]

    def test_a_correction_of_an_evaluator_is_deleted_by_its_parent(self) -> None:
        """
        It has no key.
        """
        made = exporter()
        said = record(value=True, native={"orq": {"parent_annotation_id": "a-1"}})
        requests, _ = play(made.exchange(taken_back(made.parts(said))))

        assert [("DELETE", PLACE, {"parent_annotation_ids": ["a-1"]})] == calls(requests)

    def test_one_deletion_takes_every_revision(self) -> None:
        """
        They were all under one key; a failure after it tells that they are gone.
        """
        made = exporter()
        (part,) = changed(made, record(value=True), record(value=False, revision=2))
        told = replace(part, revisions=(1, 0))
        requests, (result,) = play(made.exchange([told]), answer(), answer(503))

        assert ["DELETE", "POST"] == [request.method for request in requests]
        assert (1, 0) == result.removed  # type: ignore[union-attr]

    @pytest.mark.parametrize("status", [200, 404])
    def test_what_is_taken_back_is_deleted(self, status: int) -> None:
        """
        What orq never had is as good as deleted.
        """
        made = exporter()
        requests, (result,) = play(made.exchange(taken_back(made.parts(record(value=True)))), answer(status))

        assert ([("DELETE", PLACE, {"keys": ["rating"]})], Success) == (calls(requests), type(result))

    def test_what_somebody_else_said_is_put_back(self) -> None:
        """
        A deletion may have taken theirs with it: it is made anew, once.
        """
        made = exporter()
        theirs = record(value=False, user_id="u-2", id="0198f1f2-9c2b-7d3e-b5a1-000000000002")
        requests, results = play(made.exchange(taken_back(made.parts(record(value=True, user_id="u-1")), theirs)))
        mine, who = {"metadata": {"identity_id": "u-1"}}, {"metadata": {"identity_id": "u-2"}}

        assert [
            ("DELETE", PLACE, {"keys": ["rating"], **mine}),
            ("DELETE", PLACE, {"keys": ["rating"], **who}),
            ("POST", PLACE, keyed("rating", ["bad"], **who)),
        ] == calls(requests)
        assert [Success("HTTP 200")] == results

    @pytest.mark.parametrize(
        "theirs",
        [
            None,
            record("mood", value=0.5),
            record(value=False, target=handle(span_id=ROOT)),
            record(value=False, native={"orq": {"product": "otel"}}),
        ],
    )
    def test_what_is_under_another_key_stays_as_it_is(self, theirs: Any) -> None:
        """
        Nor is anything put back that this exporter would not take any more.
        """
        made = exporter()
        requests, _ = play(made.exchange(taken_back(made.parts(record(value=True)), theirs)))

        assert ["DELETE"] == [request.method for request in requests]

    @pytest.mark.parametrize(
        ("mine", "theirs"),
        [
            ({"native": {"orq": {"key": "tone"}}}, {"native": {"orq": {"key": "mood"}}}),
            ({}, {"native": {"orq": {"parent_annotation_id": "a-1"}}}),
            ({"native": {"orq": {"parent_annotation_id": "a-1"}}}, {}),
            (
                {"native": {"orq": {"parent_annotation_id": "a-1"}}},
                {"native": {"orq": {"parent_annotation_id": "a-2"}}},
            ),
        ],
    )
    def test_of_one_span_each_key_and_each_corrected_saying_is_its_own(self, mine: Any, theirs: Any) -> None:
        """
        What somebody else said under another one was not deleted, and is not put there again.
        """
        made = exporter()
        parts = taken_back(made.parts(record(value=True, **mine)), record(value=False, user_id="u-2", **theirs))
        requests, _ = play(made.exchange(parts))

        assert ["DELETE"] == [request.method for request in requests]

    @pytest.mark.parametrize("status", [status for status in STATUSES if status >= 300 and status != 404])
    def test_nothing_is_made_while_the_old_one_stands(self, status: int) -> None:
        """
        A deletion that fails is the result.
        """
        made = exporter()
        parts = changed(made, record(value=True), record(value=False))
        requests, (result,) = play(made.exchange(parts), answer(status))

        assert (["DELETE"], STATUSES[status]) == ([request.method for request in requests], type(result))

    def test_silence_at_a_deletion_is_the_result(self) -> None:
        """
        It is not known whether the old one stands.
        """
        made = exporter()
        requests, results = play(made.exchange(changed(made, record(value=True), record(value=False))), UNCLEAR)

        assert (["DELETE"], [UNCLEAR.result]) == ([request.method for request in requests], results)


class TestAnswers:
    # A 404 may be a span that has not arrived.
    @pytest.mark.parametrize(("status", "expected"), {**STATUSES, 404: RetryableFailure}.items())
    def test_each_status_has_its_result(self, status: int, expected: type[Result]) -> None:
        """
        What concerns the destination pauses it, what concerns the item is a dead letter, the rest is tried again.
        """
        (part,) = exporter().parts(record(value=True))
        _, (result,) = play(exporter().exchange([part]), answer(status))

        assert expected is type(result)

    def test_a_404_has_a_grace_and_a_hint(self) -> None:
        """
        The span may be under way, or the review was never made in the workspace.
        """
        _, (result,) = play(exporter().exchange(exporter().parts(record(value=True))), answer(404))

        reason = "HTTP 404: has the span arrived, and is there a review with this key in the workspace?"
        assert RetryableFailure(reason, give_up_after_millis=6 * 60 * 60 * 1_000) == result

    def test_a_page_at_404_is_a_wrong_address(self) -> None:
        """
        Six hours of grace would hide it.
        """
        page = answer(404, b"<!doctype html>")
        results = [
            play(made.exchange(made.parts(record(value=True))), page)[1][0] for made in (exporter(), OrqExporter())
        ]

        reason = "HTTP 404: a web page, not the API: is the base URL right, and does a proxy want a login?"
        assert [PauseDestination(reason), PauseDestination(reason)] == results


@settings(max_examples=200)
@given(judgement=judgements())
def test_every_body_keeps_to_the_contract(judgement: Any) -> None:
    """
    Whatever is said, changed or taken back, each request is valid by the published contract.
    """
    made = exporter(properties=("relevance", "toxic"), comment_property="remark")
    parts: list[Part] = [*made.parts(judgement), *changed(made, judgement, judgement)]
    requests, _ = play(made.exchange([*parts, *taken_back(parts)]))
    validators = {method: contract("orq", SPECIMEN, method.lower()) for method in ("POST", "DELETE")}
    for request in requests:
        assert PLACE.rpartition("/spans/")[0] == request.url.path.rpartition("/spans/")[0]
        assert [] == list(validators[request.method].iter_errors(asked(request)[1]))


# --- through the whole pipeline ----------------------------------------------------------------------------------


@pytest.fixture(params=["upsert", "append"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """orq, under both answers to what a repeated key does."""
    with Sandbox(port=0, switches=Switches(orq_annotation_repeat=request.param)) as running:
        yield running


@pytest.fixture
def span(sandbox: Sandbox) -> of.FeedbackHandle:
    """A call whose span is at orq."""
    (endpoint,) = (each for each in sandbox.otlp_endpoints() if each.vendor == "orq")
    provider = TracerProvider()
    provider.add_span_processor(
        SimpleSpanProcessor(OTLPSpanExporter(endpoint=endpoint.url, headers=dict(endpoint.headers)))
    )
    with provider.get_tracer("app").start_as_current_span("answer") as current:
        pass
    provider.shutdown()
    return of.FeedbackHandle.from_span(current)


@pytest.fixture
def feedback(sandbox: Sandbox) -> Iterator[of.FeedbackProvider]:
    """A pipeline to orq's annotations, with quick retries."""
    said = sandbox.environment()
    made = exporter(api_key=said["ORQ_API_KEY"], base_url=said["ORQ_BASE_URL"], properties=("toxic",))
    retry = of.RetryPolicy(base_millis=1, longest_millis=5)
    with of.FeedbackProvider(exporters=[made], store="memory:", retry=retry) as provider:
        yield provider


def standing(sandbox: Sandbox) -> list[tuple[str, object, object]]:
    """What a person sees at orq."""
    return [(row["property"], row["value"], row["user"]) for row in sandbox.state()["effective"]["orq"]]


def test_a_span_is_annotated_with_booleans_and_the_end_user(
    sandbox: Sandbox, feedback: of.FeedbackProvider, span: of.FeedbackHandle
) -> None:
    """
    It joins the very span, and nothing is remarked.
    """
    feedback.record(span, "toxic", False, user_id="u-1")
    assert feedback.force_flush(10_000)
    state = sandbox.state()

    assert [("toxic", False, "u-1")] == standing(sandbox)
    assert (0, [], span.span_id) == (state["orphans"], state["flags"], state["feedback"][0]["target"]["span_id"])


@pytest.mark.parametrize("kind", [None, "reset_after", "reset", "status"])
def test_a_changed_mind_leaves_one(
    sandbox: Sandbox, feedback: of.FeedbackProvider, span: of.FeedbackHandle, kind: Any
) -> None:
    """
    Also where the answer to the first word was lost.
    """
    if kind is not None:
        sandbox.inject(Fault(vendor="orq", kind=kind))
    feedback.record(span, "rating", True, user_id="u-1")
    assert feedback.force_flush(10_000)
    feedback.record(span, "rating", False, user_id="u-1")
    assert feedback.force_flush(10_000)

    assert [("rating", ["bad"], "u-1")] == standing(sandbox)


def test_what_is_taken_back_is_gone(sandbox: Sandbox, feedback: of.FeedbackProvider, span: of.FeedbackHandle) -> None:
    """
    Delivered or not, orq has nothing of it.
    """
    receipt = feedback.record(span, "rating", True, correction="Paris")
    assert feedback.force_flush(10_000)
    feedback.retract(receipt.id)
    assert feedback.force_flush(10_000)

    assert [] == standing(sandbox)
    assert "retracted" == feedback.status(receipt.id).deliveries["orq"].state
