"""What the fault harnesses share: calls, judgements that name their target, the pipeline, and the audit."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import SpanContext, TraceFlags

import otel_feedback as of
from otel_feedback.exporters._http import HTTPOptions
from otel_feedback.sandbox import Fault

VENDORS = ("orq", "braintrust", "weave")
# At these a repeated id is no second judgement; a comment at Braintrust has no id (VENDORS, Braintrust, repeat).
DEDUPLICATING = ("orq", "weave")
# Retries as quick as a machine allows, `Retry-After` included: the run is about order and loss, not about patience.
QUICK = of.RetryPolicy(base_millis=1, longest_millis=50, longest_retry_after_millis=5)
# Longer than any answer of a vendor on loopback takes, short enough for those that never come.
TIMEOUT_MILLIS = 2_000


# Of six kinds, each meets what the ones before it let pass: three requests in ten fail.
EACH = 1 - 0.7 ** (1 / 6)
FAULTS = tuple(
    Fault(path="*feedback*", times=None, probability=EACH, **said)
    for said in (
        {"kind": "reset"},
        {"kind": "reset_after"},
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 429, "headers": {"retry-after": "1"}},
        {"kind": "truncated"},
        {"kind": "slow", "delay_millis": 5},
    )
)


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that a person sees at a vendor: where, under which name, what."""

    vendor: str
    target: str
    name: str
    value: object


@dataclass(frozen=True, slots=True)
class Workload:
    """Judgements on `calls` spans, under `names` names each: as many as the product of the two.

    The n-th says n divided by their number, on the call with the number n modulo `calls`: a judgement at another
    target, or in place of another, shows by its value alone. Every tenth name comes with a comment.
    """

    calls: Sequence[of.FeedbackHandle]
    names: int

    @property
    def properties(self) -> tuple[str, ...]:
        """The names."""
        return tuple(f"quality-{number}" for number in range(self.names))

    def judgements(self) -> Iterator[list[of.Feedback]]:
        """Answer all judgements, those under one name together."""
        total = len(self.calls) * self.names
        for at, name in enumerate(self.properties):
            first = at * len(self.calls)
            yield [
                of.Feedback(target=call, name=name, value=number / total, comment=_comment(at, number))
                for number, call in enumerate(self.calls, first)
            ]

    def expected(self) -> Counter[Row]:
        """Answer what all vendors have to show at the end."""
        rows: Counter[Row] = Counter()
        for said in (each for many in self.judgements() for each in many):
            call: Any = said.target
            rows[Row("orq", call.trace_id, said.name, said.value)] += 1
            rows[Row("braintrust", call.span_id, said.name, said.value)] += 1
            rows[Row("weave", call.span_id, said.name, said.value)] += 1
            if said.comment is not None:  # orq carries none
                rows[Row("braintrust", call.span_id, "comment", said.comment)] += 1
                rows[Row("weave", call.span_id, "comment", said.comment)] += 1
        return rows


def _comment(at: int, number: int) -> str | None:
    return None if at % 10 else f"as to {number}"


@dataclass(frozen=True, slots=True)
class Audit:
    """What is wrong at the vendors, each as rows; empty where all is well.

    `repeated` counts by vendor the requests that carried what the vendor had stored already.
    """

    lost: frozenset[Row]
    misplaced: frozenset[Row]
    duplicated: Mapping[Row, int]
    repeated: Mapping[str, int] = field(default_factory=dict)

    def duplicates_at(self, vendors: Iterable[str]) -> dict[Row, int]:
        """Answer what a person sees twice at some vendors, and how often too many."""
        return {row: extra for row, extra in self.duplicated.items() if row.vendor in vendors}


def audit(expected: Counter[Row], effective: Mapping[str, Any], repeated: Mapping[str, int]) -> Audit:
    """Compare what was said with what a person would see."""
    found = Counter(rows_of(effective))
    return Audit(
        lost=frozenset(expected - found),
        misplaced=frozenset(row for row in found if row not in expected),
        duplicated={row: count - 1 for row, count in found.items() if count > 1 and row in expected},
        repeated=repeated,
    )


def rows_of(effective: Mapping[str, Any]) -> Iterator[Row]:
    """Read the rows from the shape that the sandbox and the stand-in share."""
    for item in effective["orq"]:
        yield Row("orq", item["trace_id"], item["property"], item["value"])
    for span_id, row in effective["braintrust"]["rows"].items():
        for name, score in row["scores"].items():
            yield Row("braintrust", span_id, name, score)
        for comment in row["comments"]:
            yield Row("braintrust", span_id, "comment", comment)
    for item in effective["weave"]:
        is_note = item["feedback_type"] == "wandb.note.1"
        name, value = ("comment", "note") if is_note else (item["feedback_type"], "value")
        yield Row(
            "weave", item["weave_ref"].removeprefix("weave:///sandbox/sandbox/call/"), name, item["payload"][value]
        )


def calls(count: int, seed: int = 1) -> list[of.FeedbackHandle]:
    """Make handles of calls that have nothing in common."""
    rng = random.Random(seed)
    return [
        of.FeedbackHandle(
            SpanContext(rng.getrandbits(128) | 1, rng.getrandbits(64) | 1, is_remote=True, trace_flags=TraceFlags(1))
        )
        for _ in range(count)
    ]


def exporters(said: Mapping[str, str], properties: Sequence[str], kinds: Mapping[str, Any] | None = None) -> list[Any]:
    """Make the three exporters from a vendor's environment; `kinds` replaces a class by a vendor's name."""
    kinds = {"orq": of.OrqExporter, "braintrust": of.BraintrustExporter, "weave": of.WeaveExporter, **(kinds or {})}
    options = HTTPOptions(timeout_millis=TIMEOUT_MILLIS)
    return [
        kinds["orq"](said["ORQ_API_KEY"], base_url=said["ORQ_BASE_URL"], properties=properties, options=options),
        kinds["braintrust"](
            said["BRAINTRUST_PARENT"],
            api_key=said["BRAINTRUST_API_KEY"],
            base_url=said["BRAINTRUST_API_URL"],
            hold_millis=0,
            options=options,
        ),
        kinds["weave"](
            f"{said['WANDB_ENTITY']}/{said['WANDB_PROJECT']}",
            api_key=said["WANDB_API_KEY"],
            base_url=said["WF_TRACE_SERVER_URL"],
            options=options,
        ),
    ]


def tell(record_property: Callable[[str, object], None], **figures: object) -> None:
    """Report figures: into the test's report (`pytest -rP`, or its properties in JUnit's XML)."""
    for name, figure in figures.items():
        record_property(name, figure)
    print(json.dumps(figures, default=str))
