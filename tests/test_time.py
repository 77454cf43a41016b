import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_feedback._time import SystemClock, iso_utc

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("time_unix_nano", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1, "1970-01-01T00:00:00.000000Z"),
        (999, "1970-01-01T00:00:00.000000Z"),
        (1_000, "1970-01-01T00:00:00.000001Z"),
        (1_767_225_600_123_456_789, "2026-01-01T00:00:00.123456Z"),
        ((1 << 63) - 1, "2262-04-11T23:47:16.854775Z"),
    ],
)
def test_a_time_is_written_in_utc_with_six_decimals(time_unix_nano: Any, text: str) -> None:
    """
    The text has microseconds, always six digits of them, cut and not rounded, and ends in Z.
    """
    assert text == iso_utc(time_unix_nano)


@given(st.integers(0, (1 << 63) - 1))
def test_a_written_time_is_read_as_the_same_microsecond(time_unix_nano: Any) -> None:
    """
    Whoever parses the text gets the time back, but for the nanoseconds below a microsecond.
    """
    read = datetime.fromisoformat(iso_utc(time_unix_nano).replace("Z", "+00:00"))

    assert time_unix_nano // 1_000 == (read - EPOCH) // timedelta(microseconds=1)


@given(st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 63) - 1))
def test_written_times_sort_as_times(one: Any, other: Any) -> None:
    """
    Of two times the text of the later one is never the smaller.
    """
    assert (one <= other) <= (iso_utc(one) <= iso_utc(other))


def test_the_system_clock_tells_the_time_of_day() -> None:
    """
    It lies between two readings of the machine's own clock, in nanoseconds.
    """
    before = time.time_ns()
    shown = SystemClock().time_unix_nano()

    assert before <= shown <= time.time_ns()


def test_the_system_clock_measures_durations_by_the_monotonic_clock() -> None:
    """
    It lies between two readings of the machine's monotonic clock, in nanoseconds.
    """
    before = time.monotonic_ns()
    shown = SystemClock().monotonic_nano()

    assert before <= shown <= time.monotonic_ns()
