"""What the sandbox keeps: spans, submissions, flags. It appends and forgets, and decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._limits import Limits
    from ._model import Flag, Outcome, Span, Submission, Vendor


@dataclass(slots=True)
class Ledger:
    """All that vendors took, in the order in which it came."""

    limits: Limits
    _spans: dict[tuple[str, str, str, str, str], Span] = field(default_factory=dict)
    _submissions: list[Submission] = field(default_factory=list)
    _flags: list[Flag] = field(default_factory=list)
    _stored_bytes: int = 0

    def has_room_for(self, outcome: Outcome) -> bool:
        """Say whether an outcome fits below the limits."""
        size = sum(each.size_bytes for each in outcome.submissions)
        return (
            len(self._spans) + len(outcome.spans) <= self.limits.spans
            and len(self._submissions) + len(outcome.submissions) <= self.limits.submissions
            and self._stored_bytes + size <= self.limits.stored_bytes
        )

    def apply(self, outcome: Outcome, sequence: int) -> None:
        """Keep what a vendor decided to store."""
        for span in outcome.spans:
            self._spans[span.key] = replace(span, sequence=sequence)
        self._submissions.extend(replace(each, sequence=sequence) for each in outcome.submissions)
        self._stored_bytes += sum(each.size_bytes for each in outcome.submissions)
        self.remark(outcome.flags)

    def remark(self, flags: Sequence[Flag]) -> None:
        """Keep flags that belong to no stored feedback."""
        self._flags.extend(flags[: self.limits.flags - len(self._flags)])

    def forget(self) -> None:
        """Start anew."""
        self._spans.clear()
        self._submissions.clear()
        self._flags.clear()
        self._stored_bytes = 0

    def spans(self, vendor: Vendor) -> list[Span]:
        """Answer a vendor's spans, each once."""
        return [span for span in self._spans.values() if span.vendor == vendor]

    def submissions(self, vendor: Vendor) -> list[Submission]:
        """Answer what a vendor took, oldest first."""
        return [each for each in self._submissions if each.vendor == vendor]

    def flags(self) -> tuple[Flag, ...]:
        """Answer the flags that belong to no stored feedback."""
        return tuple(self._flags)
