"""One judgement, several destinations: each has its own fate, and everybody's rules say which it goes to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_feedback as of
from otel_feedback.sandbox import Fault, Sandbox

TENANTS = ("acme", "globex")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """The three vendors."""
    with Sandbox(port=0) as running:
        yield running


@pytest.fixture
def handles(sandbox: Sandbox) -> dict[str, of.FeedbackHandle]:
    """For each tenant a call whose span is in that tenant's project of Braintrust and of Weave, and at orq."""
    made = {}
    for tenant in TENANTS:
        provider = TracerProvider()
        for endpoint in sandbox.otlp_endpoints():
            headers = dict(endpoint.headers)
            headers.update({"x-bt-parent": f"project_name:{tenant}"} if "x-bt-parent" in headers else {})
            headers.update({"project_id": f"sandbox/{tenant}"} if "project_id" in headers else {})
            provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=endpoint.url, headers=headers)))
        attributes = {
            "braintrust.parent": f"project_name:{tenant}",
            "otel_feedback.to": f"braintrust,weave-{tenant}",
        }
        with provider.get_tracer("app").start_as_current_span("answer", attributes=attributes) as span:
            pass
        provider.shutdown()
        made[tenant] = of.FeedbackHandle.from_span(span)
    return made


@pytest.fixture
def feedback(sandbox: Sandbox) -> Iterator[of.FeedbackProvider]:
    """orq for everything but notes of the staff, one Braintrust that follows the span, and a Weave for each tenant."""
    said = sandbox.environment()
    exporters = [
        of.OrqExporter(said["ORQ_API_KEY"], base_url=said["ORQ_BASE_URL"]),
        of.BraintrustExporter(
            "project_name:others",
            api_key=said["BRAINTRUST_API_KEY"],
            base_url=said["BRAINTRUST_API_URL"],
            hold_millis=0,
        ),
        *(
            of.WeaveExporter(
                f"sandbox/{tenant}",
                api_key=said["WANDB_API_KEY"],
                base_url=said["WF_TRACE_SERVER_URL"],
                name=f"weave-{tenant}",
            )
            for tenant in TENANTS
        ),
    ]
    filters = {"orq": lambda record: record.user_id != "staff"}
    with of.FeedbackProvider(
        exporters=exporters, store="memory:", filters=filters, retry=of.RetryPolicy(base_millis=1, longest_millis=5)
    ) as provider:
        yield provider


def states(provider: of.FeedbackProvider, receipt: of.Receipt) -> dict[str, tuple[str, str | None]]:
    """What became of a judgement at each destination, and why."""
    return {name: (it.state, it.reason) for name, it in provider.status(receipt.id).deliveries.items()}


def test_one_vendor_that_is_down_delays_no_other(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handles: dict[str, of.FeedbackHandle]
):
    """
    While Braintrust answers 503 the others have the judgement; when it is back, it gets it, and nobody twice.
    """
    sandbox.inject(Fault(vendor="braintrust", kind="status", status=503, times=None))
    receipt = feedback.record(handles["acme"], "rating", True, to=["orq", "braintrust", "weave-acme"])
    feedback.force_flush(1_000)
    meanwhile = {name: state for name, (state, _) in states(feedback, receipt).items()}
    sandbox.clear_faults()
    was_flushed = feedback.force_flush(10_000)

    assert {"orq": "delivered", "braintrust": "pending", "weave-acme": "delivered"} == meanwhile
    assert was_flushed
    assert {"delivered"} == {state for state, _ in states(feedback, receipt).values()}
    assert 3 == len(sandbox.state()["feedback"])


def test_one_that_buries_a_judgement_takes_it_from_no_other(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handles: dict[str, of.FeedbackHandle]
):
    """
    What one vendor refuses for good is a dead letter there, with its reason, and delivered elsewhere.
    """
    sandbox.inject(Fault(vendor="orq", kind="status", status=400, times=None))
    receipt = feedback.record(handles["acme"], "rating", True, to=["orq", "weave-acme"])

    assert feedback.force_flush(10_000)
    (orq, why), weave = (states(feedback, receipt)[name] for name in ("orq", "weave-acme"))
    assert "dead" == orq
    assert "400" in str(why)
    assert ("delivered", "HTTP 200") == weave


def test_each_tenant_has_its_own_feedback_alone(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handles: dict[str, of.FeedbackHandle]
):
    """
    Each span says itself by which exporter and to which parent, so that each judgement is joined, in its own project.
    """
    for tenant, handle in handles.items():
        feedback.record(handle, "rating", tenant == "acme")

    assert feedback.force_flush(10_000)
    state = sandbox.state()
    assert (4, 0, []) == (len(state["feedback"]), state["orphans"], state["flags"])
    assert all(each["joined"] for each in state["feedback"])
    landed = {(each["vendor"], each["target"]["span_id"]) for each in state["feedback"]}
    assert {(vendor, handle.span_id) for vendor in ("braintrust", "weave") for handle in handles.values()} == landed


def test_what_a_filter_refuses_goes_everywhere_else(
    sandbox: Sandbox, feedback: of.FeedbackProvider, handles: dict[str, of.FeedbackHandle]
):
    """
    The staff's own notes are skipped at orq, which the account says, and go to Weave as anybody's do.
    """
    receipts = [
        feedback.record(handles["acme"], "rating", True, user_id=user, to=["orq", "weave-acme"])
        for user in ("staff", "u-1")
    ]

    assert feedback.force_flush(10_000)
    assert [("skipped", "filtered"), ("delivered", "HTTP 200")] == [states(feedback, each)["orq"] for each in receipts]
    assert [("delivered", "HTTP 200")] * 2 == [states(feedback, each)["weave-acme"] for each in receipts]
    stats = feedback.stats()["orq"]
    assert (2, 1, {"filtered": 1}) == (stats.recorded, stats.delivered, stats.skipped)
