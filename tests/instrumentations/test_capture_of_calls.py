"""`@capture` around functions that call the real client, or that hand its stream on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import openai
import pytest
from application import QUESTION, WAYS, Way, ask, joined
from chat_completions import CUT, MODEL, WORDS, ChatCompletions
from instrumented import ALL, GENAI_OPENAI, OPENAI_V2, Instrumentation
from openai.types.chat import ChatCompletionChunk
from opentelemetry import trace

import otel_feedback as of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TEXT = "".join(WORDS)

each_instrumentation = pytest.mark.parametrize("instrumentation", ALL, ids=str)
# The client as it is, too: its streams are then its own objects, without an instrumentation's proxy around.
each_client = pytest.mark.parametrize("instrumentation", [None, *ALL], ids=str)


@pytest.fixture(autouse=True)
def _instrumented(
    instrumentation: Instrumentation | None, tracer_provider: TracerProvider, feedback: of.FeedbackProvider
) -> Iterator[None]:
    """The client is instrumented during the test, if it is."""
    switched: AbstractContextManager[None] = (
        nullcontext() if instrumentation is None else instrumentation.on(tracer_provider)
    )
    with switched:
        yield


@pytest.fixture
def client(model: ChatCompletions) -> Iterator[openai.OpenAI]:
    """The application's client."""
    with openai.OpenAI(base_url=model.url, api_key="x", max_retries=0) as client:
        yield client


def own_span(spans: InMemorySpanExporter) -> ReadableSpan:
    """Take the captured call's span, which is the outermost."""
    (own,) = [span for span in spans.get_finished_spans() if span.parent is None]
    return own


def chat_span(spans: InMemorySpanExporter) -> ReadableSpan:
    """Take the model's span, which is inside of the captured call's."""
    (chat,) = [span for span in spans.get_finished_spans() if span.parent == own_span(spans).context]
    return chat


def is_in_a_span() -> bool:
    return trace.get_current_span().get_span_context().is_valid


def span_of(key: str) -> trace.SpanContext:
    return of.get_feedback_provider().handle_for_key(key).context


# --- around the call ---------------------------------------------------------------------------------------------


@each_instrumentation
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("target", ["call", "llm"])
def test_the_apps_key_names_the_call_or_the_chat_inside_of_it(
    target: Literal["call", "llm"],
    way: Way,
    instrumentation: Instrumentation,
    model: ChatCompletions,
    spans: InMemorySpanExporter,
) -> None:
    """
    The chat is a child of the captured call; `target` says which of the two the app's own id means.
    """

    @of.capture(key="message_id", target=target)
    def answer(*, message_id: str) -> str:
        return ask(model.url, way).text

    assert TEXT == answer(message_id="msg-1")
    own, chat = own_span(spans), chat_span(spans)
    assert {"call": own.context, "llm": chat.context}[target] == span_of("msg-1")


@each_instrumentation
def test_inside_of_a_captured_coroutine_the_chat_is_its_child(
    instrumentation: Instrumentation, model: ChatCompletions, spans: InMemorySpanExporter
) -> None:
    """
    The same for a coroutine function, which the event loop runs beside others.
    """

    @of.capture(key="message_id")
    async def answer(*, message_id: str) -> str:
        async with openai.AsyncOpenAI(base_url=model.url, api_key="x") as client:
            stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
            return joined([chunk async for chunk in stream]).text

    async def serve() -> list[str]:
        return await asyncio.gather(answer(message_id="msg-1"), answer(message_id="msg-2"))

    assert [TEXT, TEXT] == asyncio.run(serve())
    parents = {span.parent.span_id for span in spans.get_finished_spans() if span.parent}
    assert {span_of("msg-1").span_id, span_of("msg-2").span_id} == parents


@each_instrumentation
def test_a_generator_that_reads_the_stream_is_captured_until_its_last_word(
    instrumentation: Instrumentation, client: openai.OpenAI, spans: InMemorySpanExporter
) -> None:
    """
    The id can travel before the first word, and nothing is current in the caller between two words.
    """

    @of.capture(key="message_id", target="llm")
    def answer(*, message_id: str) -> Iterator[str]:
        for chunk in client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True):
            yield chunk.choices[0].delta.content or ""

    words = answer(message_id="msg-1")
    early = of.handle_of(words)
    leaked = {is_in_a_span() for _ in words}

    own, chat = own_span(spans), chat_span(spans)
    assert early is not None
    assert own.context == early.context
    assert chat.context == span_of("msg-1")
    assert {False} == leaked


