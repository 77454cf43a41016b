"""What `status` does: tell the account of each destination, and what needs a person."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from otel_feedback._time import NANOS_PER_SECOND
from otel_feedback.cli._pipeline import pipeline, told_to_end, why_empty
from otel_feedback.provider import FeedbackProvider
from otel_feedback.stores import PARKED, UNROUTED, DestinationStats

WATCH_SECONDS = 2.0
# The largest unit that fits says how old something is.
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
# The terms of an account; the first four are told also where they are nothing.
TERMS = ("recorded", "delivered", "pending", "dead", "superseded", "retracted", "skipped")
ALWAYS = TERMS[:4]

console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What needs a person: at which destination, and in which words."""

    destination: str
    why: str


@dataclass(frozen=True, slots=True)
class Status:
    """How things stand at one moment; `ages_seconds` says how long the oldest has waited, where something waits."""

    where: str
    stats: Mapping[str, DestinationStats]
    ages_seconds: Mapping[str, float]
    troubles: Sequence[Trouble]
    if_empty: str


def run_status(*, as_json: bool, watch: bool, max_age_seconds: float) -> bool:
    """Tell how things stand, with `watch` until Ctrl-C or SIGTERM; say whether nothing needs a person."""
    with pipeline() as provider:
        status = _look(provider, max_age_seconds)
        if watch:
            status = _watch(lambda: _look(provider, max_age_seconds), as_json=as_json)
        elif as_json:
            print(_written(status))  # noqa: T201 (a command's answer)
        else:
            console.print(_drawn(status))
    return not status.troubles


def troubles(
    stats: Mapping[str, DestinationStats],
    ages_seconds: Mapping[str, float],
    *,
    max_age_seconds: float,
    exporters: Collection[str] = (),
) -> Sequence[Trouble]:
    """Say what needs a person.

    Args:
        stats: the accounts.

        ages_seconds: how long the oldest has waited, by destination.

        max_age_seconds: what waits longer is trouble.

        exporters: who is configured here; where nobody is, nobody is missed.
    """
    return [
        Trouble(name, why)
        for name, each in stats.items()
        for is_so, why in _questions(name, each, ages_seconds.get(name, 0.0), max_age_seconds, exporters)
        if is_so
    ]


def _questions(
    name: str, stats: DestinationStats, age_seconds: float, max_age_seconds: float, exporters: Collection[str]
) -> Sequence[tuple[object, str]]:
    """Ask everything that may be wrong at one destination: whether it is so, and what is to be said then."""
    waits_long = age_seconds > max_age_seconds and not stats.paused
    oldest = f"the oldest has waited for {in_words(age_seconds)}"
    if name == UNROUTED:
        return [(stats.pending, "feedback waits for an exporter: set OTEL_FEEDBACK_EXPORTERS where it is delivered.")]
    if name == PARKED:
        return [(waits_long, f"{oldest}: does the app capture calls under these keys, with this store?")]
    is_orphaned = stats.pending and exporters and name not in exporters
    return [
        (stats.paused, f"is paused: {stats.paused}. Nothing is lost; when the cause is mended it goes on."),
        (stats.dead, f"refused {stats.dead} for good; they are kept, and the log of the worker says why."),
        (is_orphaned, "feedback waits, and no exporter has that name in this environment."),
        (waits_long, f"{oldest}: does a process deliver (otel-feedback worker), and do the spans arrive there?"),
    ]


def in_words(seconds: float) -> str:
    """Write a time as people say it, in its largest unit."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), UNITS[-1])
    return f"{int(seconds // size)} {unit}"


def _look(provider: FeedbackProvider, max_age_seconds: float) -> Status:
    """See how things stand now."""
    stats, now = provider.stats(), provider.clock.time_unix_nano()
    ages = {
        name: max(0, now - each.oldest_unix_nano) / NANOS_PER_SECOND
        for name, each in stats.items()
        if each.oldest_unix_nano is not None
    }
    found = troubles(stats, ages, max_age_seconds=max_age_seconds, exporters=provider.exporters)
    return Status(provider.settings.store_url, stats, ages, found, why_empty(provider))


def _watch(look: Callable[[], Status], *, as_json: bool) -> Status:
    """Print how things stand again and again: a picture that changes, or a line of JSON each time; answer the last."""
    told = told_to_end()
    with contextlib.nullcontext() if as_json else Live(console=console, auto_refresh=False) as live:
        while True:
            status = look()
            if live is None:
                print(_written(status), flush=True)  # noqa: T201 (a command's answer)
            else:
                live.update(_drawn(status), refresh=True)
            if told.wait(WATCH_SECONDS):
                return status


def _written(status: Status) -> str:
    """Write how things stand for programs."""
    destinations: Mapping[str, Any] = {
        name: {**asdict(each), "skipped": dict(each.skipped), "oldest_age_seconds": status.ages_seconds.get(name)}
        for name, each in status.stats.items()
    }
    needs = [asdict(each) for each in status.troubles]
    return json.dumps({"store": status.where, "destinations": destinations, "needs_a_person": needs})


def _drawn(status: Status) -> RenderableType:
    """Draw how things stand for people: a table that adds up, and what is to be done."""
    if not status.stats:
        return Text(status.if_empty)
    terms = [term for term in TERMS if term in ALWAYS or any(_count(each, term) for each in status.stats.values())]
    table = Table(title=f"Feedback in {status.where}", title_justify="left")
    table.add_column("destination", overflow="fold")
    for heading in (*terms, "oldest"):
        table.add_column(heading, justify="right", overflow="fold")
    troubled = {each.destination for each in status.troubles}
    for name, each in status.stats.items():
        age = in_words(status.ages_seconds[name]) if name in status.ages_seconds else "–"
        counts = [str(_count(each, term)) for term in terms]
        table.add_row(name, *counts, age, style="red" if name in troubled else None)
    reasons = [
        Text(f"{name}: {count} skipped, as {reason}", style="dim")
        for name, each in status.stats.items()
        for reason, count in each.skipped.items()
    ]
    told = [Text.assemble(("! ", "bold red"), (each.destination, "bold"), " ", each.why) for each in status.troubles]
    return Group(table, *reasons, *(told or [Text("Nothing needs a person.", style="green")]))


def _count(stats: DestinationStats, term: str) -> int:
    """Count one term of an account."""
    return sum(stats.skipped.values()) if term == "skipped" else getattr(stats, term)
