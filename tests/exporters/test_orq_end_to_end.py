"""orq's exporter through the whole pipeline, by both APIs: what it waits for, and changes that leave parts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_feedback as of
from otel_feedback.sandbox import Fault, Sandbox, Switches
from otel_feedback.testing import FakeClock

MINUTE, HOUR = 60, 60 * 60
HINTS = {
    "feedback": "has the trace arrived, and is the property defined in the workspace?",
    "annotations": "has the span arrived, and is there a review with this key in the workspace?",
}


@pytest.fixture(params=HINTS)
def api(request: pytest.FixtureRequest) -> str:
    """Each of orq's APIs."""
    found: str = request.param
    return found


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """orq as it is harshest: it answers 404 to what it has not, and 409 to an id that it has."""
    switches = Switches(
        orq_properties=("remark",),
        orq_missing_trace="refuse",
        orq_remove_unknown="refuse",
        orq_repeated_id="conflict",
        orq_annotation_repeat="append",
    )
    with Sandbox(port=0, switches=switches) as running:
        yield running


@pytest.fixture
def tracing(sandbox: Sandbox) -> Iterator[TracerProvider]:
    """An app's tracing, whose spans go to orq when it is told to."""
    provider = TracerProvider()
    for endpoint in sandbox.otlp_endpoints():
        if endpoint.vendor == "orq":
            exporter = OTLPSpanExporter(endpoint=endpoint.url, headers=dict(endpoint.headers))
            provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=HOUR * 1_000))
    yield provider
    provider.shutdown()


@pytest.fixture
def handle(tracing: TracerProvider) -> of.FeedbackHandle:
    """A call whose span is not at orq yet."""
    with tracing.get_tracer("app").start_as_current_span("answer") as span:
        pass
    return of.FeedbackHandle.from_span(span)


@pytest.fixture
def clock() -> FakeClock:
    """Time that passes when it is told to."""
    return FakeClock()


@pytest.fixture
def feedback(sandbox: Sandbox, api: Any, clock: FakeClock) -> Iterator[of.FeedbackProvider]:
    """A pipeline to orq that delivers when it is told to."""
    said = sandbox.environment()
    exporter = of.OrqExporter(said["ORQ_API_KEY"], base_url=said["ORQ_BASE_URL"], api=api, comment_property="remark")
    with of.FeedbackProvider(
        exporters=[exporter], store="memory:", settings=of.Settings(delivery="none"), clock=clock
    ) as provider:
        yield provider


@pytest.fixture
def tried(feedback: of.FeedbackProvider, clock: FakeClock) -> Callable[..., of.DeliveryStatus]:
    """Lets time pass, ten minutes a step, delivering what is due, and answers what became of a judgement."""

    def after(receipt: of.Receipt, *, seconds: int = 0) -> of.DeliveryStatus:
        feedback.deliver()
        for _ in range(0, seconds, 10 * MINUTE):
            clock.advance(seconds=10 * MINUTE)
            feedback.deliver()
        return feedback.status(receipt.id).deliveries["orq"]

    return after


def standing(sandbox: Sandbox) -> dict[str, object]:
    """What a person sees at orq, by property; each of them once."""
    rows = sandbox.state()["effective"]["orq"]
    assert len(rows) == len({row["property"] for row in rows})
    return {row["property"]: row["value"] for row in rows}


Tried = Callable[..., of.DeliveryStatus]


