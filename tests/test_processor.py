"""The span processor: which spans it keeps, what it binds, and that nobody else notices it."""

from __future__ import annotations

import gc
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import arize.otel
import langfuse
import phoenix.otel
import pytest
from openinference.instrumentation import using_attributes
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider

import otel_feedback as of
from otel_feedback import _active, _correlate, processor

SETTINGS = of.Settings(key_wait_millis=0)


@pytest.fixture
def tracer_provider() -> TracerProvider:
    """The application's tracing."""
    return TracerProvider(shutdown_on_exit=False)


@pytest.fixture
def feedback() -> Iterator[of.FeedbackProvider]:
    """A pipeline of its own, which is not the current one."""
    with of.FeedbackProvider(exporters=[], store="memory:", settings=SETTINGS) as provider:
        yield provider


@pytest.fixture
def tracer(tracer_provider: TracerProvider, feedback: of.FeedbackProvider) -> trace.Tracer:
    """A tracer of a pipeline that was built by hand."""
    tracer_provider.add_span_processor(feedback.span_processor)
    return tracer_provider.get_tracer("app")


def span_id(span: trace.Span) -> str:
    return trace.format_span_id(span.get_span_context().span_id)


def call_model(tracer: trace.Tracer, **attributes: str) -> trace.Span:
    """Make an LLM span; keyword arguments write their dots as two underscores."""
    with tracer.start_as_current_span("chat") as span:
        span.set_attribute("gen_ai.operation.name", "chat")
        span.set_attributes({name.replace("__", "."): value for name, value in attributes.items()})
    return span


# --- what is kept ------------------------------------------------------------------------------------------------

DIALECTS: dict[str, dict[str, str]] = {
    "OTel GenAI": {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.response.id": "r-1"},
    "OTel GenAI, old": {"gen_ai.system": "openai", "gen_ai.response.id": "r-1"},
    "OpenInference": {"openinference.span.kind": "LLM", "llm.response.id": "r-1"},
    "OpenLLMetry": {"llm.request.type": "chat", "gen_ai.response.id": "r-1"},
    "Langfuse": {"langfuse.observation.type": "generation", "gen_ai.response.id": "r-1"},
    "MLflow": {"mlflow.spanType": '"CHAT_MODEL"', "gen_ai.response.id": "r-1"},
    "LangSmith": {"langsmith.span.kind": "llm", "gen_ai.response.id": "r-1"},
    "OpenLIT, old": {"gen_ai.type": "chat", "gen_ai.response.id": "r-1"},
    "Logfire": {"logfire.span_type": "span", "gen_ai.operation.name": "chat", "gen_ai.response.id": "r-1"},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_llm_span_of_any_dialect_is_found_by_its_response_id(
    dialect: str, tracer: trace.Tracer, feedback: of.FeedbackProvider
) -> None:
    """
    The id that the model gave its answer is a key of the span, whoever wrote it.
    """
    with tracer.start_as_current_span("chat", attributes=DIALECTS[dialect]) as span:
        pass

    handle = feedback.handle_for_key("r-1", key_kind="response")
    assert (span_id(span), "chat") == (handle.span_id, handle.attributes["gen_ai.operation.name"])
    assert (span.start_time, span.end_time) == (handle.started_at, handle.ended_at)  # type: ignore[attr-defined]  # the SDK's


def test_a_conversation_is_found_by_its_kind_only(tracer: trace.Tracer, feedback: of.FeedbackProvider) -> None:
    """
    A conversation's id is a key of its newest call, and never mistaken for a message's.
    """
    call_model(tracer, gen_ai__conversation__id="c-1")
    newest = call_model(tracer, session__id="c-1")

    assert span_id(newest) == feedback.handle_for_key("c-1", key_kind="conversation").span_id
    with pytest.raises(of.UnknownTargetError):
        feedback.handle_for_key("c-1")


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"gen_ai.response.id": "r-1"},
        {"gen_ai.operation.name": "execute_tool", "gen_ai.response.id": "r-1"},
        {"openinference.span.kind": "CHAIN", "llm.response.id": "r-1"},
    ],
)
def test_other_spans_are_let_go(
    attributes: dict[str, str], tracer: trace.Tracer, feedback: of.FeedbackProvider
) -> None:
    """
    A span that is no call of a model binds nothing, is collected nowhere, and leaves nothing behind.
    """
    with of.collect_handles() as collected, tracer.start_as_current_span("tool", attributes=attributes):
        pass

    assert [] == list(collected)
    assert {} == _correlate.LIVE
    with pytest.raises(of.UnknownTargetError):
        feedback.handle_for_key("r-1")


def test_handles_never_hold_content(tracer: trace.Tracer) -> None:
    """
    Prompts and answers that an instrumentation wrote on the span are not taken.
    """
    with of.collect_handles() as collected:
        call_model(tracer, gen_ai__input__messages="secret", gen_ai__completion="secret", gen_ai__request__model="gpt")

    assert {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt"} == collected[0].attributes


def test_the_local_root_is_the_outermost_span_of_this_process(tracer: trace.Tracer) -> None:
    """
    Below a server's span with a remote parent the server's is the root of all; another trace has its own.
    """
    remote = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(1)))
    with of.collect_handles() as collected:
        with tracer.start_as_current_span("server", context=trace.set_span_in_context(remote)) as server:
            with tracer.start_as_current_span("between"):
                call_model(tracer)
            with tracer.start_as_current_span("detached", context=context.Context()) as detached:
                call_model(tracer)
        alone = call_model(tracer)

    assert [span_id(server), span_id(detached), span_id(alone)] == [handle.root_span_id for handle in collected]


