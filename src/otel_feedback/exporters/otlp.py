"""OpenTelemetry itself: the `gen_ai.evaluation.result` event, through the logs SDK.

Source: OpenTelemetry semantic conventions, "Events for generative AI", `gen_ai.evaluation.result`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pydantic_core
from opentelemetry import trace
from opentelemetry._logs import LogRecord, NoOpLogger, get_logger_provider

# What the API has while nobody has set a provider; it is exported nowhere else.
from opentelemetry._logs._internal import ProxyLogger
from opentelemetry.context import Context

from otel_feedback._dialects import RESPONSE_ID
from otel_feedback._record import FeedbackRecord, Part
from otel_feedback.exceptions import ConfigurationError, InvalidFeedbackError
from otel_feedback.exporters import PauseDestination, Result, Skipped, Success
from otel_feedback.exporters._checks import check_offers, check_text

EVENT_NAME = "gen_ai.evaluation.result"

NOWHERE = (
    "there is no logger provider that emits: call opentelemetry._logs.set_logger_provider, or give logger_provider=; "
    "it needs a processor, and OTEL_SDK_DISABLED switches it off"
)
NOT_FLUSHED = "emitted; the logger provider did not say that all was flushed"

# As long as the SDK's own exporters wait for a collector, three times over.
FLUSH_MILLIS = 30_000

# Before it, the SDK passes the API's log records on as they are, and its OTLP encoder fails on them: the event would
# be counted as emitted and be lost.
OLDEST_SDK = (1, 37)


class _LoggerProvider(Protocol):
    """What is used of a logger provider."""

    def get_logger(self, name: str, /) -> Any: ...


class OTLPFeedbackExporter:
    """Emits each judgement as a log event correlated to the judged span, wherever the app's logs go.

    Without a logger provider that has somebody to give it to nothing would be emitted: then nothing counts as
    delivered, and it waits. What was emitted is flushed at once, since the SDK's queue ends with the process; whether
    the collector took it is between the two, and the SDK logs it.

    A log is only ever added to. A change is another event with the same `otel_feedback.id` and the next
    `otel_feedback.revision`: the highest one holds. What is taken back stays, and the receipt says so.

    Args:
        logger_provider: by default the global one.

        name: how users route to it.

    Raises:
        ConfigurationError: when the OpenTelemetry SDK is older than 1.37.
    """

    # A log event needs no trace.
    exports_unsampled = True

    def __init__(self, logger_provider: _LoggerProvider | None = None, *, name: str = "otlp") -> None:
        check_sdk(importlib.metadata.version("opentelemetry-sdk"))
        check_offers(logger_provider, "logger_provider", "get_logger")
        self.name = check_text(name, "name")
        self._logger_provider = logger_provider

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        """All of it in one event."""
        if record.native.get(self.name):
            raise InvalidFeedbackError(
                f"native[{self.name!r}] has no fields: an event says the same to everyone", field=f"native.{self.name}"
            )
        return [Part(record=record, kind="value", body=attributes_of(record), carries=frozenset(record.said))]

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        """Emit an event for each; what was emitted cannot be taken back."""
        logger = self._provider().get_logger("otel_feedback")
        if not emits(logger):
            return [PauseDestination(NOWHERE)] * len(parts)
        results = [self._emit(logger, part) for part in parts]
        if self.force_flush(FLUSH_MILLIS):
            return results
        # Not tried again: a processor that never says so would make events without end.
        return [Success(NOT_FLUSHED) if isinstance(result, Success) else result for result in results]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the logger provider, where it can be."""
        flush = getattr(self._provider(), "force_flush", None)
        return flush is None or bool(flush(timeout_millis))

    def shutdown(self) -> None:
        """Do nothing: the logger provider is the app's."""

    def _provider(self) -> _LoggerProvider:
        return self._logger_provider or get_logger_provider()

    def _emit(self, logger: Any, part: Part) -> Result:
        if part.action == "retract":
            return Skipped("an event that was emitted cannot be taken back")
        record = part.record
        logger.emit(
            LogRecord(
                timestamp=record.time_unix_nano,
                observed_timestamp=record.recorded_at_unix_nano,
                context=context_of(record.handle.context),
                event_name=EVENT_NAME,
                attributes=dict(part.body),
            )
        )
        return Success("emitted")


def context_of(judged: trace.SpanContext) -> Context:
    """Make a context with the judged span in it, and nothing else, also where no span is known.

    An empty one would be taken for the current context, and the event would land on whatever span is active now.
    """
    return trace.set_span_in_context(trace.NonRecordingSpan(judged), Context())


def emits(logger: Any) -> bool:
    """Tell whether somebody takes the events of a logger, as far as it can be asked: older ones cannot."""
    if isinstance(logger, (NoOpLogger, ProxyLogger)):
        return False
    enabled = getattr(logger, "enabled", None)
    return enabled is None or bool(enabled(context=context_of(trace.INVALID_SPAN_CONTEXT), event_name=EVENT_NAME))


def check_sdk(version: str) -> None:
    """Refuse an SDK that cannot take log records of the API's kind."""
    if tuple(map(int, version.split(".")[:2])) < OLDEST_SDK:
        raise ConfigurationError(
            f"OTLPFeedbackExporter needs opentelemetry-sdk {'.'.join(map(str, OLDEST_SDK))} or newer; there is "
            f"{version}",
            setting="exporters",
        )


def attributes_of(record: FeedbackRecord) -> Mapping[str, Any]:
    """Write a judgement in the semantic conventions' words, and what they have no word for in ours."""
    said: dict[str, Any] = {
        "gen_ai.evaluation.name": record.name,
        "gen_ai.evaluation.explanation": record.comment,
        RESPONSE_ID: record.handle.attributes.get(RESPONSE_ID),
        "otel_feedback.id": record.id,
        "otel_feedback.revision": record.revision or None,
        "otel_feedback.source": record.source,
        "user.id": record.user_id,
        "otel_feedback.tags": record.tags or None,
        "otel_feedback.correction": None if record.correction is None else _text(record.correction),
        "otel_feedback.metadata": _text(dict(record.metadata)) if record.metadata else None,
    }
    value = record.value
    if isinstance(value, bool):
        said |= {
            "gen_ai.evaluation.score.value": float(value),
            "gen_ai.evaluation.score.label": str(value).lower(),
        }
    elif isinstance(value, (int, float)):
        said["gen_ai.evaluation.score.value"] = float(value)
    elif value is not None:
        said["gen_ai.evaluation.score.label"] = value if isinstance(value, str) else ", ".join(value)
    if isinstance(value, tuple):
        said["otel_feedback.labels"] = value
    if record.lower_is_better:
        said["otel_feedback.lower_is_better"] = True
    if record.scale is not None:
        said["otel_feedback.scale.low"], said["otel_feedback.scale.high"] = map(float, record.scale)
    return {name: item for name, item in said.items() if item is not None}


def _text(value: Any) -> str:
    """Write a value as text: attributes hold no objects."""
    return value if isinstance(value, str) else pydantic_core.to_json(value).decode()
