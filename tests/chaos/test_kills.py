"""A thousand SIGKILLs: what was acknowledged is in a sound file, and arrives at all three vendors on its own span."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kill_harness import (
    Order,
    Told,
    Zygote,
    can_kill_at_system_calls,  # noqa: F401 (a mark's condition names it)
    killing_at,
    problems,
)

from otel_feedback.sandbox import Sandbox
from otel_feedback.stores import DestinationStats
from vendor_account import HOUR_MILLIS, Account, account, deliver_the_rest, settings_at, unsettled

# As a person's process: it records, and delivers as well, or leaves that to others.
DELIVERIES = ("none", "thread")
# A victim is killed when it was told of fewer than this many judgements, and this much later at most.
MOST_JUDGEMENTS = 10
LONGEST_RUN_SECONDS = 0.02
# How many victims share one file, so that what kills leave adds up.
ROUNDS_A_FILE = 50
SHORT_ROUNDS = 5

needs_strace = pytest.mark.skipif(
    "not can_kill_at_system_calls()", reason="needs strace, and the right to trace: apt install strace"
)


@dataclass(slots=True)
class Report:
    """What a series of kills came to."""

    kills: int = 0
    problems: list[str] = field(default_factory=list)
    told: Told = field(default_factory=Told)
    account: Account = field(default_factory=Account)
    unsettled: dict[str, DestinationStats] = field(default_factory=dict)

    @property
    def wrongs(self) -> tuple[list[str], Account, dict[str, DestinationStats]]:
        """Everything that ought not to be."""
        return self.problems, self.account, self.unsettled


NOTHING_WRONG: tuple[list[str], Account, dict[str, DestinationStats]] = ([], Account(), {})


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """The three vendors."""
    with Sandbox(port=0) as running:
        yield running


def finish(report: Report, sandbox: Sandbox, store: Path, *, rounds: int) -> Report:
    """Deliver what the kills have left, later than every lease, and hold it against what was acknowledged."""
    stats = deliver_the_rest(sandbox, store, ahead_millis=(rounds + 2) * HOUR_MILLIS)
    report.unsettled = unsettled(stats)
    report.account = account(sandbox.state(), report.told.records)
    return report


def kill_at_random(sandbox: Sandbox, directory: Path, *, rounds: int, seed: int, bug: str | None = None) -> Report:
    """Have a recording and a delivering process at work on one file, and kill both, again and again."""
    rng, pause, report = random.Random(seed), threading.Event(), Report()
    store, copy = directory / "feedback.db", directory / "copy.db"
    environment = settings_at(sandbox, store)
    with Zygote(environment) as recorders, Zygote(environment) as deliverers:
        for number in range(rounds):
            recorder = recorders.start(Order(role="record", store=str(store), delivery=rng.choice(DELIVERIES), bug=bug))
            deliverer = deliverers.start(
                Order(role="deliver", store=str(store), ahead_millis=number * HOUR_MILLIS, bug=bug)
            )
            recorder.hear_of(rng.randrange(MOST_JUDGEMENTS))
            pause.wait(rng.random() * LONGEST_RUN_SECONDS)
            victims = [recorder, deliverer]
            rng.shuffle(victims)
            for victim, is_last in zip(victims, (False, True), strict=True):
                victim.kill()
                report.kills += victim.exit_code == -signal.SIGKILL
                report.problems += problems(store, copy, recorder.told, is_idle=is_last)
                pause.wait(rng.random() * LONGEST_RUN_SECONDS * (not is_last))
            report.told.add(recorder.told)
    return finish(report, sandbox, store, rounds=rounds)


@dataclass(frozen=True, slots=True)
class Place:
    """A system call at whose n-th time victims of a role are killed."""

    role: str
    system_call: str
    number: int


def kill_at_system_calls(
    sandbox: Sandbox, directory: Path, places: list[Place], *, each: int, bug: str | None = None
) -> Report:
    """Kill victims as they begin chosen system calls, all of them on one file."""
    report, number = Report(), 0
    store, copy = directory / "feedback.db", directory / "copy.db"
    environment = settings_at(sandbox, store)
    with Zygote(environment) as others:
        for place in places:
            with Zygote(environment, killing_at(place.system_call, place.number)) as zygote:
                for _ in range(each):
                    number += 1
                    # Something to deliver, by somebody who is not killed.
                    feeder = others.start(Order(role="record", store=str(store), delivery="none", rounds=3, bug=bug))
                    feeder.wait()
                    victim = zygote.start(
                        Order(
                            role=place.role,
                            store=str(store),
                            delivery="none" if place.role == "record" else "thread",
                            rounds=10,
                            ahead_millis=number * HOUR_MILLIS,
                            bug=bug,
                        )
                    )
                    report.kills += victim.wait() == -signal.SIGKILL
                    report.told.add(feeder.told)
                    report.told.add(victim.told)
                    fresh = Told(feeder.told.records + victim.told.records, feeder.told.keys | victim.told.keys)
                    report.problems += problems(store, copy, fresh, is_idle=True)
    return finish(report, sandbox, store, rounds=number)


# What a recording process does as it opens the file, at each commit and as it closes, and what a delivering one does.
# SQLite syncs by fdatasync alone: no victim ever calls fsync.
FIRST_PLACES = [
    Place("record", "pwrite64", 3),
    Place("record", "fdatasync", 9),
    Place("record", "ftruncate", 1),
    Place("record", "unlink", 1),
    Place("deliver", "sendto", 6),
]
PLACES = [
    *(Place("record", "pwrite64", number) for number in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)),
    *(Place("record", "fdatasync", number) for number in (1, 2, 3, 4, 5, 8, 13, 21)),
    Place("record", "ftruncate", 1),
    *(Place("record", "unlink", number) for number in (1, 2)),
    *(Place("deliver", "sendto", number) for number in (1, 2, 3, 4, 5, 6, 8, 11)),
    *(Place("deliver", "pwrite64", number) for number in (1, 2, 3, 5, 8, 13)),
    *(Place("deliver", "fdatasync", number) for number in (1, 2, 3)),
    *(Place("deliver", "unlink", number) for number in (1, 2)),
]


def test_a_few_kills_at_random_points_lose_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    """
    What processes were told before they were killed is known, in a sound file, and arrives on its own span.
    """
    report = kill_at_random(sandbox, tmp_path, rounds=SHORT_ROUNDS, seed=1)

    assert NOTHING_WRONG == report.wrongs
    assert 2 * SHORT_ROUNDS == report.kills


@needs_strace
def test_a_few_kills_at_chosen_system_calls_lose_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    """
    Nor does it matter in which write, sync or removal of the file, or in which request, a process dies.
    """
    report = kill_at_system_calls(sandbox, tmp_path, FIRST_PLACES, each=1)

    assert NOTHING_WRONG == report.wrongs
    assert len(FIRST_PLACES) == report.kills


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(12))
def test_six_hundred_kills_at_random_points_lose_nothing(sandbox: Sandbox, tmp_path: Path, seed: int) -> None:
    """
    Of these kills each fifty hit processes that share one file, which nobody repairs but the next victim.
    """
    report = kill_at_random(sandbox, tmp_path, rounds=ROUNDS_A_FILE // 2, seed=seed)

    assert NOTHING_WRONG == report.wrongs
    assert ROUNDS_A_FILE == report.kills


@needs_strace
@pytest.mark.chaos
@pytest.mark.parametrize(("role", "system_call"), dict.fromkeys((place.role, place.system_call) for place in PLACES))
def test_four_hundred_kills_at_chosen_system_calls_lose_nothing(
    sandbox: Sandbox, tmp_path: Path, role: str, system_call: str
) -> None:
    """
    Ten victims die at each of forty places.
    """
    places = [place for place in PLACES if (place.role, place.system_call) == (role, system_call)]

    report = kill_at_system_calls(sandbox, tmp_path, places, each=10)

    assert NOTHING_WRONG == report.wrongs
    assert 10 * len(places) == report.kills


def test_the_harness_finds_what_was_acknowledged_before_it_was_committed(sandbox: Sandbox, tmp_path: Path) -> None:
    """
    Seeded bug: a store that writes behind, 50 ms after its caller was told. Records are unknown, and never arrive.
    """
    report = kill_at_random(sandbox, tmp_path, rounds=2, seed=1, bug="acknowledges before commit")

    assert report.problems != []
    assert report.account.lost != []


def test_the_harness_finds_what_was_settled_before_it_was_sent(sandbox: Sandbox, tmp_path: Path) -> None:
    """
    Seeded bug: exporters that answer with success and send 50 ms later. The store calls delivered what never arrives.
    """
    report = kill_at_random(sandbox, tmp_path, rounds=2, seed=1, bug="settles before it sends")

    assert report.account.lost != []
    assert report.unsettled == {}
