"""Two instrumentations on one client: what the application did once is captured once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
from application import STREAMING_WAYS, WAYS, Way, ask
from instrumented import GENAI_OPENAI, OPENAI_V2, OPENINFERENCE, OPENLLMETRY, Instrumentation, instrumented

import otel_feedback as of

if TYPE_CHECKING:
    from chat_completions import ChatCompletions
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

PAIRS = (
    (GENAI_OPENAI, OPENINFERENCE),
    (OPENAI_V2, OPENINFERENCE),
    (OPENLLMETRY, OPENINFERENCE),
    (GENAI_OPENAI, OPENLLMETRY),
    (OPENLLMETRY, GENAI_OPENAI),
)


def name_of(pair: Sequence[Instrumentation]) -> str:
    return "+".join(each.name for each in pair)


each_pair = pytest.mark.parametrize("pair", PAIRS, ids=name_of)
each_way = pytest.mark.parametrize("way", WAYS, ids=str)


def span_id(span: ReadableSpan) -> int:
    return span.context.span_id


def nested(spans: InMemorySpanExporter) -> tuple[ReadableSpan, ReadableSpan]:
    """Take the two spans of one call, the inner one first, as they ended."""
    inner, outer = spans.get_finished_spans()
    assert inner.parent is not None
    assert span_id(outer) == inner.parent.span_id
    return inner, outer


@each_pair
@each_way
def test_one_call_is_one_handle_and_its_response_id_names_the_same_span(
    way: Way,
    pair: Sequence[Instrumentation],
    model: ChatCompletions,
    tracer_provider: TracerProvider,
    spans: InMemorySpanExporter,
    feedback: of.FeedbackProvider,
) -> None:
    """
    Two spans for one call are one captured call, the inner span's, with what either of them knows.
    """
    with instrumented(tracer_provider, *pair), of.collect_handles() as collected:
        answer = ask(model.url, way)

    (handle,) = collected
    inner, _outer = nested(spans)
    assert span_id(inner) == handle.context.span_id
    assert handle == feedback.handle_for_key(answer.id)
    assert answer.id == handle.attributes["gen_ai.response.id"]


@each_pair
@each_way
def test_the_key_of_a_captured_call_with_target_llm_names_it_too(
    way: Way,
    pair: Sequence[Instrumentation],
    model: ChatCompletions,
    tracer_provider: TracerProvider,
    spans: InMemorySpanExporter,
    feedback: of.FeedbackProvider,
) -> None:
    """
    Whichever way one asks for the call of the model, it is the same span.
    """

    @of.capture(key="message_id", target="llm")
    def answer_question(*, message_id: str) -> str:
        return ask(model.url, way).id

    with instrumented(tracer_provider, *pair):
        response_id = answer_question(message_id="msg-1")

    assert feedback.handle_for_key(response_id).context == feedback.handle_for_key("msg-1").context


@each_pair
@pytest.mark.parametrize("way", STREAMING_WAYS, ids=str)
def test_while_the_stream_runs_the_last_handle_is_one_of_its_spans(
    way: Way,
    pair: Sequence[Instrumentation],
    model: ChatCompletions,
    tracer_provider: TracerProvider,
    spans: InMemorySpanExporter,
    feedback: of.FeedbackProvider,
) -> None:
    """
    Before the first chunk the newest span of the call is at hand: the inner one, which is what stays.
    """
    seen: list[of.FeedbackHandle | None] = []
    with instrumented(tracer_provider, *pair), of.collect_handles() as collected:
        ask(model.url, way, before_first=lambda: seen.append(collected.last))

    inner, _outer = nested(spans)
    assert [span_id(inner)] == [each.context.span_id for each in seen if each is not None]


@each_pair
def test_two_calls_are_two_handles(
    pair: Sequence[Instrumentation],
    model: ChatCompletions,
    tracer_provider: TracerProvider,
    feedback: of.FeedbackProvider,
) -> None:
    """
    Only what is nested is one call: a second question is a second call.
    """
    way = WAYS[0]
    with instrumented(tracer_provider, *pair), of.collect_handles() as collected:
        answers = [ask(model.url, way).id, ask(model.url, way).id]

    assert answers == [each.attributes["gen_ai.response.id"] for each in collected]


@each_pair
def test_concurrent_calls_do_not_mix(
    pair: Sequence[Instrumentation],
    model: ChatCompletions,
    tracer_provider: TracerProvider,
    feedback: of.FeedbackProvider,
) -> None:
    """
    Requests beside each other have a handle each, and none of another's.
    """

    async def request() -> tuple[str, list[str]]:
        with of.collect_handles() as collected:
            answer = await asyncio.to_thread(ask, model.url, Way(is_async=False, streams=True))
        return answer.id, [each.attributes["gen_ai.response.id"] for each in collected]

    async def serve() -> list[tuple[str, list[str]]]:
        return await asyncio.gather(*(request() for _ in range(8)))

    with instrumented(tracer_provider, *pair):
        answered = asyncio.run(serve())

    assert 8 == len({answer for answer, _ in answered})
    assert [(answer, [answer]) for answer, _ in answered] == answered
