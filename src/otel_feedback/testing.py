"""For tests of applications, exporters and stores: time as an argument, an exporter that keeps what it gets."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from otel_feedback._record import FeedbackRecord, Part
from otel_feedback.exporters import Result, Success


class FakeClock:
    """A clock that goes only when it is told to.

    Args:
        time_unix_nano: what it shows at first; by default the first second of 2026.
    """

    def __init__(self, time_unix_nano: int = 1_767_225_600_000_000_000) -> None:
        self._time_unix_nano = time_unix_nano
        self._monotonic_nano = 0

    def time_unix_nano(self) -> int:
        """Answer the time of day."""
        return self._time_unix_nano

    def monotonic_nano(self) -> int:
        """Answer the monotonic clock."""
        return self._monotonic_nano

    def advance(self, *, seconds: float = 0, millis: int = 0) -> None:
        """Let time pass, on both clocks."""
        nanos = round(seconds * 1_000_000_000) + millis * 1_000_000
        self._time_unix_nano += nanos
        self._monotonic_nano += nanos

    def jump(self, *, seconds: float) -> None:
        """Set the time of day forward or back, as an operator or NTP does; the monotonic clock stays."""
        self._time_unix_nano += round(seconds * 1_000_000_000)


class InMemoryFeedbackExporter:
    """Keeps what it is given, and fails as it is told to; the counterpart of OpenTelemetry's `InMemorySpanExporter`.

    Args:
        name: how users route to it.

        exports_unsampled: whether it takes feedback on spans that were not sampled.
    """

    def __init__(self, name: str = "memory", *, exports_unsampled: bool = False) -> None:
        self.name = name
        self.exports_unsampled = exports_unsampled
        self._lock = threading.Lock()
        self._exported: list[Part] = []
        self._failures: list[Result] = []

    def __repr__(self) -> str:
        """Name it and count what it has."""
        return f"<InMemoryFeedbackExporter name={self.name!r} exported={len(self._exported)}>"

    @property
    def exported(self) -> Sequence[Part]:
        """The parts that were exported with success, in order."""
        with self._lock:
            return tuple(self._exported)

    @property
    def records(self) -> Sequence[FeedbackRecord]:
        """The records of those parts."""
        return tuple(part.record for part in self.exported)

    def fail_next(self, *results: Result) -> None:
        """Answer the next parts with these results, one each."""
        with self._lock:
            self._failures.extend(results)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._exported.clear()
            self._failures.clear()

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        """All of it in one part."""
        return [Part(record=record, kind="value", body={}, carries=frozenset(record.said))]

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        """Keep each part, or fail as told."""
        with self._lock:
            return [self._take(part) for part in parts]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 (nothing to wait for)
        """Answer true: nothing is buffered."""
        return True

    def shutdown(self) -> None:
        """Do nothing: what was exported can still be read."""

    def _take(self, part: Part) -> Result:
        result = self._failures.pop(0) if self._failures else Success()
        if isinstance(result, Success):
            self._exported.append(part)
        return result
