"""Power cuts: what a store acknowledged is there when the power comes back.

A run records judgements, keys, leases and settlements, and notes where in the log of the disk each of them was
acknowledged. Then the power fails at many places of that log, and the store that is opened on what is left must be the
one of the last acknowledged step, or of the step that was going on: nothing lost, nothing halved, nothing settled that
waits again, nothing that waits settled. `MemoryStore` does the same steps and says what that is.

That the harness can fail is shown by the tests at the end: with `durability="process"` it finds acknowledged steps lost
(and never a damaged file), with `synchronous` off or on a disk that lies about its syncs damaged files, and with a
store that acknowledges before it commits, losses again; as it did with a store that had failed to switch to WAL.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from power_cut_vfs import (
    ApswConnection,
    Event,
    PowerCutVFS,
    UnsyncedConnection,
    image_after_cut,
)
from store_steps import World, held_by, steps_of

from otel_feedback import FeedbackRecord, MemoryStore, SQLiteStore, StoreError
from otel_feedback.stores import Entry, Parked
from otel_feedback.testing import FakeClock

STEPS = 90
CUTS_IN_SHORT = 40
RUNS_IN_LONG, CUTS_IN_LONG = 20, 50
Verdict = Literal["kept", "lost", "damaged"]


@dataclass(frozen=True, slots=True)
class Run:
    """The log of a disk, where each step was acknowledged in it, and what the store held before and after each."""

    log: Sequence[Event]
    acknowledged: Sequence[int]
    held: Sequence[Mapping[str, Any]]

    def last_at(self, cut: int) -> int:
        """Say which step was the last that was acknowledged before a cut."""
        return sum(position <= cut for position in self.acknowledged)


def a_run(
    path: Path,
    vfs: PowerCutVFS,
    *,
    seed: int,
    durability: Any = "disk",
    wrap: Callable[[SQLiteStore], Any] = lambda store: store,
) -> Run:
    """Do the steps of one seed on a new disk."""
    clocks = FakeClock(), FakeClock()
    disk = World(wrap(SQLiteStore(path, durability=durability, clock=clocks[0], connect=vfs.connect)), clocks[0])
    memory = World(MemoryStore(clock=clocks[1]), clocks[1])
    acknowledged, held = [], [held_by(memory.store)]
    for step in steps_of(Random(seed), STEPS):
        step(disk)
        step(memory)
        acknowledged.append(len(vfs.log))
        held.append(held_by(memory.store))
    run = Run(tuple(vfs.log), acknowledged, held)
    assert held[-1] == held_by(disk.store)  # both did the same: what memory holds is what the disk must
    disk.store.close()
    return run


# --- what is left of it ------------------------------------------------------------------------------------------


def write_image(directory: Path, image: Mapping[str, bytes]) -> Path:
    directory.mkdir()
    for name, data in image.items():
        (directory / name).write_bytes(data)
    return directory / "feedback.db"


def is_sound(path: Path) -> bool:
    """Let SQLite itself look at an image, before any store does."""
    try:
        connection = sqlite3.connect(path)
        try:
            connection.execute("PRAGMA synchronous = OFF")  # the image is thrown away
            return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        finally:
            connection.close()
    except sqlite3.DatabaseError:
        return False


def held_after(path: Path) -> Mapping[str, Any] | None:
    """Open a fresh store on an image; answer what it holds, or nothing where it cannot."""
    store = SQLiteStore(path, clock=FakeClock())
    try:
        store.open()
        return held_by(store)
    except StoreError:
        return None
    finally:
        store.close()


def verdict_on(run: Run, cut: int, image: Mapping[str, bytes], directory: Path) -> Verdict:
    """Say what a cut has done to the store."""
    try:
        if not is_sound(write_image(directory / "seen by SQLite", image)):
            return "damaged"
        held = held_after(write_image(directory / "seen by the store", image))
    finally:
        shutil.rmtree(directory)  # there may be a thousand of them
    last = run.last_at(cut)
    if held in run.held[last : last + 2]:
        return "kept"
    return "lost" if held in run.held[:last] else "damaged"


def cuts_of(run: Run, rng: Random, number: int) -> Iterator[int]:
    """Choose places to cut: a quarter while the store is made and for the first time used, the others anywhere."""
    for each in range(number):
        yield rng.randrange(1 + (run.acknowledged[3] if each % 4 == 0 else len(run.log)))


Cut = Callable[..., list[tuple[int, int, Verdict]]]


@pytest.fixture
def cut(tmp_path: Path) -> Iterator[Cut]:
    """Make a run, cut it many times, and answer seed, place and verdict of each cut."""
    numbers = count()
    made: list[PowerCutVFS] = []

    def cut(
        *,
        seed: int,
        cuts: int,
        connection: type[ApswConnection] = ApswConnection,
        keeps_syncs: bool = True,
        **how: Any,
    ) -> list[tuple[int, int, Verdict]]:
        vfs = PowerCutVFS(connection=connection, keeps_syncs=keeps_syncs)
        made.append(vfs)
        run = a_run(tmp_path / f"run {next(numbers)}" / "feedback.db", vfs, seed=seed, **how)
        rng = Random(seed)
        verdicts = []
        for place in cuts_of(run, rng, cuts):
            directory = tmp_path / f"cut {next(numbers)}"
            directory.mkdir()
            image = image_after_cut(run.log[:place], rng)
            verdicts.append((seed, place, verdict_on(run, place, image, directory)))
        return verdicts

    yield cut
    for vfs in made:
        vfs.unregister()


def count_of(verdicts: Sequence[tuple[int, int, Verdict]]) -> Counter[Verdict]:
    return Counter(verdict for _, _, verdict in verdicts)


# --- nothing is lost ---------------------------------------------------------------------------------------------


def test_a_power_cut_loses_nothing_that_was_acknowledged(cut: Cut) -> None:
    """
    After each of forty cuts the store is that of the last acknowledged step, or of the one that was going on.
    """
    verdicts = cut(seed=1, cuts=CUTS_IN_SHORT)

    assert [] == [each for each in verdicts if each[-1] != "kept"]
    assert CUTS_IN_SHORT == len(verdicts)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(RUNS_IN_LONG))
def test_a_thousand_power_cuts_lose_nothing_that_was_acknowledged(cut: Cut, seed: int) -> None:
    """
    The same for fifty cuts of each of twenty runs.
    """
    verdicts = cut(seed=seed, cuts=CUTS_IN_LONG)

    assert [] == [each for each in verdicts if each[-1] != "kept"]


def cut_again(image: Mapping[str, bytes], directory: Path, rng: Random) -> dict[str, bytes]:
    """Open a store on an image, and cut the power somewhere while it is opened, read and closed."""
    vfs = PowerCutVFS(image=image)
    beginning = len(vfs.log)
    store = SQLiteStore(write_image(directory / "cut again", image), clock=FakeClock(), connect=vfs.connect)
    store.open()
    held_by(store)
    store.close()
    vfs.unregister()
    return image_after_cut(vfs.log[: rng.randint(beginning, len(vfs.log))], rng)


@pytest.mark.parametrize("seed", [101, pytest.param(102, marks=pytest.mark.chaos)])
def test_a_second_power_cut_during_the_recovery_loses_nothing_either(tmp_path: Path, seed: int) -> None:
    """
    The store that is opened after a cut may be cut itself, anywhere until it is closed.
    """
    vfs, rng = PowerCutVFS(), Random(seed)
    run = a_run(tmp_path / "run" / "feedback.db", vfs, seed=seed)
    vfs.unregister()
    verdicts = []
    for number, place in enumerate(cuts_of(run, rng, CUTS_IN_SHORT)):
        directory = tmp_path / f"cut {number}"
        directory.mkdir()
        image = cut_again(image_after_cut(run.log[:place], rng), directory, rng)
        verdicts.append((seed, place, verdict_on(run, place, image, directory)))

    assert [] == [each for each in verdicts if each[-1] != "kept"]


# --- the harness can fail ----------------------------------------------------------------------------------------


def test_without_a_sync_at_each_commit_acknowledged_steps_are_lost_and_nothing_else(cut: Cut) -> None:
    """
    `durability="process"` promises nothing about power: a cut takes the last steps back, and damages no file.
    """
    verdicts = count_of(cut(seed=1, cuts=CUTS_IN_SHORT, durability="process"))

    assert {"kept", "lost"} == set(verdicts)


@pytest.mark.parametrize(
    "disk", [{"connection": UnsyncedConnection}, {"keeps_syncs": False}], ids=["synchronous is off", "the disk lies"]
)
def test_without_any_sync_files_are_damaged(cut: Cut, disk: dict[str, Any]) -> None:
    """
    Where nothing orders the writes, some cut leaves a file that is unsound, or a store that never was.
    """
    assert count_of(cut(seed=1, cuts=CUTS_IN_SHORT, **disk))["damaged"] > 0


class LateStore:
    """A seeded bug: a judgement is acknowledged first, and stored when the next thing is asked for."""

    def __init__(self, store: SQLiteStore) -> None:
        self._store = store
        self._late: Sequence[Entry | Parked] = ()

    def __getattr__(self, name: str) -> Any:
        late, self._late = self._late, ()
        self._store.put_many(late)
        return getattr(self._store, name)

    def put(self, record: FeedbackRecord, destinations: Sequence[str], *, skipped: Mapping[str, str]) -> None:
        self.put_many([Entry(record, destinations, skipped)])

    def put_many(self, entries: Sequence[Entry | Parked]) -> None:
        self.open()
        self._late = entries


def test_a_store_that_acknowledges_before_it_commits_is_caught(cut: Cut) -> None:
    """
    What is committed after it was acknowledged is found missing, although each commit is synced.
    """
    verdicts = count_of(cut(seed=1, cuts=CUTS_IN_SHORT, wrap=LateStore))

    assert {"kept", "lost"} == set(verdicts)
