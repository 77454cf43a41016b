"""Weave's exporter through the whole pipeline, against the sandbox: targets, changes of mind, and taking back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_feedback as of
from otel_feedback.sandbox import Fault, Sandbox, Switches

ANSWERS = {
    "mild": Switches(),
    "old": Switches(weave_batch=False, weave_purge_unknown="refuse"),
}
SPEC = "weave:///sandbox/sandbox/object/helpfulness:9zXq"
Pipeline = Callable[..., of.FeedbackProvider]


@pytest.fixture(params=ANSWERS.values(), ids=ANSWERS.keys())
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Weave as it is, and an older one, which knows no batches and answers 404 for what is not there."""
    with Sandbox(port=0, switches=request.param) as running:
        yield running


@pytest.fixture
def handle(sandbox: Sandbox) -> of.FeedbackHandle:
    """A call below a root, in a conversation, whose spans are in both of Weave's views."""
    provider = TracerProvider()
    for endpoint in sandbox.otlp_endpoints():
        if endpoint.vendor == "weave":
            exporter = OTLPSpanExporter(endpoint=endpoint.url, headers=dict(endpoint.headers))
            provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("app")
    attributes = {"gen_ai.conversation.id": "chat/7 é"}
    with (
        tracer.start_as_current_span("request") as root,
        tracer.start_as_current_span("answer", attributes=attributes) as span,
    ):
        pass
    provider.shutdown()
    found = of.FeedbackHandle.from_span(span)
    return of.FeedbackHandle(found.context, root=root.get_span_context().span_id, attributes=found.attributes)


@pytest.fixture
def store() -> of.MemoryStore:
    """What outlives a provider in these tests."""
    return of.MemoryStore()


@pytest.fixture
def pipeline(sandbox: Sandbox, store: of.MemoryStore) -> Iterator[Pipeline]:
    """Makes pipelines to Weave, with quick retries; all are shut down."""
    made: list[of.FeedbackProvider] = []

    def make(*, delivery: Any = "thread", **options: Any) -> of.FeedbackProvider:
        said = sandbox.environment()
        exporter = of.WeaveExporter(
            f"{said['WANDB_ENTITY']}/{said['WANDB_PROJECT']}",
            api_key=said["WANDB_API_KEY"],
            base_url=said["WF_TRACE_SERVER_URL"],
            **options,
        )
        made.append(
            of.FeedbackProvider(
                exporters=[exporter],
                store=store,
                settings=of.Settings(delivery=delivery),
                retry=of.RetryPolicy(base_millis=1, longest_millis=5),
            )
        )
        return made[-1]

    yield make
    for provider in made:
        provider.shutdown()


def rows(sandbox: Sandbox) -> list[tuple[str, object]]:
    """What a person sees at Weave: the type of each row and what it says."""
    effective = sandbox.state()["effective"]["weave"]
    said = ("emoji", "note", "value")
    return [
        (row["feedback_type"], next((row["payload"][name] for name in said if name in row["payload"]), None))
        for row in effective
    ]


def paths(sandbox: Sandbox) -> list[str]:
    """What was asked of Weave about feedback, in order."""
    return [each.path for each in sandbox.requests if "/feedback/" in each.path]


def state_of(feedback: of.FeedbackProvider, receipt: of.Receipt) -> str:
    """What became of a judgement."""
    return feedback.status(receipt.id).deliveries["weave"].state


