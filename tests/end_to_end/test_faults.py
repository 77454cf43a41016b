"""What the vendors do wrong, and people's changes of mind: nothing is lost, nothing lands elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_feedback as of
from otel_feedback.sandbox import Fault, Sandbox, Switches
from otel_feedback.stores import DestinationStats

VENDORS = ("orq", "braintrust", "weave")

ANSWERS = {
    "mild": Switches(),
    "harsh": Switches(
        orq_repeated_id="conflict",
        orq_remove_unknown="refuse",
        braintrust_null_score="keep",
        weave_purge_unknown="refuse",
        weave_collapse_after_millis=0,
    ),
}


@pytest.fixture(params=ANSWERS.values(), ids=ANSWERS.keys())
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """The three vendors, under both answers to what they leave open."""
    with Sandbox(port=0, switches=request.param) as running:
        yield running


@pytest.fixture
def handle(sandbox: Sandbox) -> of.FeedbackHandle:
    """A call whose span is at every vendor."""
    provider = TracerProvider()
    for endpoint in sandbox.otlp_endpoints():
        exporter = OTLPSpanExporter(endpoint=endpoint.url, headers=dict(endpoint.headers))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("app").start_as_current_span("answer") as span:
        pass
    provider.shutdown()
    return of.FeedbackHandle.from_span(span)


@pytest.fixture
def store() -> of.MemoryStore:
    """What outlives a provider in these tests."""
    return of.MemoryStore()


@pytest.fixture
def feedback(sandbox: Sandbox, store: of.MemoryStore) -> Iterator[of.FeedbackProvider]:
    """The pipeline to the three vendors, with quick retries."""
    with provider_at(sandbox, store) as provider:
        yield provider


def provider_at(sandbox: Sandbox, store: of.Store, **replaced: str) -> of.FeedbackProvider:
    """Make a pipeline from the sandbox's environment."""
    said = {**sandbox.environment(), **replaced}
    return of.FeedbackProvider(
        exporters=[
            of.OrqExporter(said["ORQ_API_KEY"], base_url=said["ORQ_BASE_URL"]),
            of.BraintrustExporter(
                said["BRAINTRUST_PARENT"],
                api_key=said["BRAINTRUST_API_KEY"],
                base_url=said["BRAINTRUST_API_URL"],
                hold_millis=0,
            ),
            of.WeaveExporter(
                f"{said['WANDB_ENTITY']}/{said['WANDB_PROJECT']}",
                api_key=said["WANDB_API_KEY"],
                base_url=said["WF_TRACE_SERVER_URL"],
            ),
        ],
        store=store,
        retry=of.RetryPolicy(base_millis=1, longest_millis=5),
    )


def states(provider: of.FeedbackProvider, receipt: of.Receipt) -> dict[str, str]:
    """What became of a judgement at each vendor."""
    return {name: status.state for name, status in provider.status(receipt.id).deliveries.items()}


def scores(sandbox: Sandbox, handle: of.FeedbackHandle) -> Mapping[str, Any]:
    """The scores on a span's row at Braintrust."""
    return sandbox.state()["effective"]["braintrust"]["rows"][handle.span_id]["scores"]


def orq(sandbox: Sandbox) -> list[tuple[str, object]]:
    """What a person sees at orq."""
    return [(row["property"], row["value"]) for row in sandbox.state()["effective"]["orq"]]


def weave(sandbox: Sandbox) -> list[tuple[str, object]]:
    """What a person sees at Weave, by the call's id."""
    rows = sandbox.state()["effective"]["weave"]
    return [(row["weave_ref"].rpartition("/")[2], row["payload"].get("emoji")) for row in rows]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="status", status=503, times=3),
        Fault(kind="status", status=429, headers={"retry-after": "0"}, times=3),
        Fault(kind="reset", times=3),
        Fault(kind="truncated", times=3),
        Fault(kind="huge", times=3, size_bytes=4_000_000),
    ],
    ids=lambda fault: fault.kind,
)
def test_a_passing_fault_delays_a_judgement_and_no_more(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle, fault: Fault
):
    """
    After three faults at whatever is asked first the thumb is at each vendor, once.
    """
    sandbox.inject(fault)
    receipt = feedback.record(handle, "rating", True)

    assert feedback.force_flush(10_000)
    assert dict.fromkeys(VENDORS, "delivered") == states(feedback, receipt)
    assert [("rating", ["good"])] == orq(sandbox)
    assert {"rating": 1} == scores(sandbox, handle)
    assert [(handle.span_id, "👍")] == weave(sandbox)


def test_an_answer_that_was_lost_is_no_second_judgement(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle
):
    """
    Stored, then cut off: the same part comes again under the same id, and each vendor holds one.
    """
    for vendor in VENDORS:
        sandbox.inject(Fault(vendor=vendor, path="feedback", kind="reset_after", times=1))
    receipt = feedback.record(handle, "rating", False)

    feedback.force_flush(10_000)
    assert [("rating", ["bad"])] == orq(sandbox)
    assert {"rating": 0} == scores(sandbox, handle)
    assert [(handle.span_id, "👎")] == weave(sandbox)
    assert {"braintrust": "delivered", "weave": "delivered"}.items() <= states(feedback, receipt).items()


