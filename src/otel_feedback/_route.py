"""Route: where a judgement goes, what each destination would get of it, and why it would be skipped.

Everything about the choice of destinations lives here, as pure functions of the exporters; this file knows no store
and sends nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType

from otel_feedback._declare import Schema
from otel_feedback._dialects import TO
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import Feedback, FeedbackRecord, Part, make_record, redacted, stand_in_handle
from otel_feedback.environment_variables import names_in
from otel_feedback.exceptions import ConfigurationError, FeedbackError, InvalidFeedbackError
from otel_feedback.exporters import FeedbackExporter, not_carried, parts_of, where
from otel_feedback.stores import PARKED, UNROUTED, Entry

logger = logging.getLogger(__name__)

# What a sample of a declaration is about.
_ANY_CALL = stand_in_handle("app", "sample")

Redact = Callable[[Feedback], Feedback]
Filter = Callable[[FeedbackRecord], bool]


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

        filters: by destination, what says whether a judgement goes there; it is asked last, of what is left after
            `redact`.
    """

    def __init__(
        self,
        exporters: Sequence[FeedbackExporter],
        *,
        exports_unsampled: bool,
        redact: Mapping[str, Redact] = MappingProxyType({}),
        filters: Mapping[str, Filter] = MappingProxyType({}),
    ) -> None:
        self.exporters: dict[str, FeedbackExporter] = {}
        self._exports_unsampled = exports_unsampled
        self._redact = redact
        self._filters = filters
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
        for setting, by_name in {"redact": redact, "filters": filters}.items():
            self._check_names(by_name, setting)

    def destinations(self, feedback: Feedback) -> tuple[str, ...]:
        """Name the destinations that a judgement asks for, by default all.

        Where it asks for none of its own, those that its call asks for count: see `asked_by`.

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

    def asked_by(self, handle: FeedbackHandle) -> tuple[str, ...]:
        """Name the destinations that a call asks for, if it does.

        They need not be here: a destination is an address in the store, and the process that captured the call knows
        it. Somebody who judges the call is not to suffer from it, nor is another tenant to get the judgement.
        """
        return tuple(name for name in names_in(handle.attributes.get(TO, "")) if name not in (UNROUTED, PARKED))

    def check_declared(self, schema: Schema) -> None:
        """Refuse declarations whose fields of vendors no destination takes; without a destination, take them.

        Every sample of what is declared is asked about: what only another value would show is refused at the call.

        Raises:
            ConfigurationError: naming the declaration, and the field.
        """
        for name, declared in schema.declared.items() if self.exporters else ():
            self._check_names(declared.native, f"feedback[{name!r}].native")
            for value in declared.samples:
                feedback = schema.completed(Feedback(name=name, value=value))
                record = make_record(feedback, _ANY_CALL, now_unix_nano=1, rng=Random(0))  # noqa: S311 (a sample's id is nobody's)
                for destination in declared.native:
                    try:
                        self._parts(self.exporters[destination], record)
                    except FeedbackError as error:
                        raise ConfigurationError(f"feedback[{name!r}]: {error}", setting="feedback") from None

    def missing(self, record: FeedbackRecord, destinations: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Name, for each destination that is here, what it cannot carry; of a record that may not be joined yet.

        Raises:
            InvalidFeedbackError: when a destination refuses the judgement for what it is.
        """
        plans = {name: self._plan(name, variant) for name, variant in self._variants(record, destinations).items()}
        return {name: plan.not_carried for name, plan in plans.items() if plan.not_carried}

    def plan(
        self, record: FeedbackRecord, destinations: Sequence[str], *, is_joined: bool = True
    ) -> dict[str, DestinationPlan]:
        """Say what each destination would get; one that is not in this process is left out.

        Of a record that is not joined yet it is not known whether it will be skipped.

        Raises:
            InvalidFeedbackError: when a destination refuses the judgement for what it is.

            ConfigurationError: when a filter fails.
        """
        return {
            name: replace(self._plan(name, variant), skipped=self._skip_reason(name, variant) if is_joined else None)
            for name, variant in self._variants(record, destinations).items()
        }

    def entry(self, record: FeedbackRecord, destinations: Sequence[str], *, is_redacted: bool = False) -> Entry:
        """Say where a record goes, in which variant, and where it is skipped at once.

        What no destination gets is not kept: the record itself is then one of the variants. What `is_redacted` was kept
        for a while as `most_redacted` has it, and goes everywhere as it is.

        Raises:
            ConfigurationError: when a filter fails.
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

    def _variants(self, record: FeedbackRecord, destinations: Sequence[str]) -> dict[str, FeedbackRecord]:
        """Write a record as each destination gets it that is here."""
        return {name: self._variant(name, record) for name in destinations if name in self.exporters}

    def _plan(self, name: str, record: FeedbackRecord) -> DestinationPlan:
        """Say what one destination would get, were it not skipped."""
        parts = self._parts(self.exporters[name], record)
        return DestinationPlan(
            parts=list(parts.values()),
            not_carried=() if record.retracts else not_carried(record, parts),
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
        if not (record.handle.is_sampled or self._exports_unsampled or self._needs_no_trace(name)):
            return "unsampled"
        return None if record.retracts or self._passes(name, record) else "filtered"

    def _needs_no_trace(self, name: str) -> bool:
        """Tell whether a destination takes feedback on a span that was not sampled."""
        return getattr(self.exporters.get(name), "exports_unsampled", False)

    def _passes(self, name: str, record: FeedbackRecord) -> bool:
        """Ask a destination's filter whether a record goes there.

        One that fails is no answer: neither "no", which would lose a judgement, nor "yes", which might show it to those
        whom it is kept from.
        """
        is_wanted = self._filters.get(name)
        if is_wanted is None:
            return True
        try:
            answer = is_wanted(record)
        except Exception as error:
            raise _broken_filter(name, f"raised {type(error).__name__}") from error
        if not isinstance(answer, bool):
            raise _broken_filter(name, f"answered {type(answer).__name__}, not True or False")
        return answer

    def _check_names(self, by_name: Iterable[str], setting: str) -> None:
        """Refuse a setting for a destination that is not here: misspelt, it would do nothing."""
        for name in by_name:
            if name not in self.exporters:
                raise ConfigurationError(
                    f"{setting} names no exporter of this process: {name!r} (there are: {self._known})",
                    setting=setting.partition("[")[0],
                )

    @property
    def _known(self) -> str:
        """Name the destinations that there are."""
        return ", ".join(self.exporters) or "none is configured"

    def _check_name(self, name: object, field: str) -> None:
        """Refuse the name of a destination that is not here."""
        if not isinstance(name, str) or name not in self.exporters:
            raise InvalidFeedbackError(
                f"{field} names no exporter of this process ({self._known})", field=field, value=name
            )


def _broken_filter(name: str, what: str) -> ConfigurationError:
    """Say that a filter does not do what filters do."""
    return ConfigurationError(
        f"the filter of {name!r} {what}: whether a judgement goes there is not known before it is mended",
        setting="filters",
    )
