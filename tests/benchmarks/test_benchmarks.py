"""The benchmarks measure what they say: both sides of each row do the same work, and ratios are of what they cost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest
from benchmark_measure import MIN_PAIRS, Measured, Spread, fresh_keys, measure, paired
from benchmark_rows import ROWS, Row
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from run import BEGIN, END, HEAD, README, line_of, nothing_fails, verdict, with_text

import otel_feedback as of

if TYPE_CHECKING:
    from benchmark_world import World
    from opentelemetry.sdk.trace import ReadableSpan

CALLS = 2

# All rows but the one that shows how exact the measure is: there is nothing to compare in it.
COMPARED = [row for row in ROWS if row.ours is not row.plain]


def name_of(row: Row) -> str:
    """What a row is told from the others by."""
    return f"{row.name} beside {row.beside}"


each_row = pytest.mark.parametrize("row", COMPARED, ids=name_of)


@pytest.fixture
def seen() -> InMemorySpanExporter:
    """The spans of our side."""
    return InMemorySpanExporter()


@pytest.fixture
def plain() -> InMemorySpanExporter:
    """The spans of the plain side."""
    return InMemorySpanExporter()


@pytest.fixture
def world(row: Row, seen: InMemorySpanExporter, plain: InMemorySpanExporter) -> Iterator[World]:
    """The row's world, with both pipelines watched."""
    with row.opens(SimpleSpanProcessor(seen), SimpleSpanProcessor(plain)) as world:
        yield world


def told(exporter: InMemorySpanExporter) -> list[tuple[object, ...]]:
    """What the spans say, ids and times apart."""
    return [
        (span.name, span.kind, span.parent, span.status.status_code, span.events, dict(span.attributes or {}))
        for span in exporter.get_finished_spans()
    ]


def span_ids(spans: Sequence[ReadableSpan]) -> list[str]:
    """The ids of spans, as handles show them."""
    return [format(span.context.span_id, "016x") for span in spans]


class TestRows:
    @each_row
    def test_both_sides_leave_the_same_spans_and_answer_the_same(self, row, world, seen, plain):
        """
        Ours and the plain side open as many spans as the row says, of the same names and attributes.
        """
        keys = fresh_keys(CALLS)
        answers = [asyncio.run(make(world)(keys)) for make in (row.ours, row.plain)]

        assert [keys[-1], keys[-1]] == answers
        assert row.spans * CALLS == len(told(plain))
        assert told(plain) == told(seen)

    @pytest.mark.parametrize("row", [row for row in COMPARED if row.key_kind], ids=name_of)
    def test_every_key_of_ours_finds_its_span(self, row, world, seen):
        """
        What is measured includes the join: each key means the span of its own call.
        """
        keys = fresh_keys(CALLS)
        asyncio.run(row.ours(world)(keys))

        found = [world.feedback.handle_for_key(key, key_kind=row.key_kind).span_id for key in keys]
        assert span_ids(seen.get_finished_spans()) == found

    @pytest.mark.parametrize("row", [row for row in COMPARED if not row.key_kind], ids=name_of)
    def test_a_row_without_a_kind_of_key_binds_none(self, row, world):
        """
        No row pays for what it does not show.
        """
        keys = fresh_keys(CALLS)
        asyncio.run(row.ours(world)(keys))

        assert [True] * CALLS == [is_unknown(world, key) for key in keys]

    @pytest.mark.parametrize("row", COMPARED[:1], ids=name_of)
    def test_a_row_is_measured(self, row, world):
        """
        A row comes to ratios by every clock, however little time it is given.
        """
        found = asyncio.run(measure(row.ours(world), row.plain(world), settle=world.settle, seconds=0.0))

        assert all(0 < each.low <= each.median <= each.high for each in (found.wall, found.caller, found.process))


def is_unknown(world: World, key: str) -> bool:
    """Tell whether a key names nothing; where all is switched off, every key does."""
    try:
        return not world.feedback.handle_for_key(key).is_valid
    except of.UnknownTargetError:
        return True


class Machine:
    """A machine whose time is what the sides say that they take, and on which the sides are seen to run."""

    def __init__(self) -> None:
        self.now = 0
        self.runs: list[str] = []

    def side(self, name: str, nanos: int):
        """A side of so many nanoseconds a call."""

        async def calls(keys: Sequence[str]) -> None:
            self.runs.append(name)
            self.now += nanos * len(keys)

        return calls

    def clock(self) -> int:
        """What time it is."""
        return self.now


