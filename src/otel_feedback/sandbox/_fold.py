"""How a vendor's submissions become the entries of `state()["feedback"]`: the same for all three."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._model import FeedbackState, Flag, Item, Submission, Target, Verdict


@dataclass(frozen=True, slots=True)
class Said:
    """What one feedback says, in words common to the vendors."""

    id: str | None
    kind: str
    name: str
    value: Any
    user: str | None
    target: Target
    raw: Item


@dataclass(slots=True)
class Entries:
    """The feedback of one vendor while its submissions are read in order; equal ones are counted."""

    by_key: dict[str, FeedbackState] = field(default_factory=dict)
    by_id: dict[str | None, list[FeedbackState]] = field(default_factory=dict)
    details: dict[str, list[Flag]] = field(default_factory=dict)

    def add(self, key: str, submission: Submission, project: str, said: Said, verdict: Verdict) -> FeedbackState:
        """Count a feedback that is there already, or add it."""
        entry = self.by_key.get(key)
        if entry is None:
            entry = self.by_key[key] = _entry(submission, project, said)
            self.by_id.setdefault(said.id, []).append(entry)
        else:
            entry["times"] += 1
        entry["joined"], entry["reason"], entry["removed"] = verdict.joined, verdict.reason, False
        self.flag(key, verdict.flags)
        return entry

    def flag(self, key: str, flags: tuple[Flag, ...]) -> None:
        """Put flags on a feedback, each once."""
        seen = self.details.setdefault(key, [])
        seen.extend(flag for flag in dict.fromkeys(flags) if flag not in seen)
        self.by_key[key]["flags"] = list(dict.fromkeys(flag.flag for flag in seen))

    @property
    def feedback(self) -> list[FeedbackState]:
        """All of it, the oldest first."""
        return list(self.by_key.values())

    @property
    def flags(self) -> list[Flag]:
        """All flags with their details."""
        return [flag for flags in self.details.values() for flag in flags]


@dataclass(frozen=True, slots=True)
class Reading:
    """One vendor as it stands: its feedback, its flags, and what a person would see."""

    feedback: list[FeedbackState]
    flags: list[Flag]
    effective: Any


def _entry(submission: Submission, project: str, said: Said) -> FeedbackState:
    return {
        "vendor": submission.vendor,
        "id": said.id,
        "kind": said.kind,
        "name": said.name,
        "value": said.value,
        "user": said.user,
        "project": project,
        "target": said.target,
        "joined": False,
        "reason": "",
        "flags": [],
        "received_at_unix_nano": submission.received_at_unix_nano,
        "times": 1,
        "removed": False,
        "raw": said.raw,
    }
