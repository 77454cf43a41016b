"""Route: where a judgement goes, what each destination would get of it, and why it would be skipped.

Everything about the choice of destinations lives here, as pure functions of the exporters; this file knows no store
and sends nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from otel_feedback._record import Feedback, FeedbackRecord, Part, redacted
from otel_feedback.exceptions import ConfigurationError, FeedbackError, InvalidFeedbackError
from otel_feedback.exporters import FeedbackExporter, not_carried, parts_of, where
from otel_feedback.stores import PARKED, UNROUTED, Entry

logger = logging.getLogger(__name__)

Redact = Callable[[Feedback], Feedback]


@dataclass(frozen=True, slots=True)
class DestinationPlan:
    """What one destination would get of a judgement, what it cannot carry, and why it would be skipped."""

    parts: Sequence[Part]
    not_carried: tuple[str, ...] = ()
    skipped: str | None = None


class Router:
    """Chooses the destinations of judgements.

    Args:
        exporters: the destinations that there are; each has a name of its own.

        exports_unsampled: whether every destination gets feedback on a span that was not sampled.

        redact: by destination, what sees a judgement before it is kept for that destination, and answers the one to
            keep.
    """

    def __init__(
        self,
        exporters: Sequence[FeedbackExporter],
        *,
        exports_unsampled: bool,
        redact: Mapping[str, Redact] = MappingProxyType({}),
    ) -> None:
        self.exporters: dict[str, FeedbackExporter] = {}
        self._exports_unsampled = exports_unsampled
        self._redact = redact
        for exporter in exporters:
            if isinstance(exporter, type) or not hasattr(exporter, "name") or not hasattr(exporter, "parts"):
                raise ConfigurationError(
                    f"{exporter!r} is no exporter: give objects, as in exporters=[OrqExporter()], and names in "
                    "OTEL_FEEDBACK_EXPORTERS",
                    setting="exporters",
                )
            if exporter.name in (*self.exporters, UNROUTED, PARKED):
                raise ConfigurationError(
                    f"the exporter name {exporter.name!r} is taken; give one of the two another name=",
                    setting="exporters",
                )
            self.exporters[exporter.name] = exporter
        for name in redact:
            if name not in self.exporters:
                raise ConfigurationError(f"redact names no exporter of this process: {name!r}", setting="redact")

    def destinations(self, feedback: Feedback) -> tuple[str, ...]:
        """Name the destinations that a judgement asks for, by default all.

        Raises:
            InvalidFeedbackError: when it names one that is not here.
        """
        # What is no mapping has no names to check; it is refused with the rest of the record.
        for name in feedback.native if isinstance(feedback.native, Mapping) else ():
            self._check_name(name, "native")
        if feedback.to is None:
            return tuple(self.exporters)
        if isinstance(feedback.to, str) or not isinstance(feedback.to, Sequence) or not feedback.to:
            raise InvalidFeedbackError("to must be a list of exporter names", field="to", value=feedback.to)
        for name in feedback.to:
            self._check_name(name, "to")
        return tuple(dict.fromkeys(feedback.to))

    def plan(self, record: FeedbackRecord, destinations: Sequence[str]) -> dict[str, DestinationPlan]:
        """Say what each destination would get; one that is not in this process is left out.

        Raises:
            InvalidFeedbackError: when a destination refuses the judgement for what it is.
        """
        here = [name for name in destinations if name in self.exporters]
        return {name: self._plan(self.exporters[name], self._variant(name, record)) for name in here}

    def entry(self, record: FeedbackRecord, destinations: Sequence[str], *, is_redacted: bool = False) -> Entry:
        """Say where a record goes, in which variant, and where it is skipped at once.

        What no destination gets is not kept: the record itself is then one of the variants. What `is_redacted` was kept
        for a while as `most_redacted` has it, and goes everywhere as it is.
        """
        if is_redacted:
            reasons = {name: self._skip_reason(name, record) for name in destinations}
            skipped = {name: reason for name, reason in reasons.items() if reason is not None}
            return Entry(record, tuple(destinations) or (UNROUTED,), skipped)
        if not destinations:
            return Entry(self.most_redacted(record), (UNROUTED,))
        variants = {name: self._variant(name, record) for name in destinations}
        reasons = {name: self._skip_reason(name, variant) for name, variant in variants.items()}
        skipped = {name: reason for name, reason in reasons.items() if reason is not None}
        kept = [variant for name, variant in variants.items() if name not in skipped]
        base = record if record in kept else kept[0] if kept else self.most_redacted(record)
        others = {name: each for name, each in variants.items() if name not in skipped and each != base}
        return Entry(base, tuple(destinations), skipped, others)

    def most_redacted(self, record: FeedbackRecord) -> FeedbackRecord:
        """Write a record as kept while it is not known where it goes: without what some destination may not see."""
        for name in self._redact:
            record = self._variant(name, record)
        return record

    def _variant(self, name: str, record: FeedbackRecord) -> FeedbackRecord:
        """Write a record as one destination gets it."""
        redact = self._redact.get(name)
        return record if redact is None or record.retracts else redacted(record, redact)

    def _plan(self, exporter: FeedbackExporter, record: FeedbackRecord) -> DestinationPlan:
        parts = self._parts(exporter, record)
        return DestinationPlan(
            parts=list(parts.values()),
            not_carried=() if record.retracts else not_carried(record, parts),
            skipped=self._skip_reason(exporter.name, record),
        )

    def _parts(self, exporter: FeedbackExporter, record: FeedbackRecord) -> Mapping[str, Part]:
        """Say what a destination would get; an exporter that fails at it must not refuse a good judgement."""
        try:
            return parts_of(exporter, record)
        except FeedbackError:
            raise
        except Exception as error:  # noqa: BLE001 (the boundary to the exporter)
            logger.error("%s cannot say what to send for feedback %s: %s", exporter.name, record.id, where(error))  # noqa: TRY400 (its text may quote a comment)
            return {}

    def _skip_reason(self, name: str, record: FeedbackRecord) -> str | None:
        """Say why a record is not even tried at a destination."""
        if not record.retracts and record.says_nothing:
            return "redacted"
        if record.handle.is_sampled or self._exports_unsampled:
            return None
        return None if getattr(self.exporters.get(name), "exports_unsampled", False) else "unsampled"

    def _check_name(self, name: object, field: str) -> None:
        """Refuse the name of a destination that is not here."""
        if not isinstance(name, str) or name not in self.exporters:
            known = ", ".join(self.exporters) or "none is configured"
            raise InvalidFeedbackError(f"{field} names no exporter of this process ({known})", field=field, value=name)
