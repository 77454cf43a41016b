"""How often somebody may ask, by a bucket for each that fills up again in time."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from otel_feedback._time import NANOS_PER_SECOND, Clock
from otel_feedback.exceptions import ConfigurationError

# So many are remembered; whoever asked longest ago is forgotten first.
MAX_BUCKETS = 100_000


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many requests in so many seconds, and as many at once."""

    requests: int
    seconds: float

    def __post_init__(self) -> None:
        """Refuse a limit that would let nobody through, or everybody."""
        if not self.requests > 0 or not self.seconds > 0:
            raise ConfigurationError("a RateLimit has requests and seconds, both more than 0", setting="rate_limit")


class Limiter:
    """Counts who asks how often, in this process alone.

    Threads share it without a lock, which a fork might leave taken: at worst somebody gets one request more.
    """

    def __init__(self, limit: RateLimit, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        # When each bucket will be full again.
        self._full_nano: dict[Hashable, int] = {}

    def wait_seconds(self, who: Hashable) -> int:
        """Answer 0 and count a request, if one may be made now; else in how many seconds, at least one."""
        now_nano = self._clock.monotonic_nano()
        window_nano = round(self._limit.seconds * NANOS_PER_SECOND)
        full_nano = max(self._full_nano.pop(who, 0), now_nano) + window_nano // self._limit.requests
        is_over = full_nano - now_nano > window_nano
        self._full_nano[who] = full_nano - window_nano // self._limit.requests if is_over else full_nano
        while len(self._full_nano) > MAX_BUCKETS:
            self._full_nano.pop(next(iter(self._full_nano)), None)
        return -(-(full_nano - now_nano - window_nano) // NANOS_PER_SECOND) if is_over else 0