class TestTargets:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"level": "trace"},
            {"view": "agents"},
            {"view": "agents", "level": "trace"},
            {"view": "agents", "level": "conversation"},
        ],
    )
    def test_each_view_and_level_joins(
        self, sandbox: Sandbox, pipeline: Pipeline, handle: of.FeedbackHandle, options: Any
    ) -> None:
        """
        All that is said lands on its span, trace or conversation, in the view in which the spans are, and nothing is
        remarked.
        """
        feedback = pipeline(**options)
        feedback.record(handle, "rating", True, comment="c", correction="x", user_id="ada")
        assert feedback.force_flush(10_000)
        state = sandbox.state()

        assert [(True, [], "ada")] * 3 == [(each["joined"], each["flags"], each["user"]) for each in state["feedback"]]

    def test_an_annotation_joins(self, sandbox: Sandbox, pipeline: Pipeline, handle: of.FeedbackHandle) -> None:
        """
        A configured name is an annotation on the call, under its spec's name.
        """
        feedback = pipeline(annotations={"helpful": SPEC})
        feedback.record(handle, "helpful", 4, scale=(1, 5))
        assert feedback.force_flush(10_000)
        (entry,) = sandbox.state()["feedback"]

        assert (True, "annotation", "helpfulness", 4) == tuple(
            entry[name] for name in ("joined", "kind", "name", "value")
        )


class TestAmend:
    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            ({"value": True}, {"value": False}, [("wandb.reaction.1", "👎")]),
            ({"value": True}, {"value": 0.5}, [("rating", 0.5)]),
            ({"value": 0.5}, {"value": True}, [("wandb.reaction.1", "👍")]),
            ({"comment": "short"}, {"comment": "l" * 1025}, [("comment", "l" * 1025)]),
            ({"comment": "l" * 1025}, {"comment": "short"}, [("wandb.note.1", "short")]),
            ({"value": True, "comment": "c"}, {"value": True}, [("wandb.reaction.1", "👍")]),
            ({"comment": "c"}, {"value": True}, [("wandb.reaction.1", "👍")]),
            (
                {"value": True},
                {"value": True, "comment": "c"},
                [("wandb.reaction.1", "👍"), ("wandb.note.1", "c")],
            ),
        ],
    )
    def test_what_stands_is_the_last_word(
        self, sandbox: Sandbox, pipeline: Pipeline, handle: of.FeedbackHandle, before: Any, after: Any, expected: Any
    ) -> None:
        """
        One person, one row of each part, also where its type is another one now.
        """
        feedback = pipeline()
        first = feedback.record(handle, "rating", user_id="ada", **before)
        assert feedback.force_flush(10_000)
        second = feedback.record(handle, "rating", user_id="ada", **after)
        assert feedback.force_flush(10_000)

        assert (first.id, "delivered") == (second.id, state_of(feedback, second))
        assert expected == rows(sandbox)

    def test_what_was_not_delivered_yet_is_never_sent(
        self, sandbox: Sandbox, pipeline: Pipeline, handle: of.FeedbackHandle
    ) -> None:
        """
        The second word supersedes the first one in the store.
        """
        recorder = pipeline(delivery="none")
        recorder.record(handle, "rating", True, user_id="ada")
        recorder.record(handle, "rating", False, user_id="ada")
        assert pipeline().force_flush(10_000)

        assert (["/weave/feedback/create"], [("wandb.reaction.1", "👎")]) == (paths(sandbox), rows(sandbox))

    @pytest.mark.parametrize("kind", ["reset_after", "truncated", "status"])
    def test_a_change_while_the_first_is_in_flight_leaves_one(
        self, sandbox: Sandbox, pipeline: Pipeline, handle: of.FeedbackHandle, kind: Any
    ) -> None:
        """
        The first word may have arrived or not, nobody knows; the second one replaces it either way.
        """
        sandbox.inject(Fault(vendor="weave", path="/feedback/*", kind=kind, times=1))
        first = pipeline()
        first.record(handle, "rating", True, user_id="ada")
        first.shutdown()
        second = pipeline()
        second.record(handle, "rating", False, user_id="ada")
        assert second.force_flush(10_000)

        assert [("wandb.reaction.1", "👎")] == rows(sandbox)