class TestPaired:
    def test_a_ratio_is_ours_by_the_plain_one(self):
        """
        A side that takes three times as long has the ratio of three, whatever the machine.
        """
        machine = Machine()
        pairs = asyncio.run(
            paired(machine.side("o", 30), machine.side("p", 10), [machine.clock], calls=7, until=lambda: True)
        )

        assert ([Spread(3.0, 3.0, 3.0)], 10.0) == (pairs.ratios, pairs.plain_nanos)

    def test_the_sides_take_turns_and_the_order_alternates(self):
        """
        Neither side is always the first.
        """
        machine = Machine()
        asyncio.run(paired(machine.side("o", 1), machine.side("p", 1), [machine.clock], calls=1, until=lambda: True))

        assert list("poop" * (MIN_PAIRS // 2)) == machine.runs

    def test_a_pair_that_was_disturbed_moves_the_median_nowhere(self):
        """
        One round that took a thousand times as long does not show in the median.
        """
        machine, lengths = Machine(), iter([20, 20_000, *[20] * 100])

        async def ours(keys: Sequence[str]) -> None:
            machine.now += next(lengths)

        pairs = asyncio.run(paired(ours, machine.side("p", 10), [machine.clock], calls=1, until=lambda: True))

        assert 2.0 == pairs.ratios[0].median

    def test_keys_are_never_given_twice(self):
        """
        Every round has keys of its own, as every message has.
        """
        assert 6 == len({*fresh_keys(3), *fresh_keys(3)})


def measured(wall: float, caller: float) -> Measured:
    """A result."""
    return Measured(12.345, Spread(0.9, wall, 1.1), Spread(0.9, caller, 1.1), Spread(1, 1.5, 2))


class TestTable:
    def test_a_line_shows_the_median_and_the_quartiles(self):
        """
        All there is to a row stands in one line, as many cells as the head has.
        """
        row = Row("path", "other", ROWS[0].ours, ROWS[0].plain, 1.05)

        expected = (
            "| path | other | 12.35 µs | 1.00 (0.90–1.10) | 1.05 (0.90–1.10) | 1.50 (1.00–2.00) | ≤ 1.05 | reached |"
        )
        assert expected == line_of(row, measured(1.0, 1.05))
        assert HEAD[0].count("|") == expected.count("|")

    @pytest.mark.parametrize(
        ("wall", "caller", "said"),
        [(1.0, 1.0, "reached"), (1.004, 1.0, "reached"), (1.0, 1.02, "**not yet**"), (1.02, 1.0, "**not yet**")],
    )
    def test_a_row_is_reached_when_both_of_the_callers_ratios_are(self, wall, caller, said):
        """
        Neither the clock on the wall nor the caller's own thread may show more.
        """
        assert said == verdict(1.0, measured(wall, caller))

    def test_a_row_without_a_ratio_to_reach_is_not_judged(self):
        """
        It is there to be looked at.
        """
        assert "" == verdict(None, measured(9.0, 9.0))

    def test_the_text_takes_the_place_of_the_one_before(self):
        """
        What stands around the marks stays.
        """
        once = with_text(f"above\n{BEGIN}\n{END}\nbelow\n", "first")

        assert f"above\n{BEGIN}\nsecond\n{END}\nbelow\n" == with_text(once, "second")

    def test_the_readme_has_the_marks(self):
        """
        The command finds the place for its table.
        """
        assert "new" in with_text(README.read_text("utf-8"), "new")

    @pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR], ids=logging.getLevelName)
    def test_what_failed_is_no_result(self, level):
        """
        Where capture fails it costs next to nothing, so a row in which the library logs an error ends the run.
        """
        ended = None
        try:
            with nothing_fails("the row"):
                logging.getLogger("otel_feedback.provider").log(level, "capture failed (%d so far)", 1)
        except RuntimeError as error:
            ended = str(error)

        expected = "the row was not measured, it failed: capture failed (1 so far)"
        assert (expected if level == logging.ERROR else None) == ended

    @pytest.mark.parametrize("readme", ["", BEGIN, END, f"{END}{BEGIN}"])
    def test_a_readme_without_its_marks_is_refused(self, readme):
        """
        Nothing is written anywhere else.
        """
        with pytest.raises(ValueError, match="lacks its marks"):
            with_text(readme, "new")