def test_below_a_span_that_nobody_saw_the_parent_is_the_root(
    tracer: trace.Tracer, tracer_provider: TracerProvider
) -> None:
    """
    A local parent that began before the processor was there is the outermost span that is known.
    """
    unseen = TracerProvider(shutdown_on_exit=False, sampler=tracer_provider.sampler).get_tracer("app")
    with of.collect_handles() as collected, unseen.start_as_current_span("before") as before:
        call_model(tracer)

    assert [span_id(before)] == [handle.root_span_id for handle in collected]


def test_spans_that_nobody_ends_do_not_fill_the_memory(tracer: trace.Tracer) -> None:
    """
    At the limit the oldest span is forgotten for the new one, as is the oldest that has ended.
    """
    other = TracerProvider(shutdown_on_exit=False).get_tracer("app").start_span("forgotten")
    forgotten = _correlate.LiveSpan(other)  # type: ignore[arg-type]  # the SDK's
    _correlate.LIVE.update(dict.fromkeys(range(_correlate.MAX_LIVE_SPANS), forgotten))
    _correlate.ENDED.update(dict.fromkeys(range(_correlate.MAX_LIVE_SPANS)))
    with tracer.start_as_current_span("new") as span:
        live = list(_correlate.LIVE)
    ended = call_model(tracer).get_span_context().span_id

    assert [*range(1, _correlate.MAX_LIVE_SPANS), span.get_span_context().span_id] == live
    assert [*range(1, _correlate.MAX_LIVE_SPANS), ended] == list(_correlate.ENDED)


def test_spans_that_are_thrown_away_do_not_fill_the_memory(tracer: trace.Tracer) -> None:
    """
    A span that nobody ended, as of a stream that nobody read, leaves nothing behind once it is collected.
    """
    with tracer.start_as_current_span("server") as server:
        tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat"})
        gc.collect()
        live = list(_correlate.LIVE)

    assert [server.get_span_context().span_id] == live


def test_calls_within_calls_without_end_do_not_fill_the_memory(tracer: trace.Tracer) -> None:
    """
    Where each span is started in the context of one that ends, as a job that schedules itself does, few are held.
    """
    span = tracer.start_span("job")
    for _ in range(20):
        following = tracer.start_span("job", context=trace.set_span_in_context(span))
        span.end()
        span = following

    live = _correlate.LIVE[span.get_span_context().span_id]
    assert 2 >= len(list(live.parents()))


# --- while it runs -----------------------------------------------------------------------------------------------


