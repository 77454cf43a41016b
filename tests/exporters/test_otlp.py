from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from typing import Any

import pytest
from exporter_bench import ID, NOON, SPAN, TRACE, handle, judgements, record
from hypothesis import HealthCheck, given, settings
from opentelemetry import baggage, context
from opentelemetry._logs import NoOpLoggerProvider
from opentelemetry._logs._internal import ProxyLogger
from opentelemetry.sdk._logs import LoggerProvider, export
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, TraceFlags

from otel_feedback import FeedbackHandle, OTLPFeedbackExporter
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import PauseDestination, Skipped, Success
from otel_feedback.exporters.otlp import NOWHERE, OLDEST_SDK, check_sdk
from otel_feedback.testing import ExporterContract

SDK = tuple(map(int, importlib.metadata.version("opentelemetry-sdk").split(".")[:2]))

# Its name before 1.39.
Memory: Any = getattr(export, "InMemoryLogRecordExporter", None) or getattr(export, "InMemoryLogExporter", None)


class UnsetLoggerProvider:
    """What the API has while nobody has set a provider: another test may have set the global one."""

    def get_logger(self, name: str) -> ProxyLogger:
        return ProxyLogger(name)


@pytest.fixture
def memory() -> Any:
    return Memory()


@pytest.fixture
def logger_provider(memory: Any) -> LoggerProvider:
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(export.SimpleLogRecordProcessor(memory))
    return provider


@pytest.mark.skipif(SDK < OLDEST_SDK, reason="this SDK is too old for the OTLP exporter")
class TestContract(ExporterContract):
    @pytest.fixture
    def exporter(self, logger_provider: LoggerProvider) -> OTLPFeedbackExporter:
        return OTLPFeedbackExporter(logger_provider)


