"""Changes of mind at every vendor and by every API: before, while and after the first word arrives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_feedback as of
from otel_feedback.sandbox import Fault, Sandbox, Switches

ANSWERS = {
    "mild": Switches(),
    "harsh": Switches(
        orq_repeated_id="conflict",
        orq_remove_unknown="refuse",
        orq_annotation_repeat="append",
        braintrust_null_score="keep",
        weave_purge_unknown="refuse",
        weave_batch=False,
        weave_collapse_after_millis=0,
    ),
}


@dataclass(frozen=True)
class API:
    """One API of a vendor: how an exporter for it is made, and the thumbs that a person sees there."""

    vendor: str
    make: Callable[[Mapping[str, str]], of.FeedbackExporter]
    seen: Callable[[Any], list[Any]]


def orq(api: Literal["feedback", "annotations"]) -> API:
    return API(
        "orq",
        lambda said: of.OrqExporter(said["ORQ_API_KEY"], base_url=said["ORQ_BASE_URL"], api=api),
        lambda effective: [row["value"] == ["good"] for row in effective["orq"] if row["property"] == "rating"],
    )


def braintrust(per_rater: Literal["span", "child"]) -> API:
    return API(
        "braintrust",
        lambda said: of.BraintrustExporter(
            said["BRAINTRUST_PARENT"],
            api_key=said["BRAINTRUST_API_KEY"],
            base_url=said["BRAINTRUST_API_URL"],
            hold_millis=0,
            per_rater=per_rater,
        ),
        lambda effective: [
            row["scores"]["rating"] == 1
            for row in effective["braintrust"]["rows"].values()
            if row["scores"].get("rating") is not None
        ],
    )


def weave(view: Literal["traces", "agents"]) -> API:
    return API(
        "weave",
        lambda said: of.WeaveExporter(
            "sandbox/sandbox", api_key=said["WANDB_API_KEY"], base_url=said["WF_TRACE_SERVER_URL"], view=view
        ),
        lambda effective: [row["payload"]["emoji"] == "👍" for row in effective["weave"]],
    )


APIS = {
    "orq feedback": orq("feedback"),
    "orq annotations": orq("annotations"),
    "Braintrust": braintrust("span"),
    "Braintrust, a row for each": braintrust("child"),
    "Weave, Traces": weave("traces"),
    "Weave, Agents": weave("agents"),
}


@pytest.fixture(params=ANSWERS.values(), ids=ANSWERS.keys())
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """The three vendors, under both answers to what they leave open."""
    with Sandbox(port=0, switches=request.param) as running:
        yield running


@pytest.fixture(params=APIS.values(), ids=APIS.keys())
def api(request: pytest.FixtureRequest) -> API:
    """Each API of each vendor."""
    found: API = request.param
    return found


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
def run(sandbox: Sandbox, store: of.MemoryStore, api: API) -> Iterator[Callable[..., of.FeedbackProvider]]:
    """Starts pipelines to the vendor, with quick retries; all are shut down."""
    made: list[of.FeedbackProvider] = []

    def start(delivery: Literal["thread", "none"] = "thread") -> of.FeedbackProvider:
        made.append(
            of.FeedbackProvider(
                exporters=[api.make(sandbox.environment())],
                store=store,
                settings=of.Settings(delivery=delivery),
                retry=of.RetryPolicy(base_millis=1, longest_millis=5),
            )
        )
        return made[-1]

    yield start
    for provider in made:
        provider.shutdown()


def seen(sandbox: Sandbox, api: API) -> list[Any]:
    """The thumbs that a person sees at the vendor: whether each is up."""
    return api.seen(sandbox.state()["effective"])


def asked(sandbox: Sandbox) -> list[str]:
    """What was asked of the vendors, the spans aside."""
    return [each.path for each in sandbox.requests if "/otel/" not in each.path]


def state_of(provider: of.FeedbackProvider, receipt: of.Receipt) -> str:
    """What became of a judgement at the one vendor."""
    (status,) = provider.status(receipt.id).deliveries.values()
    return status.state


Run = Callable[..., of.FeedbackProvider]


class TestAmend:
    def test_the_last_word_stands_alone(self, sandbox: Sandbox, api: API, run: Run, handle: of.FeedbackHandle) -> None:
        """
        Up, down, up and down again, each delivered: one thumb, down, and joined to its span.
        """
        provider = run()
        for thumb in (True, False, True, False):
            receipt = provider.record(handle, "rating", thumb, user_id="ada")
            assert provider.force_flush(10_000)

        assert ([False], "delivered") == (seen(sandbox, api), state_of(provider, receipt))
        assert 0 == sandbox.state()["orphans"]

    def test_what_was_not_delivered_yet_is_never_sent(
        self, sandbox: Sandbox, api: API, run: Run, handle: of.FeedbackHandle
    ) -> None:
        """
        The second word takes the first one's place in the store: the vendor hears one.
        """
        recorder = run("none")
        for thumb in (True, False):
            recorder.record(handle, "rating", thumb, user_id="ada")
        assert run().force_flush(10_000)

        assert [False] == seen(sandbox, api)
        assert 1 == len(sandbox.state()["feedback"])

    @pytest.mark.parametrize("kind", ["reset_after", "truncated", "reset", "status"])
    def test_a_word_that_may_have_arrived_is_replaced_all_the_same(
        self, sandbox: Sandbox, api: API, run: Run, handle: of.FeedbackHandle, kind: Any
    ) -> None:
        """
        The answer to the first word was lost with its process; the second one is the only one that is seen.
        """
        sandbox.inject(Fault(vendor=api.vendor, kind=kind))
        first = run("none")
        first.record(handle, "rating", True, user_id="ada")
        first.deliver()
        first.shutdown()
        second = run()
        second.record(handle, "rating", False, user_id="ada")

        assert second.force_flush(10_000)
        assert [False] == seen(sandbox, api)

    def test_a_change_while_the_first_word_is_in_flight_comes_after_it(
        self, sandbox: Sandbox, api: API, run: Run, handle: of.FeedbackHandle
    ) -> None:
        """
        The vendor is slow with the first word; the change, recorded meanwhile, does not overtake it.
        """
        sandbox.inject(Fault(vendor=api.vendor, kind="slow", delay_millis=400))
        provider = run()
        provider.record(handle, "rating", True, user_id="ada")
        for _ in range(200):
            if asked(sandbox):
                break
            threading.Event().wait(0.01)
        was_first = asked(sandbox)
        provider.record(handle, "rating", False, user_id="ada")

        assert was_first
        assert provider.force_flush(10_000)
        assert [False] == seen(sandbox, api)

    def test_two_people_do_not_replace_each_other(
        self, sandbox: Sandbox, api: API, run: Run, handle: of.FeedbackHandle
    ) -> None:
        """
        Ada changes her mind and Ben does not; where the vendor keeps one score for all, it is the last word's.
        """
        provider = run()
        for user, thumb in (("ada", True), ("ben", True), ("ada", False)):
            provider.record(handle, "rating", thumb, user_id=user)
            assert provider.force_flush(10_000)

        assert sorted(seen(sandbox, api)) in ([False, True], [False])
        assert False in seen(sandbox, api)


class TestRetract:
    def test_what_is_taken_back_is_gone(self, sandbox: Sandbox, api: API, run: Run, handle: of.FeedbackHandle) -> None:
        """
        Also after a change of mind: nothing is seen any more.
        """
        provider = run()
        for thumb in (True, False):
            receipt = provider.record(handle, "rating", thumb, user_id="ada")
            assert provider.force_flush(10_000)
        provider.retract(receipt.id)

        assert provider.force_flush(10_000)
        assert ([], "retracted") == (seen(sandbox, api), state_of(provider, receipt))

    def test_what_was_not_delivered_yet_is_never_sent(
        self, sandbox: Sandbox, api: API, run: Run, handle: of.FeedbackHandle
    ) -> None:
        """
        The vendor is asked nothing at all.
        """
        recorder = run("none")
        receipt = recorder.record(handle, "rating", True)
        recorder.retract(receipt.id)
        provider = run()

        assert provider.force_flush(10_000)
        assert ([], "retracted") == (asked(sandbox), state_of(provider, receipt))

    def test_what_the_vendor_no_longer_has_is_retracted_all_the_same(
        self, sandbox: Sandbox, api: API, run: Run, handle: of.FeedbackHandle
    ) -> None:
        """
        Somebody has removed it in the vendor's own pages: a 404 means what 200 means.
        """
        provider = run()
        receipt = provider.record(handle, "rating", True)
        assert provider.force_flush(10_000)
        sandbox.reset()
        provider.retract(receipt.id)

        assert provider.force_flush(10_000)
        assert ([], "retracted") == (seen(sandbox, api), state_of(provider, receipt))

    @pytest.mark.parametrize("kind", ["reset_after", "truncated"])
    def test_what_may_have_arrived_is_taken_back(
        self, sandbox: Sandbox, api: API, run: Run, handle: of.FeedbackHandle, kind: Any
    ) -> None:
        """
        The vendor has it and nobody here knows: a retraction removes it.
        """
        sandbox.inject(Fault(vendor=api.vendor, kind=kind))
        first = run("none")
        receipt = first.record(handle, "rating", True)
        first.deliver()
        first.shutdown()
        second = run()
        second.retract(receipt.id)

        assert second.force_flush(10_000)
        assert ([], "retracted") == (seen(sandbox, api), state_of(second, receipt))

    def test_what_somebody_else_said_stays(
        self, sandbox: Sandbox, api: API, run: Run, handle: of.FeedbackHandle
    ) -> None:
        """
        Ben takes his word back, and Ada's is seen.
        """
        provider = run()
        provider.record(handle, "rating", True, user_id="ada")
        assert provider.force_flush(10_000)
        ben = provider.record(handle, "rating", False, user_id="ben")
        assert provider.force_flush(10_000)
        provider.retract(ben.id)

        assert provider.force_flush(10_000)
        assert [True] == seen(sandbox, api)
