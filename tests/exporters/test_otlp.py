from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from typing import Any

import pytest
from exporter_bench import ID, NOON, SPAN, TRACE, Vendor, handle, judgements, record, say
from hypothesis import HealthCheck, given, settings
from opentelemetry import baggage, context, trace
from opentelemetry._logs import NoOpLoggerProvider
from opentelemetry._logs._internal import ProxyLogger
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.sdk._logs import Logger, LoggerProvider, export
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, user_attributes
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, TraceFlags

from otel_feedback import FeedbackHandle, FeedbackRecord, OTLPFeedbackExporter, Part
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import PauseDestination, Skipped, Success
from otel_feedback.exporters.otlp import NOT_FLUSHED, NOWHERE, OLDEST_SDK, check_sdk, emits
from otel_feedback.testing import ExporterContract

SDK = tuple(map(int, importlib.metadata.version("opentelemetry-sdk").split(".")[:2]))

# Its name before 1.39.
Memory: Any = getattr(export, "InMemoryLogRecordExporter", None) or getattr(export, "InMemoryLogExporter", None)


# Whether a logger says that nobody takes what it emits.
CAN_BE_ASKED = hasattr(Logger, "enabled")


def events_in(request: Any) -> list[Any]:
    """Answer the log records in what the collector's protocol carries."""
    return [each for found in request.resource_logs for scope in found.scope_logs for each in scope.log_records]


def plain_attributes(event: Any) -> dict[str, Any]:
    """Read a log record's attributes out of the protocol's values."""
    return {item.key: plain(item.value) for item in event.attributes}


def plain(value: Any) -> Any:
    """Read one value: a text, a boolean, a number, or a list of them."""
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [plain(each) for each in found.values] if kind == "array_value" else found


def assert_an_event_of(judgement: FeedbackRecord, event: Any, part: Part) -> None:
    """Check that an event has the ids and times of a judgement, all that was said, and OpenTelemetry's types only."""
    span = judgement.handle.context
    assert (span.trace_id, span.span_id, span.trace_flags) == (event.trace_id, event.span_id, event.trace_flags)
    assert (judgement.time_unix_nano, judgement.recorded_at_unix_nano) == (event.timestamp, event.observed_timestamp)
    assert dict(event.attributes) == dict(part.body)
    for value in part.body.values():
        assert isinstance(value, (str, bool, int, float)) or (
            isinstance(value, tuple) and value and all(isinstance(each, str) for each in value)
        )
    assert (judgement.name, judgement.id) == (part.body["gen_ai.evaluation.name"], part.body["otel_feedback.id"])
    assert frozenset(judgement.said) == part.carries