@pytest.mark.skipif(SDK < OLDEST_SDK, reason="this SDK is too old for the OTLP exporter")
class TestEvents:
    def test_an_event_is_on_the_judged_span(self, memory: Any, logger_provider: LoggerProvider) -> None:
        """
        The event has the ids and flags of the judged span, whatever span is active, and the time of the judgement.
        """
        exporter = OTLPFeedbackExporter(logger_provider)
        said = replace(record(value=True, time_unix_nano=NOON - 60), recorded_at_unix_nano=NOON)
        with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("another"):
            results = exporter.export(exporter.parts(said))

        event = memory.get_finished_logs()[0].log_record
        assert [Success("emitted")] == results
        assert (TRACE, SPAN, 1) == (f"{event.trace_id:032x}", f"{event.span_id:016x}", event.trace_flags)
        assert ("gen_ai.evaluation.result", NOON - 60, NOON) == (
            event.event_name,
            event.timestamp,
            event.observed_timestamp,
        )

    @pytest.mark.parametrize("nobody", [UnsetLoggerProvider(), NoOpLoggerProvider()])
    def test_where_nobody_listens_nothing_is_delivered(self, nobody: Any) -> None:
        """
        Without a provider of the SDK an event goes nowhere: it waits, and why is said.
        """
        exporter = OTLPFeedbackExporter(nobody)
        results = exporter.export([part for _ in range(2) for part in exporter.parts(record(value=True))])

        assert [PauseDestination(NOWHERE)] * 2 == results

    def test_a_switched_off_sdk_delivers_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        `OTEL_SDK_DISABLED` makes loggers that emit nothing.
        """
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        exporter = OTLPFeedbackExporter(LoggerProvider(shutdown_on_exit=False))
        (result,) = exporter.export(exporter.parts(record(value=True)))

        assert PauseDestination(NOWHERE) == result

    def test_a_call_that_is_known_by_its_response_alone_is_on_no_span(
        self, memory: Any, logger_provider: LoggerProvider
    ) -> None:
        """
        An empty context would be taken for the current one: the event has no ids then, and the response's id.
        """
        nowhere = FeedbackHandle(INVALID_SPAN_CONTEXT, attributes={"gen_ai.response.id": "chatcmpl-1"})
        exporter = OTLPFeedbackExporter(logger_provider)
        said = replace(record(value=True), handle=nowhere)
        with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("another"):
            exporter.export(exporter.parts(said))

        event = memory.get_finished_logs()[0].log_record
        assert (0, 0, "chatcmpl-1") == (event.trace_id, event.span_id, event.attributes["gen_ai.response.id"])

    def test_nothing_else_of_the_current_context_is_about_it(
        self, memory: Any, logger_provider: LoggerProvider
    ) -> None:
        """
        A processor that copies baggage onto logs finds none: that of the request which brings the feedback is not the
        judged call's.
        """
        exporter = OTLPFeedbackExporter(logger_provider)
        token = context.attach(baggage.set_baggage("session.id", "somebody else's"))
        try:
            exporter.export(exporter.parts(record(value=True)))
        finally:
            context.detach(token)

        assert {} == baggage.get_all(memory.get_finished_logs()[0].log_record.context)

    def test_the_part_and_the_scope_have_lasting_names(self, memory: Any, logger_provider: LoggerProvider) -> None:
        """
        A delivery is kept under its part's kind; whoever filters logs does so by the scope's name.
        """
        exporter = OTLPFeedbackExporter(logger_provider)
        (part,) = exporter.parts(record(value=True))
        exporter.export([part])

        assert ("value", "otel_feedback") == (
            part.kind,
            memory.get_finished_logs()[0].instrumentation_scope.name,
        )

    def test_the_reason_to_wait_says_what_to_do(self) -> None:
        """
        Set a provider, give one, or switch the SDK on.
        """
        assert all(
            words in NOWHERE
            for words in (
                "no logger provider that emits",
                "set_logger_provider",
                "logger_provider=",
                "OTEL_SDK_DISABLED",
            )
        )

    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(judgement=judgements())
    def test_whatever_is_said_is_an_event(self, memory: Any, logger_provider: LoggerProvider, judgement: Any) -> None:
        """
        Its attributes are of OpenTelemetry's types, and all that was said is in one of them: nothing is dropped.
        """
        memory.clear()
        exporter = OTLPFeedbackExporter(logger_provider)
        (part,) = exporter.parts(judgement)
        exporter.export([part])

        event = memory.get_finished_logs()[0].log_record
        assert dict(event.attributes) == dict(part.body)
        for value in part.body.values():
            assert isinstance(value, (str, bool, float)) or all(isinstance(each, str) for each in value)
        assert "gen_ai.evaluation.name" in part.body
        assert frozenset(judgement.said) == part.carries

    def test_the_direction_is_told_where_it_is_not_the_usual_one(self) -> None:
        """
        The score is as it was given; that a low one is good stands beside it.
        """
        said = replace(record("effort", 2, scale=(1, 7)), lower_is_better=True)
        body = OTLPFeedbackExporter().parts(said)[0].body

        assert (2.0, True) == (body["gen_ai.evaluation.score.value"], body["otel_feedback.lower_is_better"])

    def test_an_unsampled_call_can_be_judged(self, memory: Any, logger_provider: LoggerProvider) -> None:
        """
        A log event needs no trace: it keeps the ids of a span that nobody exported.
        """
        exporter = OTLPFeedbackExporter(logger_provider)
        unsampled = FeedbackHandle(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0)))
        exporter.export(exporter.parts(record(value=True, target=unsampled)))

        event = memory.get_finished_logs()[0].log_record
        assert (True, 1, 2, 0) == (exporter.exports_unsampled, event.trace_id, event.span_id, event.trace_flags)

    @pytest.mark.parametrize(
        ("said", "expected"),
        [
            (
                {"value": True},
                {"gen_ai.evaluation.score.value": 1.0, "gen_ai.evaluation.score.label": "true"},
            ),
            (
                {"value": False},
                {"gen_ai.evaluation.score.value": 0.0, "gen_ai.evaluation.score.label": "false"},
            ),
            ({"value": 0.25}, {"gen_ai.evaluation.score.value": 0.25}),
            (
                {"value": 4, "scale": (1, 5)},
                {
                    "gen_ai.evaluation.score.value": 4.0,
                    "otel_feedback.scale.low": 1.0,
                    "otel_feedback.scale.high": 5.0,
                },
            ),
            ({"value": "spelling"}, {"gen_ai.evaluation.score.label": "spelling"}),
            (
                {"value": ["spelling", "tone"]},
                {
                    "gen_ai.evaluation.score.label": "spelling, tone",
                    "otel_feedback.labels": ("spelling", "tone"),
                },
            ),
            ({"comment": "Spot on"}, {"gen_ai.evaluation.explanation": "Spot on"}),
            ({"correction": "Paris"}, {"otel_feedback.correction": "Paris"}),
            ({"correction": {"city": "Paris"}}, {"otel_feedback.correction": '{"city":"Paris"}'}),
            ({"correction": False}, {"otel_feedback.correction": "false"}),
            ({"tags": ["a", "b"]}, {"otel_feedback.tags": ("a", "b")}),
            ({"value": 1.0, "user_id": "u-1"}, {"gen_ai.evaluation.score.value": 1.0, "user.id": "u-1"}),
            (
                {"value": 1.0, "metadata": {"app": {"v": 2}}},
                {"gen_ai.evaluation.score.value": 1.0, "otel_feedback.metadata": '{"app":{"v":2}}'},
            ),
            ({"value": 1.0, "source": "llm"}, {"gen_ai.evaluation.score.value": 1.0, "otel_feedback.source": "llm"}),
        ],
    )
    def test_each_field_has_its_attribute(
        self, memory: Any, logger_provider: LoggerProvider, said: dict[str, Any], expected: dict[str, Any]
    ) -> None:
        """
        An event has the conventions' attributes, ours where they have none, and none for what was not said.
        """
        exporter = OTLPFeedbackExporter(logger_provider)
        (part,) = exporter.parts(record(**said))
        exporter.export([part])

        always = {"gen_ai.evaluation.name": "rating", "otel_feedback.id": ID, "otel_feedback.source": "human"}
        event = memory.get_finished_logs()[0].log_record
        assert {**always, **expected} == dict(event.attributes)
        assert frozenset(record(**said).said) == part.carries

    def test_a_response_id_goes_along(self) -> None:
        """
        The id of the model's response, where the handle has it, names the call in the conventions' words.
        """
        target = handle(gen_ai__response__id="resp-1")
        (part,) = OTLPFeedbackExporter().parts(record(value=True, target=target))

        assert "resp-1" == part.body["gen_ai.response.id"]

    def test_what_was_emitted_cannot_be_taken_back(self, memory: Any, logger_provider: LoggerProvider) -> None:
        """
        A retraction emits nothing and says so; a replacement is another event under the same id.
        """
        exporter = OTLPFeedbackExporter(logger_provider)
        (part,) = exporter.parts(record(value=True))
        results = exporter.export([replace(part, action="retract"), replace(part, action="replace")])

        assert [Skipped("an event that was emitted cannot be taken back"), Success("emitted")] == results
        assert 1 == len(memory.get_finished_logs())

    def test_a_flush_is_the_logger_providers(self) -> None:
        """
        A flush answers what the logger provider answers; one that cannot be flushed has nothing to flush.
        """

        class Full(LoggerProvider):
            def force_flush(self, timeout_millis: int = 30_000) -> bool:
                return timeout_millis > 100

        exporter = OTLPFeedbackExporter(Full(shutdown_on_exit=False))

        assert (True, False, True) == (
            exporter.force_flush(),
            exporter.force_flush(10),
            OTLPFeedbackExporter().force_flush(),
        )

    def test_there_are_no_native_fields(self) -> None:
        """
        Fields for this exporter would reach nobody: they are refused.
        """
        with pytest.raises(InvalidFeedbackError) as caught:
            OTLPFeedbackExporter().parts(record(value=True, native={"otlp": {"severity": 9}}))

        assert "native.otlp" == caught.value.field

    def test_bodies_are_json(self) -> None:
        """
        What a part says can be shown as text.
        """
        (part,) = OTLPFeedbackExporter().parts(record(value=["a"], metadata={"m": [1]}))

        assert json.loads(json.dumps(dict(part.body)))


class TestVersions:
    @pytest.mark.parametrize("version", ["1.37.0", "1.45.2", "1.38.0.dev", "2.0.0"])
    def test_an_sdk_that_carries_events_is_taken(self, version: str) -> None:
        """
        From 1.37 on the SDK turns the API's log records into its own: there is nothing to refuse.
        """
        check_sdk(version)

    @pytest.mark.parametrize("version", ["1.25.0", "1.36.0", "1.4.1"])
    def test_an_sdk_that_would_lose_events_is_refused(self, version: str) -> None:
        """
        Before that the OTLP encoder fails in the background, and the event would be lost.
        """
        with pytest.raises(ConfigurationError, match=f"1.37 or newer; there is {version}") as caught:
            check_sdk(version)

        assert "exporters" == caught.value.setting


@pytest.mark.skipif(SDK < OLDEST_SDK, reason="this SDK is too old for the OTLP exporter")
class TestConstructor:
    @pytest.mark.parametrize(
        ("setting", "given_value"),
        [
            ("logger_provider", 3),
            ("logger_provider", "otlp"),
            ("name", ""),
            ("name", 3),
        ],
    )
    def test_a_wrong_argument_is_refused_by_name(self, setting: str, given_value: Any) -> None:
        """
        What would fail later, or do nothing in silence, is refused when the exporter is made.
        """
        with pytest.raises(ConfigurationError) as caught:
            OTLPFeedbackExporter(**{setting: given_value})

        assert setting == caught.value.setting
