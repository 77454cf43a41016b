"""The whole public API as a type checker sees it; nothing here is run.

Right uses must pass mypy --strict and pyright. Wrong ones carry an ignore comment, which is itself an error where the
use is not refused (mypy's `warn_unused_ignores`).
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from typing_extensions import assert_type

import otel_feedback as of
from otel_feedback.testing import FakeClock, InMemoryFeedbackExporter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# --- @capture keeps the exact signature --------------------------------------------------------------------------


@of.capture
def bare(question: str, /, *rest: int, flag: bool = False) -> list[str]:
    return [question]


@of.capture(key="message_id", name="answer", target="llm", span=False)
def with_arguments(question: str, *, message_id: str) -> str:
    return question


@of.capture(key=lambda result: result["id"], target="root")
async def asynchronous(question: str, *, message_id: uuid.UUID | None = None) -> dict[str, int]:
    return {"id": 1}


@of.capture(key="message_id")
def streaming(question: str, *, message_id: str) -> Iterator[str]:
    yield question


@of.capture(key=lambda item: item.get("id"))
def generating(question: str) -> Generator[dict[str, str], int, bool]:
    yield {}
    return True


@of.capture
async def streaming_later(question: str) -> AsyncGenerator[bytes, None]:
    yield b""


@of.capture
def managing(question: str) -> AbstractContextManager[Iterator[str]]:
    return nullcontext(iter(question))


@of.capture
def promising(question: str) -> Future[str]:
    return Future()


class Agent:
    @of.capture(key="message_id")
    def method(self, question: str, message_id: str = "m") -> str:
        return question

    @of.capture
    async def async_method(self, question: str) -> int:
        return 1

    @classmethod
    @of.capture
    def class_method(cls, question: str) -> Agent:
        return cls()

    @staticmethod
    @of.capture
    def static_method(question: str) -> bytes:
        return b""

    def __call__(self, question: str) -> float:
        return 1.0


assert_type(bare("q", 1, 2, flag=True), list[str])
assert_type(with_arguments("q", message_id="m"), str)
assert_type(Agent().method("q", "m"), str)
assert_type(Agent.method(Agent(), "q"), str)
assert_type(Agent.class_method("q"), Agent)
assert_type(Agent.static_method("q"), bytes)
assert_type(of.capture(Agent())("q"), float)
assert_type(of.capture(partial(with_arguments, "q"))(message_id="m"), str)
as_callable: Callable[[str], Coroutine[Any, Any, dict[str, int]]] = asynchronous

assert_type(streaming("q", message_id="m"), Iterator[str])
assert_type(generating("q"), Generator[dict[str, str], int, bool])
assert_type(streaming_later("q"), AsyncGenerator[bytes, None])
assert_type(managing("q"), AbstractContextManager[Iterator[str]])
assert_type(promising("q"), Future[str])
assert_type(of.handle_of(streaming_later("q")), of.FeedbackHandle | None)

streaming("q")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
bare(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bare(question="q")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
with_arguments("q")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
with_arguments("q", "m")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Agent().method()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Agent.static_method(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
of.capture(5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
assert_type(of.capture(partial(bare, "q"), key="flag"), partial[list[str]])
of.capture(key=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
of.capture(target="span")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def awaited() -> None:
    assert_type(await asynchronous("q", message_id=None), dict[str, int])
    assert_type(await Agent().async_method("q"), int)
    async for item in streaming_later("q"):
        assert_type(item, bytes)


# --- blocks, handles, keys ---------------------------------------------------------------------------------------


def blocks() -> None:
    with of.capture_span("answer", model="gpt", temperature=0.5) as handle:
        assert_type(handle, of.FeedbackHandle)
        of.bind_key(handle, "m-1")
        of.bind_key(handle, "c-1", kind="conversation")
    with of.collect_handles() as collected:
        assert_type(collected.last, of.FeedbackHandle | None)
        assert_type(collected[0], of.FeedbackHandle)
        assert_type(len(collected), int)
    assert_type(of.current_handle(), of.FeedbackHandle | None)
    assert_type(of.handle_of(iter([1])), of.FeedbackHandle | None)
    of.bind_key("m-1", handle)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def async_blocks() -> None:
    async with of.capture_span() as handle:
        assert_type(handle, of.FeedbackHandle)


def handles(handle: of.FeedbackHandle) -> None:
    assert_type((handle.trace_id, handle.span_id, handle.root_span_id), tuple[str, str, str])
    assert_type((handle.is_valid, handle.is_sampled), tuple[bool, bool])
    assert_type((handle.started_at, handle.ended_at), tuple[int | None, int | None])
    assert_type(handle.context, trace.SpanContext)
    assert_type(handle.attributes, Mapping[str, str])
    assert_type(handle.to_traceparent(), str)
    assert_type(of.FeedbackHandle.from_traceparent("00-…", attributes={"user.id": "u"}), of.FeedbackHandle)
    assert_type(of.FeedbackHandle.from_span(trace.get_current_span()), of.FeedbackHandle)
    handle.root = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


# --- recording ---------------------------------------------------------------------------------------------------


def recording(handle: of.FeedbackHandle) -> None:
    assert_type(of.record_feedback(handle, "rating", True), of.Receipt)
    assert_type(of.record_feedback("token", "rating", 4, scale=(1, 5)), of.Receipt)
    assert_type(of.record_feedback(key="m-1", name="rating", value=["a", "b"], key_kind="app"), of.Receipt)
    of.record_feedback(
        handle,
        "rating",
        "label",
        comment="Spot on",
        correction={"any": ["json"]},
        tags=("a",),
        user_id="u-1",
        source="llm",
        metadata={"a": 1},
        time_unix_nano=datetime.now(timezone.utc),
        id=uuid.uuid4(),
        to=["weave"],
        native={"weave": {"annotation_ref": "…"}},
    )

    of.record_feedback(handle)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    of.record_feedback(name="rating", value=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    of.record_feedback(handle, "rating", object())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    of.record_feedback(handle, "rating", True, key="m-1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    of.record_feedback(handle, "rating", True, source="robot")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    of.record_feedback(handle, "rating", True, coment="typo")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def recording_later(handle: of.FeedbackHandle, provider: of.FeedbackProvider) -> None:
    assert_type(await of.arecord_feedback(handle, "rating", True, comment="x"), of.Receipt)
    assert_type(await of.arecord_feedback(key="m-1", name="rating", value=0.5), of.Receipt)
    assert_type(await provider.arecord(handle, "rating", True), of.Receipt)
    assert_type(await provider.arecord(key="m-1", name="rating", value=True), of.Receipt)
    await of.arecord_feedback(handle, "rating", object())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def many(handle: of.FeedbackHandle) -> None:
    feedback = of.Feedback(target=handle, name="rating", value=True)
    assert_type(of.record_many([feedback, of.Feedback(key=17, name="rating", value=False)]), list[of.Receipt])
    assert_type(of.record_many(each for each in [feedback]), list[of.Receipt])
    of.Feedback(target=handle)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    of.record_many(["rating"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


def receipts(receipt: of.Receipt) -> None:
    assert_type(of.retract_feedback(receipt.id), of.Receipt)
    assert_type(receipt.deliveries, Mapping[str, of.DeliveryStatus])
    assert_type(receipt.not_carried, Mapping[str, tuple[str, ...]])
    assert_type(receipt.durability, str)
    for status in receipt.deliveries.values():
        assert_type((status.state, status.reason, status.attempts), tuple[str, str | None, int])


# --- configuring -------------------------------------------------------------------------------------------------


def redact(feedback: of.Feedback) -> of.Feedback:
    return feedback


def configuring(tracer_provider: TracerProvider) -> None:
    provider = of.configure(
        exporters=[
            of.OrqExporter(),
            of.BraintrustExporter(parent="project_name:chat"),
            of.WeaveExporter(project_id="acme/chat"),
            of.OTLPFeedbackExporter(),
            of.ConsoleFeedbackExporter(),
            InMemoryFeedbackExporter(),
        ],
        store=of.SQLiteStore("feedback.db", durability="process"),
        tracer_provider=tracer_provider,
        redact=redact,
        settings=of.Settings(on_unknown_key="park"),
    )
    assert_type(provider, of.FeedbackProvider)
    assert_type(of.configure(store="memory:"), of.FeedbackProvider)
    assert_type(of.get_feedback_provider(), of.FeedbackProvider)
    assert_type(of.install(tracer_provider), bool)
    of.set_feedback_provider(None)
    tracer_provider.add_span_processor(of.FeedbackSpanProcessor(provider))
    tracer_provider.add_span_processor(provider.span_processor)
    of.FeedbackInstrumentor().instrument(tracer_provider=tracer_provider)

    of.configure([])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    of.configure(exporters=["weave"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    of.configure(redact=print)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    of.Settings(on_unknown_key="drop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def providing(handle: of.FeedbackHandle) -> None:
    with of.FeedbackProvider(
        exporters=[], store=of.MemoryStore(), retry=of.RetryPolicy(), clock=FakeClock()
    ) as provider:
        assert_type(provider, of.FeedbackProvider)
        assert_type(provider.record(handle, "rating", True, user_id="u-1"), of.Receipt)
        assert_type(provider.record(key="m-1", name="rating", value=True), of.Receipt)
        assert_type(provider.record_many([]), list[of.Receipt])
        assert_type(provider.retract("id"), of.Receipt)
        assert_type(provider.status("id"), of.Receipt)
        assert_type(provider.handle_for_key("m-1", key_kind="response"), of.FeedbackHandle)
        assert_type(provider.force_flush(1_000), bool)
        for name, account in provider.stats().items():
            assert_type((name, account.pending, account.is_conserved), tuple[str, int, bool])
        for plan in provider.plan(of.Feedback(target=handle, name="rating", value=True)).values():
            assert_type((plan.parts, plan.skipped), tuple[Sequence[of.Part], str | None])
        provider.bind_key(handle, "m-1")
        provider.shutdown(timeout_millis=100)


async def providing_later() -> None:
    async with of.FeedbackProvider() as provider:
        assert_type(provider, of.FeedbackProvider)


# --- what others write -------------------------------------------------------------------------------------------


class Mine:
    name = "mine"

    def parts(self, record: of.FeedbackRecord) -> Sequence[of.Part]:
        return [of.Part(record=record, kind="value", body={"value": record.value}, carries=frozenset({"value"}))]

    def export(self, parts: Sequence[of.Part]) -> Sequence[of.Result]:
        results: list[of.Result] = [
            of.Success(),
            of.RetryableFailure("busy", retry_after_millis=1_000),
            of.PermanentFailure("no"),
            of.Unclear("lost"),
            of.PauseDestination("no key"),
            of.Skipped("nothing"),
        ]
        return results[: len(parts)]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return timeout_millis > 0

    def shutdown(self) -> None: ...


class NotOne:
    name = "not one"

    def export(self, parts: Sequence[of.Part]) -> None: ...


exporter: of.FeedbackExporter = Mine()
broken: of.FeedbackExporter = NotOne()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
stores: list[of.Store] = [of.MemoryStore(), of.SQLiteStore("feedback.db")]
index: of.CorrelationStore = stores[0]
outbox: of.Outbox = stores[0]


class MyHTTPExporter(of.HTTPFeedbackExporter):
    def __init__(self) -> None:
        super().__init__(name="mine", base_url="https://feedback.example", options=of.HTTPOptions(timeout_millis=100))


# --- errors ------------------------------------------------------------------------------------------------------


def errors(handle: of.FeedbackHandle) -> None:
    try:
        of.record_feedback(handle, "rating", True)
    except of.InvalidFeedbackError as error:
        assert_type(error.field, str)
    except of.UnknownTargetError as error:
        assert_type((error.key, error.store), tuple[str | None, str | None])
    except of.InvalidTokenError as error:
        assert_type(error.reason, str)
    except of.OutboxFullError as error:
        assert_type((error.limit, error.store), tuple[int, str])
    except of.StoreError as error:
        assert_type(error.store, str)
    except of.ConfigurationError as error:
        assert_type(error.setting, str | None)
    except of.MissingExtraError as error:
        assert_type(error.extra, str)
    except of.FeedbackError:
        raise