@each_instrumentation
def test_an_async_generator_that_reads_the_stream_is_captured_until_its_last_word(
    instrumentation: Instrumentation, model: ChatCompletions, spans: InMemorySpanExporter
) -> None:
    """
    The same for the asynchronous client.
    """

    @of.capture(key="message_id", target="llm")
    async def answer(*, message_id: str) -> AsyncIterator[str]:
        async with openai.AsyncOpenAI(base_url=model.url, api_key="x") as client:
            stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
            async for chunk in stream:
                yield chunk.choices[0].delta.content or ""

    async def read() -> tuple[of.FeedbackHandle | None, str, set[bool]]:
        words = answer(message_id="msg-1")
        early, text, leaked = of.handle_of(words), "", set()
        async for word in words:
            text += word
            leaked.add(is_in_a_span())
        return early, text, leaked

    early, text, leaked = asyncio.run(read())

    own, chat = own_span(spans), chat_span(spans)
    assert early is not None
    assert (own.context, chat.context, TEXT, {False}) == (early.context, span_of("msg-1"), text, leaked)


# --- functions that hand the stream on ---------------------------------------------------------------------------


def asking(client: openai.OpenAI, model: str = MODEL) -> Callable[..., Any]:
    """Make a captured function that answers with the client's own stream."""

    @of.capture(key="message_id")
    def answer(*, message_id: str) -> openai.Stream[ChatCompletionChunk]:
        return client.chat.completions.create(model=model, messages=QUESTION, stream=True)

    return answer


def asking_async(model: str = MODEL) -> Callable[..., Any]:
    """Make a captured coroutine function that answers with the asynchronous client's own stream."""

    @of.capture(key="message_id")
    async def answer(client: openai.AsyncOpenAI, *, message_id: str) -> openai.AsyncStream[ChatCompletionChunk]:
        return await client.chat.completions.create(model=model, messages=QUESTION, stream=True)

    return answer


@each_client
def test_a_returned_stream_keeps_its_call_open_until_it_is_exhausted(
    instrumentation: Instrumentation | None, client: openai.OpenAI, spans: InMemorySpanExporter
) -> None:
    """
    The handle is there before the first chunk; the chunks arrive as they are; the span ends with the last of them.
    """
    stream = asking(client)(message_id="msg-1")
    early = of.handle_of(stream)
    before = len(spans.get_finished_spans())
    chunks = list(stream)

    own = own_span(spans)
    assert (0, TEXT, {ChatCompletionChunk}) == (before, joined(chunks).text, {type(chunk) for chunk in chunks})
    assert early is not None
    assert (own.context, own.context) == (early.context, span_of("msg-1"))
    assert own.status.is_ok or own.status.is_unset


@each_client
def test_a_returned_stream_looks_like_what_it_is(
    instrumentation: Instrumentation | None, client: openai.OpenAI, spans: InMemorySpanExporter
) -> None:
    """
    Type checks and attributes of the client's stream hold for what stands in for it.
    """
    plain = client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
    stream = asking(client)(message_id="msg-1")
    looks = [isinstance(each, openai.Stream) for each in (plain, stream)]
    answers = [(each.response.status_code, each.response.headers["content-type"]) for each in (plain, stream)]
    for each in (plain, stream):
        each.close()

    # The stream of openai-v2 is none of the client's, captured or not.
    assert [instrumentation != OPENAI_V2] * 2 == looks
    assert [(200, "text/event-stream")] * 2 == answers
    assert plain.response.is_closed is stream.response.is_closed


@each_client
def test_a_returned_stream_as_a_context_manager_ends_its_call_at_the_exit(
    instrumentation: Instrumentation | None, client: openai.OpenAI, spans: InMemorySpanExporter
) -> None:
    """
    `with` gives the stream that knows its call, and leaving early is no error.
    """
    with asking(client)(message_id="msg-1") as stream:
        next(stream)
        inside = of.handle_of(stream)

    own = own_span(spans)
    assert inside is not None
    assert (own.context, own.context) == (inside.context, span_of("msg-1"))
    assert own.status.is_unset


@each_client
def test_a_returned_stream_that_is_closed_ends_its_call(
    instrumentation: Instrumentation | None, client: openai.OpenAI, spans: InMemorySpanExporter
) -> None:
    """
    An application that has read enough closes the stream.
    """
    stream = asking(client)(message_id="msg-1")
    next(iter(stream))
    stream.close()

    assert span_of("msg-1") == own_span(spans).context


@each_client
def test_a_returned_stream_that_is_cut_ends_its_call_with_the_error(
    instrumentation: Instrumentation | None, client: openai.OpenAI, spans: InMemorySpanExporter
) -> None:
    """
    The client's error comes out as it is, and the span says so.
    """
    stream = asking(client, CUT)(message_id="msg-1")
    with pytest.raises(openai.APIConnectionError):
        list(stream)

    own = own_span(spans)
    assert trace.StatusCode.ERROR is own.status.status_code
    assert ["openai.APIConnectionError"] == [event.attributes["exception.type"] for event in own.events]