def test_a_change_of_mind_replaces_the_judgement_at_every_vendor(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle
):
    """
    Up, then down, each delivered: every vendor ends with one thumb, down.
    """
    for thumb in (True, False):
        receipt = feedback.record(handle, "rating", thumb, user_id="ada")
        assert feedback.force_flush(10_000)

    assert dict.fromkeys(VENDORS, "delivered") == states(feedback, receipt)
    assert [("rating", ["bad"])] == orq(sandbox)
    assert {"rating": 0} == scores(sandbox, handle)
    assert [(handle.span_id, "👎")] == weave(sandbox)


def test_a_changed_mind_without_the_comment_takes_the_comment_back_where_that_can_be(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle
):
    """
    A judgement replaces the whole judgement before it: Weave's note goes, Braintrust's comment cannot.
    """
    feedback.record(handle, "rating", True, comment="Spot on", user_id="ada")
    assert feedback.force_flush(10_000)
    feedback.record(handle, "rating", True, user_id="ada")
    assert feedback.force_flush(10_000)

    assert [(handle.span_id, "👍")] == weave(sandbox)
    assert ["Spot on"] == sandbox.state()["effective"]["braintrust"]["rows"][handle.span_id]["comments"]


def test_what_is_taken_back_is_gone_where_that_can_be(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle
):
    """
    After a retraction orq and Weave hold nothing, and the receipt says that Braintrust was only asked.
    """
    receipt = feedback.record(handle, "rating", True, user_id="ada")
    assert feedback.force_flush(10_000)
    feedback.retract(receipt.id)
    assert feedback.force_flush(10_000)

    assert dict.fromkeys(VENDORS, "retracted") == states(feedback, receipt)
    assert ([], []) == (orq(sandbox), weave(sandbox))
    assert "requested" in (feedback.status(receipt.id).deliveries["braintrust"].reason or "")
    assert not scores(sandbox, handle).get("rating")


def test_a_retraction_leaves_what_somebody_else_said(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle
):
    """
    Ada said up, Ben down; when Ben takes his back, Braintrust's one score is Ada's again.
    """
    feedback.record(handle, "rating", True, user_id="ada")
    assert feedback.force_flush(10_000)
    ben = feedback.record(handle, "rating", False, user_id="ben")
    assert feedback.force_flush(10_000)
    feedback.retract(ben.id)
    assert feedback.force_flush(10_000)

    assert {"rating": 1} == scores(sandbox, handle)
    assert [(handle.span_id, "👍")] == weave(sandbox)


def test_a_retraction_that_comes_late_restores_nothing_that_was_taken_back(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle
):
    """
    Ben takes his back while Braintrust is down, then Ada hers: when both arrive, no score stands.
    """
    ada = feedback.record(handle, "rating", True, user_id="ada")
    assert feedback.force_flush(10_000)
    ben = feedback.record(handle, "rating", False, user_id="ben")
    assert feedback.force_flush(10_000)
    sandbox.inject(Fault(vendor="braintrust", kind="status", status=503, times=3))
    feedback.retract(ben.id)
    feedback.retract(ada.id)

    assert feedback.force_flush(10_000)
    assert not scores(sandbox, handle).get("rating")


def test_a_refused_judgement_is_kept_with_the_vendors_reason(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle
):
    """
    A 400 at one vendor is a dead letter there, with the status, and changes nothing elsewhere.
    """
    sandbox.inject(Fault(vendor="weave", kind="status", status=400, times=1))
    receipt = feedback.record(handle, "rating", True)

    assert feedback.force_flush(10_000)
    assert {"orq": "delivered", "braintrust": "delivered", "weave": "dead"} == states(feedback, receipt)
    assert "HTTP 400" in (feedback.status(receipt.id).deliveries["weave"].reason or "")


def test_a_wrong_key_pauses_its_vendor_and_the_right_one_delivers(
    sandbox: Sandbox, store: of.MemoryStore, handle: of.FeedbackHandle
):
    """
    While Weave answers 401 its judgements wait, the others' leave; started again with a good key, all is delivered.
    """
    sandbox.inject(Fault(vendor="weave", kind="status", status=401, times=None))
    with provider_at(sandbox, store) as feedback:
        receipt = feedback.record(handle, "rating", True)
        assert not feedback.force_flush(1_000)
        assert {"orq": "delivered", "braintrust": "delivered", "weave": "pending"} == states(feedback, receipt)
        assert "HTTP 401" in (feedback.stats()["weave"].paused or "")

    sandbox.clear_faults()
    with provider_at(sandbox, store) as feedback:
        assert feedback.force_flush(10_000)
        assert "delivered" == states(feedback, receipt)["weave"]


def test_what_was_accepted_while_everything_was_down_is_delivered_after_a_restart(
    sandbox: Sandbox, store: of.MemoryStore, handle: of.FeedbackHandle
):
    """
    Five judgements accepted by a provider that reached nobody are delivered by the next one, each once.
    """
    sandbox.inject(Fault(kind="reset", times=None))
    with provider_at(sandbox, store) as feedback:
        receipts = [feedback.record(handle, f"aspect-{number}", number / 4) for number in range(5)]

    sandbox.clear_faults()
    with provider_at(sandbox, store) as feedback:
        assert feedback.force_flush(10_000)
        assert {"delivered"} == {states(feedback, receipt)["braintrust"] for receipt in receipts}
        assert {f"aspect-{number}": number / 4 for number in range(5)} == scores(sandbox, handle)
        assert all(stats.is_conserved for stats in feedback.stats().values())
        assert [DestinationStats] * 3 == [type(stats) for stats in feedback.stats().values()]