class TestWaiting:
    def test_what_comes_before_its_trace_joins_it_later(
        self, sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle, tracing: Any, tried: Tried
    ) -> None:
        """
        orq answers 404 until the trace is there; five hours later it is, and nothing is lost.
        """
        receipt = feedback.record(handle, "rating", True)
        early = tried(receipt, seconds=5 * HOUR)
        tracing.force_flush()
        late = tried(receipt, seconds=HOUR // 2)

        assert ("pending", "delivered") == (early.state, late.state)
        assert ({"rating": ["good"]}, 0) == (standing(sandbox), sandbox.state()["orphans"])

    def test_a_trace_that_never_comes_is_given_up_after_six_hours(
        self, feedback: of.FeedbackProvider, handle: of.FeedbackHandle, tried: Tried, api: str
    ) -> None:
        """
        A dead letter with orq's words and what may be wrong.
        """
        receipt = feedback.record(handle, "rating", True)
        early = tried(receipt, seconds=5 * HOUR)
        late = tried(receipt, seconds=2 * HOUR)

        assert ("pending", "dead") == (early.state, late.state)
        assert late.reason is not None
        assert late.reason.endswith(f"HTTP 404: {HINTS[api]} Trace is not found")

    def test_a_wrong_address_buries_nothing(
        self, sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle, tracing: Any, tried: Tried
    ) -> None:
        """
        Where a web server answers 404 with its page, orq is paused and says why; what waits is sent once mended.
        """
        tracing.force_flush()
        page = Fault(vendor="orq", status=404, body="<!doctype html><title>Not Found</title>", times=None)
        sandbox.inject(page)
        receipt = feedback.record(handle, "rating", True)
        early = tried(receipt, seconds=24 * HOUR)
        asked = [each.path for each in sandbox.requests if "/otel/" not in each.path]
        sandbox.clear_faults()
        late = tried(receipt, seconds=2 * HOUR)

        assert "pending" == early.state
        assert "is the base URL right" in str(early.reason)
        # The first try, and one in each step of ten minutes: a pause is five (RetryPolicy.pause_millis).
        assert 1 + 24 * 6 == len(asked)
        assert ("delivered", {"rating": ["good"]}) == (late.state, standing(sandbox))


class TestParts:
    def test_a_change_takes_back_what_it_leaves_out(
        self, sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle, tracing: Any, tried: Tried
    ) -> None:
        """
        The correction and the comment of the first word do not stand beside the second.
        """
        tracing.force_flush()
        first = feedback.record(handle, "rating", False, correction="Paris", comment="too vague", user_id="ada")
        tried(first)
        before = standing(sandbox)
        second = feedback.record(handle, "rating", True, user_id="ada")

        assert "delivered" == tried(second, seconds=HOUR).state
        assert {"rating": ["bad"], "correction": "Paris", "remark": "too vague"} == before
        assert {"rating": ["good"]} == standing(sandbox)

    def test_a_change_to_what_orq_cannot_hold_takes_the_old_value_back(
        self, sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle, tracing: Any, tried: Tried
    ) -> None:
        """
        A label that is none of orq's is not carried, and the receipt says so; the thumb that it took the place of goes.
        """
        tracing.force_flush()
        tried(feedback.record(handle, "rating", True, user_id="ada"))
        changed = feedback.record(handle, "rating", "splendid", comment="c", user_id="ada")
        tried(changed, seconds=HOUR)

        assert "value" in changed.not_carried["orq"]
        assert {"remark": "c"} == standing(sandbox)

    @pytest.mark.parametrize("lost", range(4))
    def test_each_part_arrives_once_whichever_answer_is_lost(
        self,
        sandbox: Sandbox,
        feedback: of.FeedbackProvider,
        handle: of.FeedbackHandle,
        tracing: Any,
        tried: Tried,
        lost: int,
    ) -> None:
        """
        A part is repeated by itself: by an id of ours, which orq knows, or after what may be there was deleted.
        """
        tracing.force_flush()
        sandbox.inject(Fault(vendor="orq", kind="reset_after", after=lost))
        said = feedback.record(handle, "rating", False, correction="Paris", comment="too vague", user_id="ada")
        first = (tried(said, seconds=HOUR).state, standing(sandbox))
        changed = feedback.record(handle, "rating", True, correction="Rome", comment="better", user_id="ada")
        last = (tried(changed, seconds=HOUR).state, standing(sandbox))

        assert ("delivered", {"rating": ["bad"], "correction": "Paris", "remark": "too vague"}) == first
        assert ("delivered", {"rating": ["good"], "correction": "Rome", "remark": "better"}) == last

    def test_taking_back_takes_every_part(
        self, sandbox: Sandbox, feedback: of.FeedbackProvider, handle: of.FeedbackHandle, tracing: Any, tried: Tried
    ) -> None:
        """
        Also where the answer to the first removal was lost: the second one's 404 is as good.
        """
        tracing.force_flush()
        said = feedback.record(handle, "rating", False, correction="Paris", comment="too vague", user_id="ada")
        tried(said)
        before = standing(sandbox)
        sandbox.inject(Fault(vendor="orq", kind="reset_after"))
        feedback.retract(said.id)

        assert "retracted" == tried(said, seconds=HOUR).state
        assert (0, 0) == (feedback.stats()["orq"].pending, feedback.stats()["orq"].dead)
        assert ({"rating", "correction", "remark"}, {}) == (before.keys(), standing(sandbox))