class UnaskableLogger:
    """A logger of somebody's own; older ones have no `enabled`."""

    def __init__(self, **methods: Any) -> None:
        vars(self).update(methods)


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

    def test_a_provider_without_a_processor_delivers_nothing(self) -> None:
        """
        A provider that gives its events to nobody is none, where it can be asked.
        """
        provider = LoggerProvider(shutdown_on_exit=False)
        exporter = OTLPFeedbackExporter(provider)
        (result,) = exporter.export(exporter.parts(record(value=True)))

        assert (PauseDestination(NOWHERE) if CAN_BE_ASKED else Success("emitted")) == result

    @pytest.mark.skipif(not CAN_BE_ASKED, reason="this SDK's loggers cannot be asked whether they emit")
    @pytest.mark.parametrize("is_taken", [True, False])
    def test_a_provider_is_asked_about_the_event_and_no_span(self, memory: Any, is_taken: bool) -> None:
        """
        A processor that takes no such event makes it wait; what it is asked is not about the span that is active.
        """
        asked: list[Any] = []

        class Picky(export.SimpleLogRecordProcessor):
            def enabled(self, *, context: Any = None, event_name: Any = None, **_: Any) -> bool:
                asked.append((event_name, trace.get_current_span(context).get_span_context().is_valid))
                return is_taken

        provider = LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(Picky(memory))
        exporter = OTLPFeedbackExporter(provider)
        with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("another"):
            (result,) = exporter.export(exporter.parts(record(value=True)))

        assert [("gen_ai.evaluation.result", False)] == asked
        assert (Success("emitted") if is_taken else PauseDestination(NOWHERE), int(is_taken)) == (
            result,
            len(memory.get_finished_logs()),
        )

    @pytest.mark.parametrize("logger", [UnaskableLogger(), UnaskableLogger(enabled=lambda **_: True)])
    def test_a_logger_that_cannot_be_asked_is_taken_at_its_word(self, logger: Any) -> None:
        """
        Only one that says so, or is known to, emits nothing.
        """
        assert emits(logger)

    def test_what_was_emitted_has_left_the_queue(self, memory: Any) -> None:
        """
        What counts as delivered does not wait in the SDK for a process that may end: it has been flushed.
        """
        provider = LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(export.BatchLogRecordProcessor(memory, schedule_delay_millis=3_600_000))
        exporter = OTLPFeedbackExporter(provider)
        results = exporter.export([part for _ in range(3) for part in exporter.parts(record(value=True))])
        arrived = len(memory.get_finished_logs())
        provider.shutdown()

        assert ([Success("emitted")] * 3, 3) == (results, arrived)

    def test_what_nobody_flushes_is_emitted_once_all_the_same(self, memory: Any) -> None:
        """
        A provider that does not say that it flushed gets no event twice for it, and the receipt says what is known.
        """
        waits: list[int] = []

        class Silent(export.SimpleLogRecordProcessor):
            def force_flush(self, timeout_millis: int = 0) -> bool:
                waits.append(timeout_millis)
                return False

        provider = LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(Silent(memory))
        exporter = OTLPFeedbackExporter(provider)
        (part,) = exporter.parts(record(value=True))
        results = exporter.export([part, replace(part, action="retract")])

        assert [Success(NOT_FLUSHED), Skipped("an event that was emitted cannot be taken back")] == results
        assert (1, 1) == (len(memory.get_finished_logs()), len(waits))

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
        assert_an_event_of(judgement, event, part)

    @pytest.mark.chaos
    @settings(
        max_examples=100_000,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(judgement=judgements())
    def test_a_hundred_thousand_judgements_are_events(
        self, memory: Any, logger_provider: LoggerProvider, judgement: Any
    ) -> None:
        """
        The same, of a hundred thousand judgements, as the collector's protocol writes them.
        """
        memory.clear()
        exporter = OTLPFeedbackExporter(logger_provider)
        (part,) = exporter.parts(judgement)
        exporter.export([part])

        (written,) = memory.get_finished_logs()
        assert_an_event_of(judgement, written.log_record, part)
        (sent,) = events_in(encode_logs([written]))
        assert plain_attributes(sent) == {
            name: list(value) if isinstance(value, tuple) else value for name, value in part.body.items()
        }
        assert (judgement.handle.trace_id, judgement.handle.span_id) == (sent.trace_id.hex(), sent.span_id.hex())

    def test_a_change_is_told_from_what_was_said_before(self, memory: Any, logger_provider: LoggerProvider) -> None:
        """
        Events of one judgement have one id, and the highest revision holds; the first has none to tell.
        """
        exporter = OTLPFeedbackExporter(logger_provider)
        for revision in range(3):
            exporter.export(exporter.parts(record(value=revision / 2, revision=revision)))

        told = [event.log_record.attributes for event in memory.get_finished_logs()]
        assert [(ID, None, 0.0), (ID, 1, 0.5), (ID, 2, 1.0)] == [
            (each["otel_feedback.id"], each.get("otel_feedback.revision"), each["gen_ai.evaluation.score.value"])
            for each in told
        ]

    @pytest.mark.skipif(
        not hasattr(gen_ai_attributes, "GEN_AI_EVALUATION_NAME"),
        reason="this semconv knows no evaluations yet, or no more",
    )
    def test_the_conventions_words_are_theirs(self) -> None:
        """
        Each attribute under `gen_ai.` or `user.` is one that OpenTelemetry's own package names.
        """
        said = record(
            value=True,
            comment="c",
            correction="d",
            tags=["t"],
            user_id="u",
            metadata={"m": 1},
            target=handle(gen_ai__response__id="resp-1"),
        )
        words = {
            *(item for name, item in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")),
            user_attributes.USER_ID,
        }
        body = OTLPFeedbackExporter().parts(said)[0].body

        assert {
            "gen_ai.evaluation.name",
            "gen_ai.evaluation.score.value",
            "gen_ai.evaluation.score.label",
            "gen_ai.evaluation.explanation",
            "gen_ai.response.id",
            "user.id",
        } == {name for name in body if not name.startswith("otel_feedback.")}
        assert words >= {name for name in body if not name.startswith("otel_feedback.")}

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


@pytest.mark.skipif(SDK < OLDEST_SDK, reason="this SDK is too old for the OTLP exporter")
class TestCollector:
    """The SDK's own OTLP exporter, and a collector on loopback that reads what arrives as the protocol has it."""

    def test_a_judgement_arrives_as_an_event_on_its_span(self, vendor: Vendor) -> None:
        """
        When it counts as delivered the collector has it: ids, times, name and every attribute, and no active span's.
        """
        vendor.script(say(200, ExportLogsServiceResponse().SerializeToString(), content_type="application/x-protobuf"))
        provider = LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(
            export.BatchLogRecordProcessor(
                OTLPLogExporter(endpoint=f"{vendor.url}/v1/logs"), schedule_delay_millis=3_600_000
            )
        )
        exporter = OTLPFeedbackExporter(provider)
        said = record("stars", 4, scale=(1, 5), comment="Größe 👍", tags=["a", "b"], user_id="u-1", time_unix_nano=7)
        with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("another"):
            results = exporter.export(exporter.parts(said))
        requests = list(vendor.requests)
        provider.shutdown()

        assert ([Success("emitted")], ["/v1/logs"]) == (results, [request.url.path for request in requests])
        (event,) = events_in(ExportLogsServiceRequest.FromString(requests[0].content))
        assert (TRACE, SPAN, 1) == (event.trace_id.hex(), event.span_id.hex(), event.flags)
        assert ("gen_ai.evaluation.result", 7, NOON) == (
            event.event_name,
            event.time_unix_nano,
            event.observed_time_unix_nano,
        )
        assert {
            "gen_ai.evaluation.name": "stars",
            "gen_ai.evaluation.score.value": 4.0,
            "gen_ai.evaluation.explanation": "Größe 👍",
            "user.id": "u-1",
            "otel_feedback.id": ID,
            "otel_feedback.source": "human",
            "otel_feedback.tags": ["a", "b"],
            "otel_feedback.scale.low": 1.0,
            "otel_feedback.scale.high": 5.0,
        } == plain_attributes(event)

    def test_what_is_known_by_its_response_alone_arrives_without_ids(self, vendor: Vendor) -> None:
        """
        The collector gets no ids, which the protocol writes as none or as zeros, and the response's id.
        """
        vendor.script(say(200, ExportLogsServiceResponse().SerializeToString(), content_type="application/x-protobuf"))
        provider = LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(
            export.SimpleLogRecordProcessor(OTLPLogExporter(endpoint=f"{vendor.url}/v1/logs"))
        )
        exporter = OTLPFeedbackExporter(provider)
        nowhere = FeedbackHandle(INVALID_SPAN_CONTEXT, attributes={"gen_ai.response.id": "chatcmpl-1"})
        with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("another"):
            exporter.export(exporter.parts(replace(record(value=True), handle=nowhere)))
        requests = list(vendor.requests)
        provider.shutdown()

        (event,) = events_in(ExportLogsServiceRequest.FromString(requests[0].content))
        assert ("", "") == (event.trace_id.hex().strip("0"), event.span_id.hex().strip("0"))
        assert "chatcmpl-1" == plain_attributes(event)["gen_ai.response.id"]


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
