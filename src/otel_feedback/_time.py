"""Time as an argument: what the engine asks for, and the real one."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol

NANOS_PER_MILLI = 1_000_000
# The last moment that 64 bits can hold, in the year 2262.
LATEST_UNIX_NANO = (1 << 63) - 1


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


def iso_utc(time_unix_nano: int) -> str:
    """Write a time as ISO 8601 in UTC with microseconds, as all three vendors read it."""
    seconds, nanos = divmod(time_unix_nano, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc).replace(microsecond=nanos // 1_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
