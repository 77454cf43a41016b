"""pydantic-ai with its own instrumentation, alone and together with the client's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import openai
import pytest
from chat_completions import FULL_MODEL, MODEL, WORDS, ChatCompletions
from instrumented import GENAI_OPENAI, OPENAI_V2, OPENINFERENCE, Instrumentation
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

import otel_feedback as of
from otel_feedback.testing import InMemoryFeedbackExporter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

QUESTION = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class Answered:
    """What an agent said."""

    id: str
    text: str


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The thread's event loop: `run_sync` uses it, and would otherwise open one that nobody closes."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def client(model: ChatCompletions, loop: asyncio.AbstractEventLoop) -> Iterator[openai.AsyncOpenAI]:
    """The client that the agent uses."""
    client = openai.AsyncOpenAI(base_url=model.url, api_key="x", max_retries=0)
    yield client
    loop.run_until_complete(client.close())


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel])
def agent(
    request: pytest.FixtureRequest,
    client: openai.AsyncOpenAI,
    tracer_provider: TracerProvider,
    feedback: of.FeedbackProvider,
) -> Agent:
    """An agent with its own instrumentation, on either endpoint."""
    return agent_of(request.param, MODEL, client, tracer_provider)


def agent_of(kind: Any, model: str, client: openai.AsyncOpenAI, tracer_provider: TracerProvider) -> Agent:
    agent = Agent(kind(model, provider=OpenAIProvider(openai_client=client)), name="guide")
    agent.instrument = InstrumentationSettings(tracer_provider=tracer_provider)
    return agent


def answered(result: Any) -> Answered:
    last = result.all_messages()[-1]
    assert isinstance(last, ModelResponse)
    return Answered(str(last.provider_response_id), str(last.text))


def run_sync(agent: Agent, loop: asyncio.AbstractEventLoop, _seen: Callable[[], None]) -> Answered:
    return answered(agent.run_sync(QUESTION))


def run(agent: Agent, loop: asyncio.AbstractEventLoop, _seen: Callable[[], None]) -> Answered:
    return answered(loop.run_until_complete(agent.run(QUESTION)))


def run_stream(agent: Agent, loop: asyncio.AbstractEventLoop, seen: Callable[[], None]) -> Answered:
    async def read() -> Answered:
        async with agent.run_stream(QUESTION) as result:
            seen()
            async for _ in result.stream_text():
                pass
            return answered(result)

    return loop.run_until_complete(read())


Run = Callable[[Agent, asyncio.AbstractEventLoop, Callable[[], None]], Answered]
each_run = pytest.mark.parametrize("run_agent", [run_sync, run, run_stream])


def nothing() -> None:
    """See nothing."""


def named(spans: InMemorySpanExporter, start: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name.startswith(start)]


@each_run
def test_feedback_by_the_response_id_lands_on_the_chat_span_below_the_agent(
    run_agent: Run,
    agent: Agent,
    loop: asyncio.AbstractEventLoop,
    spans: InMemorySpanExporter,
    judgements: InMemoryFeedbackExporter,
    feedback: of.FeedbackProvider,
) -> None:
    """
    The agent's run is no call of a model: its one chat is what the id of the answer means.
    """
    with of.collect_handles() as collected:
        said = run_agent(agent, loop, nothing)
    of.record_feedback(key=said.id, name="rating", value=True)
    feedback.force_flush()

    (chat,), (invocation,) = named(spans, "chat "), named(spans, "invoke_agent ")
    assert "".join(WORDS) == said.text
    assert [chat.context.span_id] == [record.handle.context.span_id for record in judgements.records]
    assert [(chat.context.span_id, invocation.context.span_id)] == [
        (each.context.span_id, each.root) for each in collected
    ]


@each_run
def test_the_handle_says_what_the_agent_knows(
    run_agent: Run,
    agent: Agent,
    loop: asyncio.AbstractEventLoop,
    spans: InMemorySpanExporter,
    feedback: of.FeedbackProvider,
) -> None:
    """
    Models, provider, response id and the conversation of the run.
    """
    with of.collect_handles() as collected:
        said = run_agent(agent, loop, nothing)

    (chat,) = named(spans, "chat ")
    assert [
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": MODEL,
            "gen_ai.response.model": FULL_MODEL,
            "gen_ai.response.id": said.id,
            "gen_ai.conversation.id": chat.attributes["gen_ai.conversation.id"],
        }
    ] == [each.attributes for each in collected]


def test_the_conversation_of_the_run_is_a_key_of_its_newest_answer(
    agent: Agent, loop: asyncio.AbstractEventLoop, spans: InMemorySpanExporter, feedback: of.FeedbackProvider
) -> None:
    """
    A second turn with the history of the first belongs to the same conversation.
    """
    first = agent.run_sync(QUESTION)
    agent.run_sync("And of Italy?", message_history=first.all_messages())

    newest = named(spans, "chat ")[-1]
    conversation_id = str(newest.attributes["gen_ai.conversation.id"])
    found = feedback.handle_for_key(conversation_id, key_kind="conversation")
    assert newest.context.span_id == found.context.span_id


def test_the_handle_is_there_before_the_first_word(
    agent: Agent, loop: asyncio.AbstractEventLoop, spans: InMemorySpanExporter, feedback: of.FeedbackProvider
) -> None:
    """
    The chat span says what it is at its start.
    """
    seen: list[of.FeedbackHandle | None] = []
    with of.collect_handles() as collected:
        run_stream(agent, loop, lambda: seen.append(collected.last))

    (chat,) = named(spans, "chat ")
    assert [(chat.context.span_id, None)] == [(each.context.span_id, each.ended_at) for each in seen if each]


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
def test_a_run_that_failed_is_collected_and_has_no_key(
    kind: Any,
    client: openai.AsyncOpenAI,
    tracer_provider: TracerProvider,
    spans: InMemorySpanExporter,
    loop: asyncio.AbstractEventLoop,
    feedback: of.FeedbackProvider,
) -> None:
    """
    The refused call of the model is one handle, without a response id.
    """
    agent = agent_of(kind, "gpt-500", client, tracer_provider)
    with of.collect_handles() as collected, pytest.raises(ModelHTTPError):
        agent.run_sync(QUESTION)

    (chat,) = named(spans, "chat ")
    assert [(chat.context.span_id, None)] == [
        (each.context.span_id, each.attributes.get("gen_ai.response.id")) for each in collected
    ]


@pytest.mark.parametrize("instrumentation", [GENAI_OPENAI, OPENAI_V2, OPENINFERENCE], ids=str)
@each_run
def test_together_with_the_clients_instrumentation_a_call_is_captured_once(
    run_agent: Run,
    instrumentation: Instrumentation,
    client: openai.AsyncOpenAI,
    tracer_provider: TracerProvider,
    spans: InMemorySpanExporter,
    loop: asyncio.AbstractEventLoop,
    feedback: of.FeedbackProvider,
) -> None:
    """
    The client's span is inside of the agent's; both are one call, the inner span's, which has the conversation too.
    """
    agent = agent_of(OpenAIChatModel, MODEL, client, tracer_provider)
    with instrumentation.on(tracer_provider), of.collect_handles() as collected:
        said = run_agent(agent, loop, nothing)

    (outer,) = [span for span in named(spans, "chat ") if span.instrumentation_scope.name == "pydantic-ai"]
    (inner,) = [span for span in spans.get_finished_spans() if span.parent and span.parent == outer.context]
    (handle,) = collected
    assert inner.context.span_id == handle.context.span_id
    assert handle == feedback.handle_for_key(said.id)
    assert outer.attributes["gen_ai.conversation.id"] == handle.attributes["gen_ai.conversation.id"]


def test_capture_around_a_run_names_the_agents_answer(
    agent: Agent, loop: asyncio.AbstractEventLoop, spans: InMemorySpanExporter, feedback: of.FeedbackProvider
) -> None:
    """
    The app's own message id names the captured call, above the agent's run.
    """

    @of.capture(key="message_id")
    async def answer(question: str, *, message_id: str) -> str:
        return str((await agent.run(question)).output)

    loop.run_until_complete(answer(QUESTION, message_id="msg-1"))

    (own,), (invocation,) = named(spans, answer.__name__), named(spans, "invoke_agent ")
    assert own.context.span_id == feedback.handle_for_key("msg-1").context.span_id
    assert own.context == invocation.parent
