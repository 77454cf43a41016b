"""Vendors that fail a third of all requests, in every way there is: nothing is lost, nothing lands elsewhere.

The short form asks the sandbox, which judges each join by its vendor's rules; the long one a stand-in that is quick
enough for 10⁵ judgements (`fast_vendors.py`). Both go through a whole `FeedbackProvider`, a SQLite file and HTTP.

The audit reads what a person would see at the vendors and compares it with what was said; each value names its target,
so that whatever is mixed up shows. That it finds what it is there for is shown by exporters with a seeded bug: ids
that are new on every try, a neighbour's target, a failure that is taken for a success.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fast_vendors import FastVendors
from fault_world import DEDUPLICATING, FAULTS, QUICK, VENDORS, Audit, Workload, audit, calls, exporters, tell
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import otel_feedback as of
from otel_feedback._record import Part
from otel_feedback.exporters import Result, Success
from otel_feedback.exporters._http import Exchange
from otel_feedback.sandbox import Sandbox, Switches
from otel_feedback.stores.sqlite import SQLiteStore

FLUSH_MILLIS = 60_000
# So few judgements at once that there are many requests, and every fault meets each vendor.
FEW = 4
LONG_FLUSH_MILLIS = 3_000_000

# What the vendors leave open, as far as a repeated id goes.
ANSWERS = {"mild": Switches(), "harsh": Switches(orq_repeated_id="conflict", weave_purge_unknown="refuse")}


class NewIdsAtOrq(of.OrqExporter):
    """A seeded bug: every try has an id of its own."""

    ids = itertools.count()

    def exchange(self, parts: Sequence[Part]) -> Exchange[Sequence[Result]]:
        return super().exchange([replace(part, body={**part.body, "id": f"{next(self.ids):026}"}) for part in parts])


class NewIdsAtWeave(of.WeaveExporter):
    """The same at Weave."""

    def exchange(self, parts: Sequence[Part]) -> Exchange[Sequence[Result]]:
        return super().exchange([replace(part, body={**part.body, "id": str(uuid.uuid4())}) for part in parts])


class NeighboursTarget(of.OrqExporter):
    """A seeded bug: the last part of each batch goes where the first belongs."""

    def exchange(self, parts: Sequence[Part]) -> Exchange[Sequence[Result]]:
        *others, last = parts
        wrong = {**last.body, "trace_id": parts[0].body["trace_id"]}
        return super().exchange([*others, replace(last, body=wrong)])


class NeverFails(of.WeaveExporter):
    """A seeded bug: whatever happens counts as delivered."""

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        return [Success() for _ in super().export(parts)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    """The file that is between the application and the vendors."""
    with_file = SQLiteStore(tmp_path / "feedback.db", durability="process")
    yield with_file
    with_file.close()


def deliver(
    vendors: Any,
    workload: Workload,
    store: SQLiteStore,
    *,
    flush_millis: int = FLUSH_MILLIS,
    batch_size: int = FEW,
    only: Sequence[str] = VENDORS,
    **kinds: Any,
) -> dict[str, of.stores.DestinationStats]:
    """Record a workload and deliver all of it; answer the accounts."""
    chosen = [each for each in exporters(vendors.environment(), workload.properties, kinds) if each.name in only]
    settings = of.Settings(max_export_batch_size=batch_size)
    with of.FeedbackProvider(exporters=chosen, store=store, retry=QUICK, settings=settings) as feedback:
        for judgements in workload.judgements():
            feedback.record_many(judgements)
        assert feedback.force_flush(flush_millis)
        return dict(feedback.stats())


def is_settled(stats: Any, count: int) -> bool:
    """Tell whether every judgement was delivered, and nothing is counted twice or not at all."""
    return stats.is_conserved and (stats.recorded, stats.delivered, stats.pending) == (count, count, 0)


def sandbox_calls(sandbox: Sandbox, count: int) -> list[of.FeedbackHandle]:
    """Make calls whose spans are at every vendor."""
    provider = TracerProvider()
    for endpoint in sandbox.otlp_endpoints():
        exporter = OTLPSpanExporter(endpoint=endpoint.url, headers=dict(endpoint.headers))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    handles = []
    for _ in range(count):
        with provider.get_tracer("app").start_as_current_span("answer") as span:
            handles.append(of.FeedbackHandle.from_span(span))
    provider.shutdown()
    return handles


@pytest.mark.parametrize("switches", ANSWERS.values(), ids=ANSWERS.keys())
def test_vendors_that_fail_a_third_of_all_requests_get_every_judgement_on_its_span(
    store: SQLiteStore, rng: Any, switches: Switches, record_property: Callable[[str, object], None]
):
    """
    Of 300 judgements on 30 spans each vendor shows every one, on its span and, where ids are known, once.
    """
    names = Workload((), names=10)
    with Sandbox(switches=replace(switches, orq_properties=names.properties), rng=rng) as sandbox:
        workload = replace(names, calls=sandbox_calls(sandbox, 30))
        for fault in FAULTS:
            sandbox.inject(fault)
        stats = deliver(sandbox, workload, store)
        state = sandbox.state()

    repeated: Counter[str] = Counter()
    for entry in state["feedback"]:
        repeated[entry["vendor"]] += entry["times"] - 1
    faults = Counter(request.fault for request in sandbox.requests if request.fault)
    seen = audit(workload.expected(), state["effective"], repeated)
    tell(record_property, requests=state["requests"], faults=faults, repeated=repeated, comments_twice=comments(seen))
    assert (frozenset(), frozenset(), {}) == (seen.lost, seen.misplaced, seen.duplicates_at(DEDUPLICATING))
    assert {True} == {entry["joined"] for entry in state["feedback"]}
    assert dict.fromkeys(VENDORS, True) == {name: is_settled(each, 300) for name, each in stats.items()}
    assert {"reset", "reset_after", "status", "truncated", "slow"} == set(faults)
    # At orq, in the harsh answer, a repeated id is refused and so never applied twice.
    assert repeated["weave"] > 0


@pytest.mark.chaos
def test_a_hundred_thousand_judgements_arrive_where_they_belong(
    store: SQLiteStore, record_property: Callable[[str, object], None]
):
    """
    Of 10⁵ judgements on 1,000 spans each vendor shows every one, on its span and, where ids are known, once.
    """
    workload = Workload(calls(1_000), names=100)
    began = time.monotonic()
    with FastVendors(seed=4) as vendors:
        stats = deliver(vendors, workload, store, flush_millis=LONG_FLUSH_MILLIS, batch_size=100)
        took = time.monotonic() - began
        report = vendors.report()

    seen = audit(workload.expected(), report["effective"], report["repeats"])
    tell(record_property, seconds=round(took), comments_twice=comments(seen), **_figures(report))
    assert (frozenset(), frozenset(), {}) == (seen.lost, seen.misplaced, seen.duplicates_at(DEDUPLICATING))
    assert dict.fromkeys(VENDORS, True) == {name: is_settled(each, 100_000) for name, each in stats.items()}
    assert all(seen.repeated[vendor] > 0 for vendor in VENDORS)


def test_the_stand_in_agrees_with_the_sandbox(store: SQLiteStore):
    """
    The short form against the stand-in comes to the same, so that the long form may trust it.
    """
    workload = Workload(calls(30), names=10)
    with FastVendors(seed=2) as vendors:
        stats = deliver(vendors, workload, store)
        report = vendors.report()

    seen = audit(workload.expected(), report["effective"], report["repeats"])
    assert (frozenset(), frozenset(), {}) == (seen.lost, seen.misplaced, seen.duplicates_at(DEDUPLICATING))
    assert dict.fromkeys(VENDORS, True) == {name: is_settled(each, 300) for name, each in stats.items()}
    assert all(seen.repeated[vendor] > 0 for vendor in DEDUPLICATING)


@pytest.mark.parametrize(
    ("kinds", "finds"),
    [
        ({"orq": NewIdsAtOrq}, lambda seen: seen.duplicates_at(["orq"])),
        ({"weave": NewIdsAtWeave}, lambda seen: seen.duplicates_at(["weave"])),
        ({"orq": NeighboursTarget}, lambda seen: seen.misplaced),
        ({"weave": NeverFails}, lambda seen: seen.lost),
    ],
    ids=["new-ids-at-orq", "new-ids-at-weave", "a-neighbours-target", "failures-taken-for-success"],
)
def test_the_audit_finds_a_seeded_bug(store: SQLiteStore, kinds: dict[str, type], finds: Callable[[Audit], Any]):
    """
    Ids that are new on each try are seen as duplicates, a wrong target as misplaced, a swallowed failure as a loss.
    """
    workload = Workload(calls(30), names=10)
    with FastVendors(seed=2) as vendors:
        deliver(vendors, workload, store, **kinds)
        seen = audit(workload.expected(), vendors.report()["effective"], {})

    assert finds(seen)


def test_comments_that_may_be_sent_once_only_stand_once(store: SQLiteStore):
    """
    With `at_most_once` no comment stands at Braintrust twice; one that may not have arrived is dead, and counted.
    """
    # Few rows, so that there are many requests: no row comes twice in one.
    workload = Workload(calls(10), names=100)
    with FastVendors(seed=2) as vendors:
        at_most_once = partial(of.BraintrustExporter, comments="at_most_once")
        stats = deliver(vendors, workload, store, only=["braintrust"], braintrust=at_most_once)
        report = vendors.report()

    expected = Counter(row for row in workload.expected().elements() if row.vendor == "braintrust")
    seen = audit(expected, report["effective"], {})
    assert {} == seen.duplicated
    assert {"comment"} >= {row.name for row in seen.lost}
    assert stats["braintrust"].dead > 0
    assert stats["braintrust"].dead >= len(seen.lost)
    assert stats["braintrust"].is_conserved


def comments(seen: Audit) -> int:
    """Count the comments that stand at Braintrust more than once: it has no ids for them (VENDORS, repeat)."""
    return sum(seen.duplicates_at(["braintrust"]).values())


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("requests", "faults", "repeats")}
