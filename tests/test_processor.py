"""The span processor: which spans it keeps, what it binds, and that nobody else notices it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

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
    forgotten = _correlate.LiveSpan(0, None, ())
    _correlate.LIVE.update(dict.fromkeys(range(_correlate.MAX_LIVE_SPANS), forgotten))
    _correlate.ENDED.update(dict.fromkeys(range(_correlate.MAX_LIVE_SPANS)))
    with tracer.start_as_current_span("new") as span:
        live = list(_correlate.LIVE)
    ended = call_model(tracer).get_span_context().span_id

    assert [*range(1, _correlate.MAX_LIVE_SPANS), span.get_span_context().span_id] == live
    assert [*range(1, _correlate.MAX_LIVE_SPANS), ended] == list(_correlate.ENDED)


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


def test_a_store_that_is_gone_is_no_concern_of_the_span(tracer_provider: TracerProvider, tmp_path: Any) -> None:
    """
    Where a key cannot even be taken, ending the LLM span works and the failure is counted.
    """
    (tmp_path / "file").write_text("in the way")
    provider = of.FeedbackProvider(exporters=[], store=f"sqlite:///{tmp_path}/file/feedback.db", settings=SETTINGS)
    tracer_provider.add_span_processor(provider.span_processor)
    span = call_model(tracer_provider.get_tracer("app"), gen_ai__response__id="r-1")

    assert not span.is_recording()
    assert 1 == provider._capture_errors


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

    assert [span_id(span)] == [handle.span_id for handle in collected]
    assert span_id(server) == feedback.handle_for_key("r-1").root_span_id
    assert {} == _correlate.LIVE


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


class Phoenix(TracerProvider):
    """As Phoenix's and Arize's: adding a processor by hand removes the exporter that was there by default."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        super().__init__(shutdown_on_exit=False)
        super().add_span_processor(SimpleSpanProcessor(exporter))

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        self._active_span_processor._span_processors = ()
        super().add_span_processor(span_processor)


def test_a_subclass_keeps_its_exporter(feedback: of.FeedbackProvider) -> None:
    """
    The relay is added by the SDK's own method, past an override that would remove what is there.
    """
    exporter = InMemorySpanExporter()
    tracer_provider = Phoenix(exporter)
    of.set_feedback_provider(feedback)
    of.install(tracer_provider)
    span = call_model(tracer_provider.get_tracer("app"), gen_ai__response__id="r-1")

    assert ["chat"] == [each.name for each in exporter.get_finished_spans()]
    assert span_id(span) == feedback.handle_for_key("r-1").span_id


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


@pytest.mark.parametrize("tracer_provider", [trace.NoOpTracerProvider(), trace.ProxyTracerProvider(), None])
def test_what_sees_no_spans_is_told_apart(tracer_provider: Any) -> None:
    """
    A no-op and the proxy of a provider that is still to come cannot be installed on.
    """
    assert not of.install(tracer_provider)


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


def test_on_the_proxy_installing_waits_for_the_real_provider() -> None:
    """
    Where feedback is configured before tracing is, the first captured call after that sees the spans.
    """
    ran = subprocess.run([sys.executable, "-c", PROXY], capture_output=True, text=True, check=True, timeout=30)

    assert "[False, False, True, True]\n" == ran.stdout
