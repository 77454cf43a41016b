"""An application with the `openai` client and one instrumentation, and no decorator of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import openai
import pytest
from application import QUESTION, STREAMING_WAYS, WAYS, Answer, Way, ask
from chat_completions import CUT, EMBEDDING_MODEL, FAILURES, FULL_MODEL, MODEL, WORDS, ChatCompletions
from instrumented import ALL, THAT_SAY_THE_ID, Instrumentation

import otel_feedback as of
from otel_feedback.testing import InMemoryFeedbackExporter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

Ids = tuple[int, int]


@pytest.fixture(params=ALL, ids=str)
def instrumentation(request: pytest.FixtureRequest) -> Instrumentation:
    """Each of them."""
    return request.param


@pytest.fixture(autouse=True)
def _instrumented(instrumentation: Instrumentation, tracer_provider: TracerProvider, feedback: object) -> Any:
    """The client is instrumented during the test."""
    with instrumentation.on(tracer_provider):
        yield


says_the_id = pytest.mark.parametrize("instrumentation", THAT_SAY_THE_ID, ids=str)
each_way = pytest.mark.parametrize("way", WAYS, ids=str)
each_stream = pytest.mark.parametrize("way", STREAMING_WAYS, ids=str)


def only_span(spans: InMemorySpanExporter) -> ReadableSpan:
    """Take the one span that the call made."""
    (span,) = spans.get_finished_spans()
    return span


def ids_of(span: ReadableSpan) -> Ids:
    return span.context.trace_id, span.context.span_id


def ids_in(handle: of.FeedbackHandle) -> Ids:
    return handle.context.trace_id, handle.context.span_id


def judge_by_key(key: str) -> None:
    of.record_feedback(key=key, name="rating", value=True, comment="Spot on", user_id="u-42")
    assert of.get_feedback_provider().force_flush()


@says_the_id
@each_way
def test_feedback_by_the_id_that_the_client_got_lands_on_the_chat_span(
    way: Way,
    model: ChatCompletions,
    spans: InMemorySpanExporter,
    judgements: InMemoryFeedbackExporter,
    instrumentation: Instrumentation,
) -> None:
    """
    Whoever has the answer's id can judge it; the application knows nothing of traces.
    """
    answer = ask(model.url, way)
    judge_by_key(answer.id)

    assert Answer(answer.id, "".join(WORDS)) == answer
    assert [ids_of(only_span(spans))] == [ids_in(record.handle) for record in judgements.records]


@each_way
def test_a_call_is_one_handle_that_says_what_the_instrumentation_knows(
    way: Way, model: ChatCompletions, spans: InMemorySpanExporter, instrumentation: Instrumentation
) -> None:
    """
    Operation, provider, models and response id have one name each, whatever the instrumentation calls them.
    """
    with of.collect_handles() as collected:
        answer = ask(model.url, way)

    (handle,) = collected
    span = only_span(spans)
    assert instrumentation.handle_attributes(answer.id) == handle.attributes
    assert (ids_of(span), span.start_time, span.end_time) == (ids_in(handle), handle.started_at, handle.ended_at)
    assert handle is collected.last


@pytest.mark.parametrize("instrumentation", [each for each in ALL if not each.says_id], ids=str)
@each_way
def test_without_a_response_id_on_the_span_the_collected_handle_is_the_way(
    way: Way,
    model: ChatCompletions,
    spans: InMemorySpanExporter,
    judgements: InMemoryFeedbackExporter,
    instrumentation: Instrumentation,
) -> None:
    """
    OpenInference writes the answer's id nowhere but into its text: the id is no key, and the handle is at hand.
    """
    with of.collect_handles() as collected:
        answer = ask(model.url, way)
    of.record_feedback(collected[-1], "rating", True)
    of.get_feedback_provider().force_flush()

    assert [ids_of(only_span(spans))] == [ids_in(record.handle) for record in judgements.records]
    with pytest.raises(of.UnknownTargetError):
        of.record_feedback(key=answer.id, name="rating", value=True)


@each_stream
def test_the_handle_is_there_before_the_first_chunk(
    way: Way, model: ChatCompletions, spans: InMemorySpanExporter, instrumentation: Instrumentation
) -> None:
    """
    While the span of a stream still runs it is in the collection, with what its start said and without an end.
    """
    seen: list[of.FeedbackHandle | None] = []
    with of.collect_handles() as collected:
        ask(model.url, way, before_first=lambda: seen.append(collected.last))

    (early,) = seen
    assert early is not None
    assert (ids_of(only_span(spans)), instrumentation.early, None) == (ids_in(early), early.attributes, early.ended_at)
    assert [early.context] == [handle.context for handle in collected]


@says_the_id
@each_stream
def test_a_stream_that_is_closed_early_is_judged_all_the_same(
    way: Way,
    model: ChatCompletions,
    spans: InMemorySpanExporter,
    judgements: InMemoryFeedbackExporter,
    instrumentation: Instrumentation,
) -> None:
    """
    A user who stops the answer has an opinion on it.
    """
    answer = ask(model.url, way, take=3)
    judge_by_key(answer.id)

    assert [ids_of(only_span(spans))] == [ids_in(record.handle) for record in judgements.records]


@says_the_id
@each_stream
def test_a_stream_that_was_cut_is_judged_by_the_id_of_its_chunks(
    way: Way,
    model: ChatCompletions,
    spans: InMemorySpanExporter,
    judgements: InMemoryFeedbackExporter,
    instrumentation: Instrumentation,
) -> None:
    """
    The connection broke after the id was known: what came of the answer is a call like any other.
    """
    with of.collect_handles() as collected, pytest.raises(openai.APIConnectionError):
        ask(model.url, way, model=CUT)
    (handle,) = collected
    judge_by_key(handle.attributes["gen_ai.response.id"])

    assert [ids_of(only_span(spans))] == [ids_in(record.handle) for record in judgements.records]


@pytest.mark.parametrize("failing", FAILURES)
@each_way
def test_a_call_that_failed_is_collected_and_has_no_key(
    failing: str,
    way: Way,
    model: ChatCompletions,
    spans: InMemorySpanExporter,
    feedback: of.FeedbackProvider,
    instrumentation: Instrumentation,
) -> None:
    """
    A refused call can be judged by its handle; there was no answer, so there is no id.
    """
    with of.collect_handles() as collected, pytest.raises(openai.APIStatusError):
        ask(model.url, way, model=failing)

    (handle,) = collected
    assert ids_of(only_span(spans)) == ids_in(handle)
    assert ("chat", None) == (
        handle.attributes["gen_ai.operation.name"],
        handle.attributes.get("gen_ai.response.id"),
    )


def test_embeddings_are_no_call_of_a_model_that_answers(
    model: ChatCompletions, spans: InMemorySpanExporter, instrumentation: Instrumentation
) -> None:
    """
    An embedding has a span, and nobody judges it.
    """
    with of.collect_handles() as collected, openai.OpenAI(base_url=model.url, api_key="x") as client:
        client.embeddings.create(model=EMBEDDING_MODEL, input="Paris", encoding_format="float")

    assert (1, []) == (len(spans.get_finished_spans()), list(collected))


def create(client: openai.OpenAI) -> str:
    return client.responses.create(model=MODEL, input="capital?").id


def create_streaming(client: openai.OpenAI) -> str:
    events: list[Any] = list(client.responses.create(model=MODEL, input="capital?", stream=True))
    return events[-1].response.id


@pytest.mark.parametrize("respond", [create, create_streaming])
@pytest.mark.parametrize("instrumentation", [each for each in THAT_SAY_THE_ID if each.knows_responses], ids=str)
def test_the_responses_endpoint_is_a_chat_too(
    respond: Callable[[openai.OpenAI], str],
    model: ChatCompletions,
    spans: InMemorySpanExporter,
    judgements: InMemoryFeedbackExporter,
    instrumentation: Instrumentation,
) -> None:
    """
    Feedback by the id of a response lands on its span, streamed or not.
    """
    with of.collect_handles() as collected, openai.OpenAI(base_url=model.url, api_key="x") as client:
        response_id = respond(client)
    judge_by_key(response_id)

    assert [ids_of(only_span(spans))] == [ids_in(record.handle) for record in judgements.records]
    assert [("chat", FULL_MODEL)] == [
        (each.attributes["gen_ai.operation.name"], each.attributes["gen_ai.response.model"]) for each in collected
    ]


def by_manager(client: openai.OpenAI) -> str:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion().id


def by_raw_response(client: openai.OpenAI) -> str:
    return client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION).parse().id


@pytest.mark.parametrize("call", [by_manager, by_raw_response])
@says_the_id
def test_the_clients_other_forms_of_a_call_are_seen(
    call: Callable[[openai.OpenAI], str],
    model: ChatCompletions,
    spans: InMemorySpanExporter,
    judgements: InMemoryFeedbackExporter,
    instrumentation: Instrumentation,
) -> None:
    """
    The stream helper and the raw response are the same call.
    """
    with openai.OpenAI(base_url=model.url, api_key="x") as client:
        answer_id = call(client)
    judge_by_key(answer_id)

    assert [ids_of(only_span(spans))] == [ids_in(record.handle) for record in judgements.records]
