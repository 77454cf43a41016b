"""Ask Braintrust whether a span's row is there: feedback on a row that is not answers 200, and makes a stray one.

Source: braintrust.dev, "Query with BTQL". It allows about 20 questions a minute; this file keeps to that, and asks for
a row once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from otel_feedback._time import NANOS_PER_MILLI, Clock

if TYPE_CHECKING:
    from otel_feedback._handle import FeedbackHandle

# About 20 a minute.
QUESTION_MILLIS = 3_000
# So many rows are remembered to be there.
MAX_ROWS = 10_000

# What can stand between quotes in a query; a row's id of any other form cannot be asked for.
_PLAIN = re.compile(r"[\w.:-]+", re.ASCII)


class RowCheck:
    """Which rows are known to be there, and when the next question may be asked.

    Threads share it without a lock, which a fork might leave taken: at worst two of them ask at once.

    Args:
        clock: what tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, None] = {}
        self._next_nano = 0

    def is_seen(self, question: str) -> bool:
        """Tell whether a row is known to be there."""
        return question in self._seen

    def see(self, question: str) -> None:
        """Remember that a row is there; when there are too many, forget them all: each is asked for once more."""
        if len(self._seen) >= MAX_ROWS:
            self._seen = {}
        self._seen[question] = None

    def wait_millis(self) -> int:
        """Answer 0 and count a question, if one may be asked now; else say in how long."""
        now_nano = self._clock.monotonic_nano()
        if now_nano < self._next_nano:
            return -(-(self._next_nano - now_nano) // NANOS_PER_MILLI)
        self._next_nano = now_nano + QUESTION_MILLIS * NANOS_PER_MILLI
        return 0


def question_of(table: str, place: str, row: str, handle: FeedbackHandle) -> str | None:
    """Ask for a row, in Braintrust's query language: a span's by the trace and the span, any other by its own id.

    Args:
        table: `experiment` or `project_logs`.

        place: the id of that.

        row: the row's id.

        handle: the call that is judged.
    """
    if not _PLAIN.fullmatch(row):
        return None
    is_span = row in (handle.span_id, handle.root_span_id)
    condition = f"root_span_id = '{handle.trace_id}' AND span_id = '{row}'" if is_span else f"id = '{row}'"
    return f"select: id | from: {table}('{place}') spans | filter: {condition} | limit: 1"


def rows_of(answer: Any) -> list[Any] | None:
    """Read the rows in an answer, whatever that may be."""
    rows = answer.get("data") if isinstance(answer, dict) else None
    return rows if isinstance(rows, list) else None