@each_client
def test_a_returned_async_stream_keeps_its_call_open_until_it_is_exhausted(
    instrumentation: Instrumentation | None, model: ChatCompletions, spans: InMemorySpanExporter
) -> None:
    """
    The same for the asynchronous client, whose stream an awaited function answers with.
    """

    async def read() -> tuple[of.FeedbackHandle | None, int, str, bool, int]:
        async with openai.AsyncOpenAI(base_url=model.url, api_key="x") as client:
            stream = await asking_async()(client, message_id="msg-1")
            early, before = of.handle_of(stream), len(spans.get_finished_spans())
            is_stream, status = isinstance(stream, openai.AsyncStream), stream.response.status_code
            return early, before, joined([chunk async for chunk in stream]).text, is_stream, status

    early, *facts = asyncio.run(read())

    own = own_span(spans)
    assert [0, TEXT, instrumentation != OPENAI_V2, 200] == facts
    assert early is not None
    assert (own.context, own.context) == (early.context, span_of("msg-1"))


@each_client
def test_a_returned_async_stream_as_a_context_manager_ends_its_call_at_the_exit(
    instrumentation: Instrumentation | None, model: ChatCompletions, spans: InMemorySpanExporter
) -> None:
    """
    `async with` gives the stream that knows its call, and leaving early is no error.
    """

    async def read() -> of.FeedbackHandle | None:
        async with (
            openai.AsyncOpenAI(base_url=model.url, api_key="x") as client,
            await asking_async()(client, message_id="msg-1") as stream,
        ):
            await anext(aiter(stream))
            return of.handle_of(stream)

    inside = asyncio.run(read())

    own = own_span(spans)
    assert inside is not None
    assert (own.context, own.context) == (inside.context, span_of("msg-1"))
    assert own.status.is_unset


@each_client
def test_the_clients_stream_manager_is_captured_until_its_exit(
    instrumentation: Instrumentation | None, client: openai.OpenAI, spans: InMemorySpanExporter
) -> None:
    """
    `client.chat.completions.stream(…)` opens the stream when it is entered; that is inside of the call, too.
    """

    @of.capture(key="message_id")
    def answer(*, message_id: str) -> Any:
        return client.chat.completions.stream(model=MODEL, messages=QUESTION)

    manager = answer(message_id="msg-1")
    early = of.handle_of(manager)
    with manager as stream:
        for _ in stream:
            pass
        text = stream.get_final_completion().choices[0].message.content
        inside = of.handle_of(stream)

    own = own_span(spans)
    assert TEXT == text
    assert early is not None
    assert inside is not None
    assert (own.context, own.context, own.context) == (early.context, inside.context, span_of("msg-1"))


@each_client
def test_the_async_clients_stream_manager_is_captured_until_its_exit(
    instrumentation: Instrumentation | None, model: ChatCompletions, spans: InMemorySpanExporter
) -> None:
    """
    The same for the asynchronous one.
    """

    @of.capture(key="message_id")
    def answer(client: openai.AsyncOpenAI, *, message_id: str) -> Any:
        return client.chat.completions.stream(model=MODEL, messages=QUESTION)

    async def read() -> tuple[of.FeedbackHandle | None, str | None]:
        async with (
            openai.AsyncOpenAI(base_url=model.url, api_key="x") as client,
            answer(client, message_id="msg-1") as stream,
        ):
            async for _ in stream:
                pass
            return of.handle_of(stream), (await stream.get_final_completion()).choices[0].message.content

    inside, text = asyncio.run(read())

    own = own_span(spans)
    assert TEXT == text
    assert inside is not None
    assert (own.context, own.context) == (inside.context, span_of("msg-1"))


@each_client
def test_what_an_instrumentation_attaches_in_the_function_does_not_reach_its_caller(
    instrumentation: Instrumentation | None, client: openai.OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """
    What an instrumentation attaches in the function and detaches at the stream's last step is there at that step only.
    """
    are_in = [is_in_a_span() for _ in asking(client)(message_id="msg-1")]

    assert [] == caplog.messages
    assert not any(are_in)
    assert not is_in_a_span()


@pytest.mark.parametrize("instrumentation", [GENAI_OPENAI], ids=str)
def test_a_function_of_the_chunks_gives_the_key(
    instrumentation: Instrumentation, client: openai.OpenAI, spans: InMemorySpanExporter
) -> None:
    """
    An app without ids of its own takes the model's, from the first chunk that has one.
    """

    @of.capture(key=lambda chunk: f"app:{chunk.id}")
    def answer() -> openai.Stream[ChatCompletionChunk]:
        return client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)

    chunks = list(answer())

    own, chat = own_span(spans), chat_span(spans)
    assert (own.context, chat.context) == (span_of(f"app:{chunks[0].id}"), span_of(chunks[0].id))
