"""Time as an argument: what the engine asks for, and the real one."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Protocol

NANOS_PER_MILLI = 1_000_000
NANOS_PER_SECOND = 1_000_000_000
# The last moment that 64 bits can hold, in the year 2262.
LATEST_UNIX_NANO = (1 << 63) - 1

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Clock(Protocol):
    """The two clocks that the engine reads; tests give their own."""

    def time_unix_nano(self) -> int:
        """Answer the time of day in nanoseconds since the Unix epoch: for what is stored."""
        ...

    def monotonic_nano(self) -> int:
        """Answer a clock that never goes back, in nanoseconds: for durations."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def time_unix_nano(self) -> int:
        """Answer the time of day in nanoseconds since the Unix epoch."""
        return time.time_ns()

    def monotonic_nano(self) -> int:
        """Answer the monotonic clock in nanoseconds."""
        return time.monotonic_ns()


def moment(time_unix_nano: int) -> datetime:
    """Write a time as a datetime in UTC, to the microsecond."""
    return _EPOCH + timedelta(microseconds=time_unix_nano // 1_000)


def iso_utc(time_unix_nano: int) -> str:
    """Write a time as ISO 8601 in UTC with microseconds, as all three vendors read it."""
    return moment(time_unix_nano).isoformat(timespec="microseconds").replace("+00:00", "Z")
