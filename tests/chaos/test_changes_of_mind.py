"""Many people judge one answer under one name and change their minds again and again, while vendors fail.

What each vendor promises for the end:

| vendor | what stands |
| --- | --- |
| orq | the last of each person: one row each, by id |
| Weave | the last of each person: one row each, by id, with the person as its creator |
| Braintrust | one score for all: the last that was accepted, whoever said it |

(`per_rater="child"`, with which Braintrust keeps the last of each person, is not there yet and not tested here.)

Each value says who said it and as the how-manieth, so that whatever stands can be traced to its moment. The short form
asks the sandbox, the long one the stand-in of `fast_vendors.py`.

Seeded bug: a person's judgements with new ids each, which replace nothing, are found.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fast_vendors import FastVendors
from fault_world import FAULTS, QUICK, VENDORS, Row, calls, exporters, rows_of, tell

import otel_feedback as of
from otel_feedback.sandbox import Sandbox, Switches
from otel_feedback.stores.sqlite import SQLiteStore

NAME = "quality"
FLUSH_MILLIS = 30_000
LONG_FLUSH_MILLIS = 600_000
# How long a round of changes gives delivery before the next one comes.
BREATH_MILLIS = 20


@dataclass(slots=True)
class Crowd:
    """People who judge one answer.

    Args:
        people: how many.

        changes: how often each says something.
    """

    people: int
    changes: int
    rng: random.Random = field(default_factory=lambda: random.Random(50))
    handle: of.FeedbackHandle = field(default_factory=lambda: calls(1, seed=3)[0])

    def rounds(self) -> Iterator[list[of.Feedback]]:
        """Answer everybody's next word, in an order of chance each time."""
        for change in range(self.changes):
            everybody = list(range(self.people))
            self.rng.shuffle(everybody)
            yield [self.says(person, change) for person in everybody]

    def says(self, person: int, change: int) -> of.Feedback:
        """Answer one person's n-th word."""
        value = (person * self.changes + change) / (self.people * self.changes)
        return of.Feedback(target=self.handle, name=NAME, value=value, user_id=f"person-{person}")

    def promised(self, vendor: str, last: of.Feedback) -> set[Row]:
        """Answer what stands at a vendor at the end, where `last` was accepted last."""
        if vendor == "braintrust":
            return {Row(vendor, self.handle.span_id, NAME, last.value)}
        target = self.handle.trace_id if vendor == "orq" else self.handle.span_id
        return {Row(vendor, target, NAME, self.says(person, self.changes - 1).value) for person in range(self.people)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    """The file that is between the people and the vendors."""
    with_file = SQLiteStore(tmp_path / "feedback.db", durability="process")
    yield with_file
    with_file.close()


def settle(
    vendors: Any, vendor: str, crowd: Crowd, store: SQLiteStore, *, flush_millis: int, said: Callable[[Any], Any] = iter
) -> tuple[of.Feedback, dict[str, object]]:
    """Let everybody judge while one vendor gets it; answer the word that was accepted last, and figures."""
    chosen = [each for each in exporters(vendors.environment(), [NAME]) if each.name == vendor]
    began, last = time.monotonic(), None
    with of.FeedbackProvider(exporters=chosen, store=store, retry=QUICK) as feedback:
        for everybody in crowd.rounds():
            feedback.record_many(said(everybody))
            last = everybody[-1]
            feedback.force_flush(BREATH_MILLIS)
        recorded = time.monotonic()
        is_flushed = feedback.force_flush(flush_millis)
        stats = feedback.stats()[vendor]
    figures = {
        "vendor": vendor,
        "recorded_after_seconds": round(recorded - began, 1),
        "settled_after_seconds": round(time.monotonic() - recorded, 1),
        "delivered": stats.delivered,
        "superseded": stats.superseded,
        "pending": stats.pending,
    }
    assert last is not None
    assert stats.is_conserved, figures
    assert is_flushed, figures
    assert (stats.recorded, stats.pending, stats.dead) == (crowd.people * crowd.changes, 0, 0)
    return last, figures


# Braintrust's case fails at times on code that leases by judgement, not by call: two people's words on one row are then
# retried in any order. orq's fails (it does not settle in time) on code that removes each earlier revision anew on
# every try: of twenty requests, each failing in three cases of ten, all would have to succeed in a row.
@pytest.mark.parametrize("vendor", VENDORS)
def test_ten_people_who_change_their_minds_end_as_each_vendor_promises(
    vendor: str, store: SQLiteStore, rng: random.Random, record_property: Callable[[str, object], None]
):
    """
    After twenty words from each of ten people, a third of all requests failing, what stands is what was promised.
    """
    crowd = Crowd(10, 20)
    with Sandbox(switches=Switches(orq_properties=(NAME,)), rng=rng) as sandbox:
        for fault in FAULTS:
            sandbox.inject(fault)
        last, figures = settle(sandbox, vendor, crowd, store, flush_millis=FLUSH_MILLIS)
        state = sandbox.state()

    tell(record_property, requests=state["requests"], **figures)
    assert crowd.promised(vendor, last) == set(rows_of(state["effective"]))
    assert figures["superseded"] > 0


# Fails where the short form does. Of orq, it alone fails for certain on code whose tries forget what those before them
# have removed: as each failure adds a revision that may be there, in the end no try gets through all removals.
@pytest.mark.chaos
@pytest.mark.parametrize("vendor", VENDORS)
def test_fifty_people_who_change_their_minds_a_thousand_times_end_as_each_vendor_promises(
    vendor: str, store: SQLiteStore, record_property: Callable[[str, object], None]
):
    """
    After a thousand words from each of fifty people, a third of all requests failing, what stands is what was promised.
    """
    crowd = Crowd(50, 1_000)
    with FastVendors(seed=5) as vendors:
        last, figures = settle(vendors, vendor, crowd, store, flush_millis=LONG_FLUSH_MILLIS)
        report = vendors.report()

    tell(record_property, requests=report["requests"], repeats=report["repeats"], **figures)
    assert crowd.promised(vendor, last) == set(rows_of(report["effective"]))


@pytest.mark.parametrize("vendor", ["orq", "weave"])
def test_words_that_replace_nothing_would_be_found(vendor: str, store: SQLiteStore):
    """
    Where each word of a person has an id of its own, earlier ones stand beside the last.
    """
    crowd = Crowd(3, 5)
    with FastVendors(seed=5) as vendors:
        last, _ = settle(vendors, vendor, crowd, store, flush_millis=FLUSH_MILLIS, said=as_strangers)
        report = vendors.report()

    assert crowd.promised(vendor, last) < set(rows_of(report["effective"]))


def as_strangers(everybody: Sequence[of.Feedback]) -> list[of.Feedback]:
    """Let nobody be known: then every word is a judgement of its own."""
    return [of.Feedback(target=each.target, name=each.name, value=each.value) for each in everybody]