class TestRetract:
    def test_every_row_is_taken_back(self, sandbox: Sandbox, pipeline: Pipeline, handle: of.FeedbackHandle) -> None:
        """
        The value, the correction and the comment; what somebody else said stays.
        """
        feedback = pipeline()
        receipt = feedback.record(handle, "rating", True, comment="c", correction="x", user_id="ada")
        feedback.record(handle, "rating", False, user_id="ben")
        assert feedback.force_flush(10_000)
        feedback.retract(receipt.id)
        assert feedback.force_flush(10_000)

        assert ("retracted", [("wandb.reaction.1", "👎")]) == (state_of(feedback, receipt), rows(sandbox))

    def test_what_was_not_delivered_yet_is_never_sent(
        self, sandbox: Sandbox, pipeline: Pipeline, handle: of.FeedbackHandle
    ) -> None:
        """
        There is nothing to take back at Weave, and nothing is asked of it.
        """
        recorder = pipeline(delivery="none")
        receipt = recorder.record(handle, "rating", True, comment="c")
        recorder.retract(receipt.id)
        deliverer = pipeline()
        assert deliverer.force_flush(10_000)

        assert ([], "retracted") == (paths(sandbox), state_of(deliverer, receipt))

    def test_what_weave_no_longer_has_is_retracted_all_the_same(
        self, sandbox: Sandbox, pipeline: Pipeline, handle: of.FeedbackHandle
    ) -> None:
        """
        Somebody has removed the row in Weave's own page: a 404 means the same as 200.
        """
        feedback = pipeline()
        receipt = feedback.record(handle, "rating", True)
        assert feedback.force_flush(10_000)
        sandbox.reset()
        feedback.retract(receipt.id)
        assert feedback.force_flush(10_000)

        assert (["/weave/feedback/purge"], "retracted") == (paths(sandbox), state_of(feedback, receipt))

    def test_what_may_have_arrived_is_taken_back(
        self, sandbox: Sandbox, pipeline: Pipeline, handle: of.FeedbackHandle
    ) -> None:
        """
        The answer was lost after the row was stored, and the person takes it back before it is repeated.
        """
        sandbox.inject(Fault(vendor="weave", path="/feedback/*", kind="reset_after", times=1))
        first = pipeline()
        receipt = first.record(handle, "rating", True)
        first.shutdown()
        second = pipeline()
        second.retract(receipt.id)
        assert second.force_flush(10_000)

        assert ([], "retracted") == (rows(sandbox), state_of(second, receipt))


class TestBatches:
    def test_many_judgements_are_few_requests(
        self, sandbox: Sandbox, pipeline: Pipeline, handle: of.FeedbackHandle
    ) -> None:
        """
        Ten judgements with comments are twenty rows; a server with batches gets them in one request.
        """
        recorder = pipeline(delivery="none")
        recorder.record_many(
            [of.Feedback(name=f"aspect-{number}", target=handle, value=0.5, comment="c") for number in range(10)]
        )
        assert pipeline().force_flush(10_000)
        asked = paths(sandbox)

        assert 20 == len(rows(sandbox))
        assert asked in (
            ["/weave/feedback/batch/create"],
            ["/weave/feedback/batch/create", *["/weave/feedback/create"] * 20],
        )

    def test_a_bad_judgement_sinks_no_other(
        self, sandbox: Sandbox, pipeline: Pipeline, handle: of.FeedbackHandle
    ) -> None:
        """
        What Weave alone knows to be wrong, here an emoji of no country's flag, is a dead letter by itself.
        """
        recorder = pipeline(delivery="none")
        unlikely = {"weave": {"payload": {"emoji": "👍\u200d👎\u200d👍"}, "feedback_type": "wandb.reaction.1"}}
        receipts = recorder.record_many(
            [
                of.Feedback(name="rating", target=handle, value=True, native=unlikely if number == 3 else {})
                for number in range(8)
            ]
        )
        sandbox.inject(Fault(vendor="weave", path="/feedback/batch/create", status=400, times=1))
        deliverer = pipeline()
        assert deliverer.force_flush(10_000)

        assert {"delivered"} == {state_of(deliverer, each) for each in receipts}