def test_an_llm_span_is_collected_while_it_runs(tracer: trace.Tracer) -> None:
    """
    Where its kind is known from its start, a stream has its handle before its first item; it is completed at its end.
    """
    with of.collect_handles() as collected:
        span = tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat", "gen_ai.system": "openai"})
        running = collected.last
        span.update_name("chat gpt-4o")
        span.set_attribute("gen_ai.response.id", "r-1")
        span.end()

    assert running is not None
    assert (span_id(span), None, span.start_time) == (running.span_id, running.ended_at, running.started_at)  # type: ignore[attr-defined]  # the SDK's
    assert {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"} == running.attributes
    assert [(span_id(span), span.end_time, "r-1")] == [  # type: ignore[attr-defined]  # the SDK's
        (handle.span_id, handle.ended_at, handle.attributes["gen_ai.response.id"]) for handle in collected
    ]
    assert (tuple(collected), ()) == (collected.by_name("chat gpt-4o"), collected.by_name("chat"))


@pytest.mark.parametrize(
    ("scope", "attributes"),
    [
        ("app", {}),
        ("app", {"gen_ai.operation.name": "embeddings"}),
        ("app", {"traceloop.span.kind": "workflow", "gen_ai.operation.name": "chat"}),
        ("opentelemetry.instrumentation.httpx", {"gen_ai.operation.name": "chat"}),
    ],
)
def test_what_is_no_llm_span_at_its_start_is_not_collected_then(
    scope: str, attributes: dict[str, str], tracer: trace.Tracer, tracer_provider: TracerProvider
) -> None:
    """
    Another kind of span, or one of a scope that never carries LLM spans, is not collected while it runs.
    """
    with (
        of.collect_handles() as collected,
        tracer_provider.get_tracer(scope).start_as_current_span("x", attributes=attributes),
    ):
        running = list(collected)

    assert ([], []) == (running, list(collected))


def test_what_turns_out_to_be_no_llm_span_is_taken_out_again(tracer: trace.Tracer) -> None:
    """
    A span that says later on that it is a workflow, or that loses its marks to the limit of attributes, is none.
    """
    limited = TracerProvider(shutdown_on_exit=False, span_limits=SpanLimits(max_span_attributes=1))
    limited.add_span_processor(processor.RELAY)
    with of.collect_handles() as collected:
        for each, attribute in ((tracer, "traceloop.span.kind"), (limited.get_tracer("app"), "other")):
            span = each.start_span("answer", attributes={"gen_ai.operation.name": "chat"})
            assert [span_id(span)] == [handle.span_id for handle in collected]
            span.set_attribute(attribute, "workflow")
            span.end()

    assert [] == list(collected)


def test_where_nothing_can_be_configured_nothing_stays_collected(
    tracer_provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A handle that was collected at a span's start is taken out at its end when capture turns out to be off.
    """
    monkeypatch.setenv("OTEL_FEEDBACK_STORE_URL", "nonsense")
    of.install(tracer_provider)
    with of.collect_handles() as collected:
        span = tracer_provider.get_tracer("app").start_span("chat", attributes={"gen_ai.operation.name": "chat"})
        running = len(collected)
        span.end()

    assert (1, []) == (running, list(collected))


def test_what_began_before_the_processor_was_there_is_let_go(
    tracer_provider: TracerProvider, feedback: of.FeedbackProvider
) -> None:
    """
    Of an LLM span whose start nobody saw the root is not known, nor where it belongs: it is not captured.
    """
    span = tracer_provider.get_tracer("app").start_span("chat", attributes={"gen_ai.operation.name": "chat"})
    tracer_provider.add_span_processor(feedback.span_processor)
    span.set_attribute("gen_ai.response.id", "r-1")
    span.end()

    with pytest.raises(of.UnknownTargetError):
        feedback.handle_for_key("r-1")


def test_a_scope_without_llm_spans_is_passed_over(
    tracer: trace.Tracer, tracer_provider: TracerProvider, feedback: of.FeedbackProvider
) -> None:
    """
    A span of a web server is never an LLM span; it is the root of those inside of it, and says whose they are.
    """
    server = tracer_provider.get_tracer("opentelemetry.instrumentation.fastapi")
    with of.collect_handles() as collected, server.start_as_current_span("POST /chat") as request:
        request.set_attributes({"gen_ai.system": "openai", "gen_ai.response.id": "r-1", "session.id": "c-1"})
        call_model(tracer, gen_ai__response__id="r-2")

    assert [(span_id(request), "c-1")] == [
        (handle.root_span_id, handle.attributes["gen_ai.conversation.id"]) for handle in collected
    ]
    with pytest.raises(of.UnknownTargetError):
        feedback.handle_for_key("r-1")


# --- whose call it is --------------------------------------------------------------------------------------------


def by_baggage(**entries: str) -> Any:
    """A context with baggage."""
    where = context.get_current()
    for name, value in entries.items():
        where = baggage.set_baggage(name.replace("__", "."), value, where)
    return where


def ids(handle: of.FeedbackHandle) -> tuple[str | None, str | None]:
    return handle.attributes.get("gen_ai.conversation.id"), handle.attributes.get("user.id")


@pytest.mark.parametrize(
    "around",
    [
        using_attributes(session_id="c-1", user_id="u-1"),
        langfuse.propagate_attributes(session_id="c-1", user_id="u-1"),
        langfuse.propagate_attributes(session_id="c-1", user_id="u-1", as_baggage=True),
    ],
    ids=["OpenInference", "Langfuse", "Langfuse, as baggage"],
)
def test_the_ids_that_an_sdk_carries_along_are_inherited(
    around: AbstractContextManager[Any], tracer: trace.Tracer, feedback: of.FeedbackProvider
) -> None:
    """
    What the context managers of the SDKs say counts for the LLM spans inside, whoever opens them.
    """
    with of.collect_handles() as collected, around:
        span = call_model(tracer)

    assert [("c-1", "u-1")] == [ids(handle) for handle in collected]
    assert span_id(span) == feedback.handle_for_key("c-1", key_kind="conversation").span_id


def test_the_ids_of_local_parents_are_inherited_nearest_first(tracer: trace.Tracer) -> None:
    """
    A span's own id counts most, then its local parents', also of one that has ended, then the baggage's.
    """
    where = by_baggage(session__id="baggage", user__id="baggage")
    with of.collect_handles() as collected, tracer.start_as_current_span("server", context=where) as server:
        server.set_attribute("session.id", "server")
        with tracer.start_as_current_span("turn", attributes={"session.id": "turn"}):
            late = tracer.start_span("late", attributes={"gen_ai.operation.name": "chat"})
            call_model(tracer, session__id="own")
            call_model(tracer)
        late.end()
        call_model(tracer)
        call_model(trace.NoOpTracer())

    assert ["turn", "own", "turn", "server"] == [ids(handle)[0] for handle in collected]
    # An explicit context lies in nobody's variable: only the first span was started in it.
    assert {None} == {ids(handle)[1] for handle in collected}


def test_the_ids_of_a_remote_parent_come_by_baggage_only(tracer: trace.Tracer) -> None:
    """
    Of another service's span nothing is known but what it sends along.
    """
    remote = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(1)))
    where = trace.set_span_in_context(remote, by_baggage(gen_ai__conversation__id="c-1"))
    with of.collect_handles() as collected:
        token = context.attach(with_collected(where))
        call_model(tracer)
        context.detach(token)

    assert [("c-1", None)] == [ids(handle) for handle in collected]


def with_collected(where: Any) -> Any:
    """Take the current collections along into another context."""
    return context.set_value(_correlate.COLLECTIONS, _correlate.collections_in(), where)


# --- one call, seen twice ----------------------------------------------------------------------------------------


def ended(handles: of.CollectedHandles | Any) -> list[str]:
    return [handle.span_id for handle in handles]


@pytest.mark.parametrize(("outer_id", "inner_id"), [("r-1", "r-1"), ("r-1", None), (None, "r-1"), (None, None)])
def test_a_call_within_a_call_is_one_call(
    outer_id: str | None, inner_id: str | None, tracer: trace.Tracer, feedback: of.FeedbackProvider
) -> None:
    """
    Of two instrumentations, one within the other, the inner one's span is captured, with what only the outer knows.
    """
    outer = {"openinference.span.kind": "LLM", "session.id": "c-1", "llm.model_name": "outer", "llm.provider": "openai"}
    inner = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "inner"}
    with of.collect_handles() as collected, tracer.start_as_current_span("ChatCompletion", attributes=outer) as around:
        with tracer.start_as_current_span("POST"), tracer.start_as_current_span("chat", attributes=inner) as within:
            running = ended(collected)
            if inner_id:
                within.set_attribute("gen_ai.response.id", inner_id)
        if outer_id:
            around.set_attribute("gen_ai.response.id", outer_id)

    assert ([span_id(around), span_id(within)], [span_id(within)]) == (running, ended(collected))
    assert ("inner", "openai", "c-1") == tuple(
        collected[0].attributes[name]
        for name in ("gen_ai.request.model", "gen_ai.provider.name", "gen_ai.conversation.id")
    )
    assert (outer_id or inner_id) == collected[0].attributes.get("gen_ai.response.id")
    assert span_id(within) == feedback.handle_for_key("c-1", key_kind="conversation").span_id
    if outer_id or inner_id:
        found = feedback.handle_for_key("r-1")
        assert (collected[0].span_id, collected[0].attributes) == (found.span_id, found.attributes)


def test_a_call_whose_outer_span_ends_first_is_one_call(tracer: trace.Tracer, feedback: of.FeedbackProvider) -> None:
    """
    As with a stream of OpenAI's responses under two instrumentations: the inner span takes the outer one's place.
    """
    with of.collect_handles() as collected:
        outer = tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat"})
        inner = tracer.start_span(
            "Response", context=trace.set_span_in_context(outer), attributes={"openinference.span.kind": "LLM"}
        )
        outer.set_attribute("gen_ai.response.id", "r-1")
        outer.end()
        inner.end()

    assert [(span_id(inner), "r-1")] == [
        (handle.span_id, handle.attributes["gen_ai.response.id"]) for handle in collected
    ]
    assert span_id(inner) == feedback.handle_for_key("r-1").span_id


def test_the_next_call_in_a_context_that_was_left_behind_is_a_call_of_its_own(tracer: trace.Tracer) -> None:
    """
    A span that began after the one around it had ended is no second view of it.
    """
    with of.collect_handles() as collected:
        first = tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat"}, start_time=1)
        first.end(2)
        second = tracer.start_span(
            "chat",
            context=trace.set_span_in_context(first, context.get_current()),
            attributes={"gen_ai.operation.name": "chat"},
            start_time=3,
        )
        second.end(4)

    assert [span_id(first), span_id(second)] == ended(collected)


def test_only_one_span_takes_the_place_of_the_one_around_it(tracer: trace.Tracer) -> None:
    """
    Of two calls that go on after the span around them has ended, the second to end is one of its own.
    """
    with of.collect_handles() as collected:
        outer = tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat"})
        where = trace.set_span_in_context(outer)
        within = [tracer.start_span("chat", where, attributes={"gen_ai.operation.name": "chat"}) for _ in range(2)]
        for each in (outer, *within):
            each.end()

    assert [span_id(each) for each in within] == ended(collected)


def test_a_call_by_three_instrumentations_is_one_call(tracer: trace.Tracer, feedback: of.FeedbackProvider) -> None:
    """
    However deep, the innermost span is the captured one.
    """
    outer = tracer.start_as_current_span("1", attributes={"llm.request.type": "chat"})
    middle = tracer.start_as_current_span("2", attributes={"openinference.span.kind": "LLM", "session.id": "c-1"})
    with of.collect_handles() as collected, outer, middle:
        innermost = call_model(tracer, gen_ai__response__id="r-1")

    assert [span_id(innermost)] == ended(collected)
    assert span_id(innermost) == feedback.handle_for_key("r-1").span_id


def test_calls_within_a_call_with_answers_of_their_own_stay_calls(tracer: trace.Tracer) -> None:
    """
    Where both know an answer's id and these differ, as with a tool that asks a model, each is a call.
    """
    with of.collect_handles() as collected, tracer.start_as_current_span("chat") as outer:
        outer.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.response.id": "r-1"})
        within = [call_model(tracer, gen_ai__response__id=f"r-{number}") for number in (2, 3)]

    assert [span_id(each) for each in (outer, *within)] == ended(collected)


def test_of_several_calls_within_a_call_the_answer_tells_which_it_is(tracer: trace.Tracer) -> None:
    """
    A span with the id of an earlier answer inside of it is that call, though another one ended last.
    """
    with of.collect_handles() as collected, tracer.start_as_current_span("chat") as outer:
        outer.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.response.id": "r-2", "session.id": "c-1"})
        within = [call_model(tracer, gen_ai__response__id=f"r-{number}") for number in (2, 3)]

    assert [span_id(each) for each in within] == ended(collected)


ANSWERED = {"gen_ai.operation.name": "chat", "gen_ai.response.id": "r-1"}


def test_two_spans_of_one_answer_side_by_side_are_one_call(tracer: trace.Tracer, feedback: of.FeedbackProvider) -> None:
    """
    At the same time in one trace the span that ended first is captured; later, or elsewhere, it is another call.
    """
    with of.collect_handles() as collected:
        with tracer.start_as_current_span("server"):
            other = tracer.start_span("chat", attributes={**ANSWERED, "session.id": "c-1"})
            first = call_model(tracer, gen_ai__response__id="r-1")
            other.end()
            conversation = feedback.handle_for_key("c-1", key_kind="conversation")
            later = call_model(tracer, gen_ai__response__id="r-1")
            newest = feedback.handle_for_key("r-1")
        elsewhere = call_model(tracer, gen_ai__response__id="r-1")

    assert [span_id(each) for each in (first, later, elsewhere)] == ended(collected)
    assert span_id(first) == conversation.span_id
    assert span_id(later) == newest.span_id


def test_only_the_newest_calls_are_remembered(tracer: trace.Tracer, feedback: of.FeedbackProvider) -> None:
    """
    After many others the same answer is a call again: what is remembered of the past is bounded.
    """
    with of.collect_handles() as collected, tracer.start_as_current_span("server"):
        again = tracer.start_span("chat", attributes=ANSWERED)
        first = call_model(tracer, gen_ai__response__id="r-1")
        for number in range(2 * processor.RECENT_SPANS):
            call_model(tracer, gen_ai__response__id=f"other-{number}")
        again.end()

    assert [span_id(again), span_id(first)] == [each.span_id for each in collected[:2]]


def test_a_captured_call_that_calls_itself_an_llm_span_stays_collected(
    tracer: trace.Tracer, tracer_provider: TracerProvider
) -> None:
    """
    A call that the application captures is one of its own, whatever the span inside of it is.
    """
    feedback = of.FeedbackProvider(exporters=[], store="memory:", settings=SETTINGS, tracer_provider=tracer_provider)
    of.set_feedback_provider(feedback)
    answer = of.capture_span("answer", **{"gen_ai.operation.name": "chat"})
    with of.collect_handles() as collected, answer as handle:
        within = call_model(tracer)

    assert [handle.span_id, span_id(within)] == ended(collected)


def test_the_last_llm_span_of_a_captured_call_is_the_captured_one(
    tracer: trace.Tracer, tracer_provider: TracerProvider
) -> None:
    """
    A key with `target="llm"` means the span that stands for the call, not the one that gave way.
    """
    feedback = of.FeedbackProvider(exporters=[], store="memory:", settings=SETTINGS, tracer_provider=tracer_provider)
    of.set_feedback_provider(feedback)
    spans: list[trace.Span] = []

    @of.capture(key="message_id", target="llm")
    def answer(message_id: str) -> None:
        with tracer.start_as_current_span("ChatCompletion", attributes={"openinference.span.kind": "LLM"}):
            spans.append(call_model(tracer))

    answer("m-1")

    assert span_id(spans[0]) == feedback.handle_for_key("m-1").span_id


# --- nobody notices ----------------------------------------------------------------------------------------------


class BrokenSpan(ReadableSpan):
    """A span whose every part raises."""

    def get_span_context(self) -> trace.SpanContext:
        raise RuntimeError("no context")


def test_what_goes_wrong_inside_is_counted_and_not_raised(feedback: of.FeedbackProvider) -> None:
    """
    An exception at a span's start or end would end up in the application's code: it is counted instead.
    """
    broken: Any = BrokenSpan("broken")
    feedback.span_processor.on_start(broken)
    feedback.span_processor.on_end(broken)

    assert 2 == feedback._capture_errors


def test_a_store_that_is_gone_is_no_concern_of_the_span(
    tracer_provider: TracerProvider, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Where there can be no store, ending the LLM span works, and that its key waits is said in the log.
    """
    (tmp_path / "file").write_text("in the way")
    provider = of.FeedbackProvider(exporters=[], store=f"sqlite:///{tmp_path}/file/feedback.db", settings=SETTINGS)
    tracer_provider.add_span_processor(provider.span_processor)
    span = call_model(tracer_provider.get_tracer("app"), gen_ai__response__id="r-1")

    is_written = provider._here().correlator.flush()
    provider.shutdown()

    assert not span.is_recording()
    assert (False, 0) == (is_written, provider._capture_errors)
    assert 1 == sum(message.startswith("1 keys wait for the store") for message in caplog.messages)


def test_a_span_without_ids_is_let_go(feedback: of.FeedbackProvider) -> None:
    """
    A span that a test or an exporter built without a context ends without a trace here.
    """
    feedback.span_processor.on_end(ReadableSpan("bare", attributes={"gen_ai.operation.name": "chat"}))

    assert 0 == feedback._capture_errors


def test_two_processors_in_one_pipeline_do_no_harm(
    tracer: trace.Tracer, tracer_provider: TracerProvider, feedback: of.FeedbackProvider
) -> None:
    """
    A second processor of the same pipeline collects and binds nothing twice.
    """
    tracer_provider.add_span_processor(feedback.span_processor)
    with of.collect_handles() as collected, tracer.start_as_current_span("server") as server:
        span = call_model(tracer, gen_ai__response__id="r-1")
        call_model(tracer, gen_ai__operation__name="embeddings")

    assert [span_id(span)] == [handle.span_id for handle in collected]
    assert span_id(server) == feedback.handle_for_key("r-1").root_span_id
    assert {} == _correlate.LIVE


def test_each_of_two_providers_in_one_pipeline_binds_the_keys(
    tracer: trace.Tracer, tracer_provider: TracerProvider, feedback: of.FeedbackProvider
) -> None:
    """
    The call is collected once and found by both, and so is what only another span of it knew.
    """
    with of.FeedbackProvider(exporters=[], store="memory:", settings=SETTINGS) as other:
        tracer_provider.add_span_processor(other.span_processor)
        view = tracer.start_as_current_span("outer", attributes={"llm.request.type": "chat"})
        with of.collect_handles() as collected, tracer.start_as_current_span("server"), view as outer:
            inner = call_model(tracer, gen_ai__response__id="r-1")
            outer.set_attribute("session.id", "c-1")

        assert [span_id(inner)] == ended(collected)
        for provider in (feedback, other):
            assert span_id(inner) == provider.handle_for_key("r-1").span_id
            assert span_id(inner) == provider.handle_for_key("c-1", key_kind="conversation").span_id


class Attributes(Mapping[str, Any]):
    """A mapping of somebody else's, which can be read and no more."""

    def __init__(self, **items: str) -> None:
        self._items = {name.replace("__", "."): value for name, value in items.items()}

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def test_the_attributes_of_a_foreign_span_are_read(tracer: trace.Tracer, feedback: of.FeedbackProvider) -> None:
    """
    A span whose attributes are a mapping of another kind than the SDK's is captured all the same.
    """
    span = tracer.start_span("chat")
    attributes: Any = Attributes(gen_ai__operation__name="chat", gen_ai__response__id="r-1")
    foreign = ReadableSpan("chat", span.get_span_context(), attributes=attributes)
    feedback.span_processor.on_end(foreign)

    assert span_id(span) == feedback.handle_for_key("r-1").span_id


def test_a_disabled_processor_takes_nothing_from_another_one(
    tracer_provider: TracerProvider, feedback: of.FeedbackProvider
) -> None:
    """
    Of two processors in one pipeline the one that is switched off leaves every span to the other.
    """
    disabled = of.FeedbackProvider(settings=of.Settings(disabled=True))
    for provider in (disabled, feedback):
        tracer_provider.add_span_processor(provider.span_processor)
    span = call_model(tracer_provider.get_tracer("app"), gen_ai__response__id="r-1")

    assert span_id(span) == feedback.handle_for_key("r-1").span_id


def test_where_nothing_can_be_configured_the_spans_go_on(
    tracer_provider: TracerProvider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    With an environment that cannot be used LLM spans end as ever, and the log says so once.
    """
    monkeypatch.setenv("OTEL_FEEDBACK_STORE_URL", "nonsense")
    of.install(tracer_provider)
    spans = [call_model(tracer_provider.get_tracer("app")) for _ in range(2)]

    assert [False, False] == [span.is_recording() for span in spans]
    assert {} == _correlate.LIVE
    assert 1 == sum("capture is off" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("is_own", [False, True])
def test_a_disabled_pipeline_sees_nothing(is_own: bool, tracer_provider: TracerProvider) -> None:
    """
    While feedback is disabled no span is noted and no handle collected.
    """
    provider = of.FeedbackProvider(settings=of.Settings(disabled=True))
    if is_own:
        tracer_provider.add_span_processor(provider.span_processor)
    else:
        of.set_feedback_provider(provider)
        of.install(tracer_provider)
    with of.collect_handles() as collected, tracer_provider.get_tracer("app").start_as_current_span("server"):
        seen = dict(_correlate.LIVE)
        call_model(tracer_provider.get_tracer("app"))

    assert ({}, []) == (seen, list(collected))


def test_shutting_down_and_flushing_the_trace_concern_nothing_here(
    tracer: trace.Tracer, tracer_provider: TracerProvider, feedback: of.FeedbackProvider
) -> None:
    """
    Feedback outlives the pipeline of the trace: keys are still found after its shutdown.
    """
    call_model(tracer, gen_ai__response__id="r-1")

    assert tracer_provider.force_flush()
    tracer_provider.shutdown()
    assert feedback.handle_for_key("r-1").is_valid


def test_only_a_call_of_a_model_configures_from_the_environment(tracer_provider: TracerProvider, tmp_path: Any) -> None:
    """
    The spans of an application's start leave no store in its directory; its first LLM span makes one.
    """
    of.install(tracer_provider)
    tracer = tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("migrate the database"):
        pass
    before = (_active.get(), list(tmp_path.iterdir()))
    span = call_model(tracer, gen_ai__response__id="r-1")

    assert (None, []) == before
    assert span_id(span) == of.get_feedback_provider().handle_for_key("r-1").span_id
    assert (tmp_path / ".otel_feedback" / "feedback.db").is_file()


# --- installing --------------------------------------------------------------------------------------------------


def processors(tracer_provider: TracerProvider) -> list[SpanProcessor]:
    return [each for each in tracer_provider._active_span_processor._span_processors if each is processor.RELAY]


def test_installing_twice_is_installing_once(tracer_provider: TracerProvider) -> None:
    """
    However often, and from however many threads, one relay stands in the pipeline.
    """
    barrier = threading.Barrier(4)
    answers: list[bool] = []

    def install() -> None:
        barrier.wait()
        answers.append(of.install(tracer_provider))

    threads = [threading.Thread(target=install) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [True] * 4 == answers
    assert 1 == len(processors(tracer_provider))


class Collector:
    """A stand-in for a vendor's collector on loopback, which takes everything and notes the paths."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                collector.paths.append(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


def phoenix_provider(endpoint: str) -> TracerProvider:
    return phoenix.otel.TracerProvider(endpoint=endpoint, verbose=False)


def arize_provider(endpoint: str) -> TracerProvider:
    return arize.otel.TracerProvider(
        space_id="s", api_key="k", endpoint=endpoint, transport=arize.otel.Transport.HTTP, verbose=False
    )


@pytest.mark.parametrize("make", [phoenix_provider, arize_provider])
def test_a_subclass_keeps_its_exporter(make: Any, collector: Collector, feedback: of.FeedbackProvider) -> None:
    """
    Phoenix's and Arize's providers drop their exporter when a processor is added by their own method; ours stays past.
    """
    tracer_provider = make(collector.url)
    of.set_feedback_provider(feedback)
    of.install(tracer_provider)
    span = call_model(tracer_provider.get_tracer("app"), gen_ai__response__id="r-1")
    tracer_provider.shutdown()

    assert ["/v1/traces"] == collector.paths
    assert span_id(span) == feedback.handle_for_key("r-1").span_id


def test_every_provider_that_is_installed_on_is_seen(feedback: of.FeedbackProvider) -> None:
    """
    An application with several pipelines of its own has the spans of each captured.
    """
    of.set_feedback_provider(feedback)
    providers = [TracerProvider(shutdown_on_exit=False) for _ in range(2)]
    answers = [of.install(each) for each in providers]
    spans = [
        call_model(each.get_tracer("app"), gen_ai__response__id=f"r-{number}") for number, each in enumerate(providers)
    ]

    assert [True, True] == answers
    assert [span_id(each) for each in spans] == [feedback.handle_for_key(f"r-{number}").span_id for number in range(2)]


def test_a_foreign_provider_with_the_method_takes_it() -> None:
    """
    A provider that is not the SDK's, as Logfire's, is asked by its own method, once.
    """

    class Foreign(trace.NoOpTracerProvider):
        def __init__(self) -> None:
            self.added: list[object] = []

        def add_span_processor(self, span_processor: object) -> None:
            self.added.append(span_processor)

    foreign = Foreign()

    assert [True, True] == [of.install(foreign), of.install(foreign)]
    assert [processor.RELAY] == foreign.added


def test_a_provider_that_does_not_take_it_can_be_tried_again() -> None:
    """
    What goes wrong in a foreign method is the caller's to know, and leaves nothing half done.
    """

    class Reluctant(trace.NoOpTracerProvider):
        def __init__(self) -> None:
            self.refusals = [RuntimeError("not yet")]

        def add_span_processor(self, span_processor: object) -> None:
            for refusal in self.refusals:
                raise refusal

    reluctant = Reluctant()
    with pytest.raises(RuntimeError, match="not yet"):
        of.install(reluctant)
    reluctant.refusals.clear()

    assert of.install(reluctant)


@pytest.mark.parametrize("tracer_provider", [trace.NoOpTracerProvider(), trace.ProxyTracerProvider(), None])
def test_what_sees_no_spans_is_told_apart(tracer_provider: Any) -> None:
    """
    A no-op and the proxy of a provider that is still to come cannot be installed on.
    """
    assert not of.install(tracer_provider)


# Each is the rest of a program in which feedback is configured before tracing is, and what it prints. `known` tells
# whether the very first span of a provider was seen.
DEFERRED = {
    "set": (
        """
trace.set_tracer_provider(TracerProvider())
print(known(trace.get_tracer("app")), is_wrapped())
""",
        "True (False, False)",
    ),
    "set by a name that was imported before": (
        """
set_before(TracerProvider())
print(known(trace.get_tracer("app")), is_wrapped())
""",
        "True (False, False)",
    ),
    "set with a tracer that was asked for before": (
        """
tracer = trace.get_tracer("app")
set_before(TracerProvider())
print(known(tracer), is_wrapped())
""",
        "True (False, False)",
    ),
    "another one beside it": (
        """
print(known(TracerProvider().get_tracer("app")), is_wrapped())
trace.set_tracer_provider(TracerProvider())
print(known(trace.get_tracer("app")), is_wrapped())
""",
        "False (True, True)\nTrue (False, False)",
    ),
    "one that is refused": (
        """
trace.set_tracer_provider(TracerProvider())
refused = TracerProvider()
trace.set_tracer_provider(refused)
print(known(refused.get_tracer("app")), known(trace.get_tracer("app")), is_wrapped())
""",
        "False True (False, False)",
    ),
    "one without spans": (
        """
trace.set_tracer_provider(trace.NoOpTracerProvider())
print(known(trace.get_tracer("app")), is_wrapped())
""",
        "False (False, False)",
    ),
    "one whose method fails": (
        """
class Failing(trace.NoOpTracerProvider):
    def add_span_processor(self, span_processor):
        raise RuntimeError("no")
trace.set_tracer_provider(Failing())
print(known(trace.get_tracer("app")), is_wrapped())
""",
        "False (False, False)",
    ),
    "wrapped by somebody else meanwhile": (
        """
inner = trace.set_tracer_provider
def set_and_tell(tracer_provider):
    print("told")
    inner(tracer_provider)
trace.set_tracer_provider = set_and_tell
trace.set_tracer_provider(TracerProvider())
print(known(trace.get_tracer("app")), trace.set_tracer_provider is set_and_tell)
trace.set_tracer_provider(TracerProvider())
""",
        "told\nTrue True\ntold",
    ),
    "asked for twice": (
        """
print(of.install(trace.get_tracer_provider()))
trace.set_tracer_provider(TracerProvider())
print(of.install(trace.ProxyTracerProvider()), known(trace.get_tracer("app")), is_wrapped())
""",
        "False\nTrue True (False, False)",
    ),
    "set in a thread": (
        """
thread = threading.Thread(target=trace.set_tracer_provider, args=(TracerProvider(),))
thread.start()
thread.join()
print(known(trace.get_tracer("app")), is_wrapped())
""",
        "True (False, False)",
    ),
}
PROGRAM = """
import threading
from opentelemetry import trace
from opentelemetry.trace import set_tracer_provider as set_before
from opentelemetry.sdk.trace import TracerProvider
import otel_feedback as of

originals = trace.set_tracer_provider, vars(TracerProvider)["get_tracer"]
feedback = of.configure(exporters=[], store="memory:", settings=of.Settings(key_wait_millis=0))

def is_wrapped():
    now = trace.set_tracer_provider, vars(TracerProvider)["get_tracer"]
    return tuple(one is not other for one, other in zip(now, originals))

def known(tracer):
    span = tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat", "gen_ai.response.id": "r-1"})
    span.end()
    try:
        return feedback.handle_for_key("r-1").context.span_id == span.get_span_context().span_id
    except of.UnknownTargetError:
        return False

assert is_wrapped() == (True, True)
"""


@pytest.mark.parametrize("what", DEFERRED)
def test_on_the_proxy_installing_waits_for_the_real_provider(what: str) -> None:
    """
    Where feedback is configured before tracing is, the global provider is seen from its first span on, and no other.

    OpenTelemetry's functions do what they did, and are its own again afterwards.
    """
    program, expected = DEFERRED[what]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM + program], capture_output=True, text=True, check=True, timeout=30
    )

    assert expected == ran.stdout.strip()


PROXY = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
import otel_feedback as of

feedback = of.configure(exporters=[], store="memory:", settings=of.Settings(key_wait_millis=0))

@of.capture(key="message_id")
def answer(message_id):
    with trace.get_tracer("app").start_as_current_span("chat") as span:
        span.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.response.id": message_id + "-response"})

def known(key):
    try:
        return feedback.handle_for_key(key).is_valid
    except of.UnknownTargetError:
        return False

answer("early")
trace.set_tracer_provider(TracerProvider())
answer("late")
print([known(key) for key in ("early", "early-response", "late", "late-response")])
"""


def test_what_was_called_before_there_was_a_provider_is_not_captured() -> None:
    """
    A call without any tracing has no span to be judged; the next one has.
    """
    ran = subprocess.run([sys.executable, "-c", PROXY], capture_output=True, text=True, check=True, timeout=30)

    assert "[False, False, True, True]\n" == ran.stdout


FORKED = """
import os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
import otel_feedback as of

feedback = of.configure(exporters=[], store="memory:", settings=of.Settings(key_wait_millis=0))
if pid := os.fork():
    os.waitpid(pid, 0)
else:
    trace.set_tracer_provider(TracerProvider())
    attributes = {"gen_ai.system": "openai", "gen_ai.response.id": "r-1"}
    trace.get_tracer("app").start_span("chat", attributes=attributes).end()
    print(feedback.handle_for_key("r-1").is_valid, flush=True)
    os._exit(0)
"""


LATE = """
import sys, threading
from opentelemetry.sdk.trace import TracerProvider

sys.modules.pop("ipaddress", None)  # pydantic-core loads it when it first writes JSON, if nothing else has

import otel_feedback as of

is_configured, late = False, []

def note(event, arguments):
    if event == "import" and (is_configured or threading.current_thread() is not threading.main_thread()):
        late.extend({arguments[0]} - sys.modules.keys())

tracer_provider = TracerProvider()
sys.addaudithook(note)
feedback = of.configure(exporters=[], store="memory:", tracer_provider=tracer_provider)
is_configured = True
attributes = {"gen_ai.system": "openai", "gen_ai.response.id": "r-1"}
tracer_provider.get_tracer("app").start_span("chat", attributes=attributes).end()
feedback.force_flush()
print(late)
"""


def test_nothing_is_loaded_once_it_is_configured() -> None:
    """
    A process that is forked while a thread loads something would wait for it for ever.
    """
    ran = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=True, timeout=30)

    assert "[]\n" == ran.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_waits_on_for_its_provider() -> None:
    """
    A worker that sets up tracing after the fork, as gunicorn's does, has its spans seen from the first one on.
    """
    ran = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, timeout=30)

    assert "True\n" == ran.stdout
