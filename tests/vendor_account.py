"""What processes were told to be accepted, and what became of it at the three vendors of a sandbox.

A judgement says in its correction whose it is and which span it is about, so that what landed can be told apart and
held against where it landed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import otel_feedback as of
from otel_feedback._time import NANOS_PER_MILLI, SystemClock
from otel_feedback.sandbox import FeedbackState, Sandbox, State
from otel_feedback.stores import DestinationStats

# Under which name each vendor keeps a correction; orq knows traces and no spans.
CORRECTIONS = {"orq": "correction", "braintrust": "expected", "weave": "correction"}
HOUR_MILLIS = 3_600_000


class ClockAhead(SystemClock):
    """The machine's clock, so much ahead that the leases of those who were killed have run out."""

    def __init__(self, millis: int) -> None:
        self._nanos = millis * NANOS_PER_MILLI

    def time_unix_nano(self) -> int:
        """Answer the time of day, ahead."""
        return super().time_unix_nano() + self._nanos


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A judgement whose receipt a process was given."""

    id: str
    label: str
    trace_id: str
    span_id: str

    @property
    def correction(self) -> str:
        """What it says."""
        return f"{self.label} {self.trace_id} {self.span_id}"


@dataclass(frozen=True, slots=True)
class Account:
    """What went wrong, each as a sentence; `repeats` are no wrong, and counted."""

    lost: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)
    under_two_ids: list[str] = field(default_factory=list)
    repeats: int = field(default=0, compare=False)


def account(state: State, acknowledged: Iterable[Acknowledged]) -> Account:
    """Hold what landed against what was acknowledged, and against what each says of itself."""
    found = Account(repeats=sum(each["times"] - 1 for each in state["feedback"]))
    landed: dict[tuple[str, str], set[str]] = {}
    for each in state["feedback"]:
        if CORRECTIONS[each["vendor"]] != each["name"]:
            continue
        correction = str(each["value"])
        landed.setdefault((each["vendor"], correction), set()).add(str(each["id"]))
        if not _is_on_its_target(each, correction):
            found.misplaced.append(f"{each['vendor']}: {correction} is on {each['target']}")
    for (vendor, correction), ids in landed.items():
        if len(ids) > 1:
            found.under_two_ids.append(f"{vendor}: {correction} has the ids {sorted(ids)}")
    for judgement in acknowledged:
        found.lost.extend(
            f"{vendor}: {judgement.label} ({judgement.id})"
            for vendor in CORRECTIONS
            if (vendor, judgement.correction) not in landed
        )
    return found


def _is_on_its_target(landed: FeedbackState, correction: str) -> bool:
    """Tell whether a correction is where it says, as far as the vendor knows places."""
    _, trace_id, span_id = correction.split(" ")
    said = {"trace_id": trace_id, "span_id": span_id}
    return all(place in (None, said[name]) for name, place in landed["target"].items())


def settings_at(sandbox: Sandbox, store: Path) -> dict[str, str]:
    """All that a process is told in order to deliver to the three vendors."""
    return {
        **sandbox.environment(),
        "OTEL_FEEDBACK_EXPORTERS": "orq,braintrust,weave",
        "OTEL_FEEDBACK_STORE_URL": f"sqlite:///{store}",
        "OTEL_FEEDBACK_BRAINTRUST_HOLD_MILLIS": "0",
    }


def deliver_the_rest(sandbox: Sandbox, store: Path, *, ahead_millis: int) -> Mapping[str, DestinationStats]:
    """Be the next process that opens the store, when all leases have run out; answer the accounts in the end."""
    said = sandbox.environment()
    exporters = [
        of.OrqExporter(said["ORQ_API_KEY"], base_url=said["ORQ_BASE_URL"]),
        of.BraintrustExporter(
            said["BRAINTRUST_PARENT"],
            api_key=said["BRAINTRUST_API_KEY"],
            base_url=said["BRAINTRUST_API_URL"],
            hold_millis=0,
        ),
        of.WeaveExporter(
            f"{said['WANDB_ENTITY']}/{said['WANDB_PROJECT']}",
            api_key=said["WANDB_API_KEY"],
            base_url=said["WF_TRACE_SERVER_URL"],
        ),
    ]
    with of.FeedbackProvider(exporters=exporters, store=f"sqlite:///{store}", clock=ClockAhead(ahead_millis)) as last:
        last.force_flush(120_000)
        return last.stats()


def unsettled(stats: Mapping[str, DestinationStats]) -> dict[str, DestinationStats]:
    """Answer the accounts that do not end with everything delivered."""
    return {name: each for name, each in stats.items() if each.recorded != each.delivered}
