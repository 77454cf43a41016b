"""A file that another store has replaced while it was open: what only the replaced one had goes into the other."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_files import Script, destroy, leaves, root_page, watched_by

from otel_feedback._record import FeedbackRecord
from otel_feedback.exceptions import StoreError
from otel_feedback.stores import Binding, Entry, Parked, PartState, Settlement, Standing
from otel_feedback.stores._sqlite_schema import migrate
from otel_feedback.stores.sqlite import SQLiteStore
from otel_feedback.testing import FakeClock

RecordMaker = Callable[..., FeedbackRecord]

DELIVERED = Settlement("deliver", {})
MINUTE = 60_000


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def old(path: Path, clock: FakeClock, script: Script) -> Iterator[SQLiteStore]:
    """A store that goes on when its file is deleted or replaced."""
    with contextlib.closing(SQLiteStore(path, clock=clock, connect=watched_by(script))) as store:
        yield store


@pytest.fixture
def new(path: Path, clock: FakeClock) -> Iterator[SQLiteStore]:
    """A store that is opened by whoever comes after that."""
    with contextlib.closing(SQLiteStore(path, clock=clock)) as store:
        yield store


def delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()


def take(store: SQLiteStore, destination: str = "a") -> list[FeedbackRecord]:
    """Lease all that is due, deliver it, and lease what was behind that."""
    records: list[FeedbackRecord] = []
    while leases := store.lease(destination, limit=100, duration_millis=MINUTE):
        records += [lease.record for lease in leases]
        store.settle_many([(lease, DELIVERED) for lease in leases])
    return records


def numbers(records: list[FeedbackRecord]) -> list[int]:
    return [int(record.id[-12:]) for record in records]


def back_up(path: Path) -> Path:
    """Copy a store that is open, as an operator does."""
    backup = path.with_name("backup.db")
    with contextlib.closing(sqlite3.connect(path)) as copy:
        copy.execute("VACUUM INTO ?", (str(backup),))
    return backup


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.CRITICAL]


# --- another store ---


@pytest.mark.parametrize("use", ["read", "write"])
def test_what_only_the_deleted_file_had_goes_into_the_one_that_another_process_has_made(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, caplog: pytest.LogCaptureFixture, use: str
) -> None:
    """
    Whoever comes first after a deletion makes an empty store; the next use of the open one brings all that it had.
    """
    for number in (1, 2, 3):
        old.put(make_record(number), ["a", "b"])
    delete(old.path)
    new.put(make_record(11), ["a"])
    if use == "write":
        old.put(make_record(12), ["a"])
    seen = old.stats()

    assert (4 + (use == "write"), 3) == (seen["a"].pending, seen["b"].pending)
    assert [11, 1, 2, 3, *([12] if use == "write" else [])] == numbers(take(new))
    assert [1, 2, 3] == numbers(take(new, "b"))
    said = f"{old.url} goes on with 3 records that only the file had that was replaced"
    assert [said] == logged(caplog)


def test_a_delivery_keeps_all_that_was_known_of_it(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, clock: FakeClock
) -> None:
    """
    The state, its reason, the attempts and the age are those of before, and so are the accounts.
    """
    for number in (1, 2, 3):
        old.put(make_record(number), ["a"])
    old.put(make_record(4), ["a"], skipped={"a": "unsampled"})
    first, second, third = old.lease("a", limit=3, duration_millis=MINUTE)
    due = clock.time_unix_nano() + 1_000
    old.settle_many(
        [
            (first, DELIVERED),
            (second, Settlement("bury", {}, reason="HTTP 400")),
            (third, Settlement("retry", {}, due_unix_nano=due, reason="HTTP 503")),
        ]
    )
    before = [old.status(make_record(number).id) for number in (1, 2, 3, 4)]
    account = old.stats()["a"]
    delete(old.path)
    new.open()
    old.bind([])

    assert before == [new.status(make_record(number).id) for number in (1, 2, 3, 4)]
    after = new.stats()["a"]
    assert (account.delivered, account.dead, account.pending, account.skipped, account.oldest_unix_nano) == (
        after.delivered,
        after.dead,
        after.pending,
        after.skipped,
        after.oldest_unix_nano,
    )
    assert account.recorded == after.recorded
    clock.advance(seconds=1)
    (again,) = new.lease("a", limit=3, duration_millis=MINUTE)
    assert (third.record.id, 1, third.accepted_at_unix_nano) == (
        again.record.id,
        again.attempts,
        again.accepted_at_unix_nano,
    )


def test_a_lease_of_before_settles_nothing_of_the_other_store(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker
) -> None:
    """
    Under its number the other store may have somebody else's judgement: that is not taken for delivered.
    """
    old.put(make_record(1), ["a"])
    (held,) = old.lease("a", limit=1, duration_millis=MINUTE)
    delete(old.path)
    new.put(make_record(11), ["a"])
    (other,) = new.lease("a", limit=1, duration_millis=MINUTE)
    assert (held.sequence, held.fence) == (other.sequence, other.fence)

    assert old.settle(held, DELIVERED) is False
    status = new.status(other.record.id)
    assert status is not None
    assert "leased" == status["a"].state
    assert new.settle(other, DELIVERED)


def test_keys_and_judgements_that_wait_for_one_go_along(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker
) -> None:
    """
    Also where the file never had a record, and whatever was bound or parked in the other one meanwhile.
    """
    handle = make_record().handle
    old.bind([Binding("response_id", "before", handle)])
    old.put_many([Parked(make_record(1), "key", "later", ("a",)), Parked(make_record(2), "key", "later", None)])
    delete(old.path)
    new.bind([Binding("response_id", "meanwhile", handle), Binding("response_id", "before", handle)])
    new.put_many([Parked(make_record(3), "key", "later", None), Parked(make_record(2), "key", "later", ("b",))])
    old.bind([])

    assert [[handle], [handle]] == [new.find("response_id", key) for key in ("before", "meanwhile")]
    waiting = new.parked("key", "later")
    assert [(3, None), (2, ("b",)), (1, ("a",))] == [(int(each.record.id[-12:]), each.to) for each in waiting]


def test_a_judgement_that_was_given_anew_meanwhile_wins(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, clock: FakeClock
) -> None:
    """
    What the same person said later is not followed by what they said before; others' words are not touched by that.
    """
    for value in (1, 2, 3):
        old.put(make_record(1, value=value), ["a"])
    old.put(make_record(2, value=4), ["a"])
    delete(old.path)
    clock.advance(seconds=1)
    new.put(make_record(1, value=5), ["a"])
    old.bind([])

    assert [4, 5] == sorted(record.value for record in take(new))


def test_a_change_of_mind_goes_along_in_its_order(old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker) -> None:
    """
    Each revision keeps its place behind the one before; the last stands.
    """
    old.put(make_record(1, value=1), ["a"])
    take(old)
    old.put(make_record(1, value=2), ["a"])
    old.put(make_record(1, value=3), ["a"])
    delete(old.path)
    new.put(make_record(11), ["a"])
    old.bind([])

    latest = new.latest(make_record(1).id)
    assert latest is not None
    assert (3, 2) == (latest.value, latest.revision)
    assert [None, 3] == [record.value if record.id != make_record(11).id else None for record in take(new)]


def test_a_retraction_goes_along(old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker) -> None:
    """
    A retraction, and what it takes back, are brought as one judgement.
    """
    old.put(make_record(1, value=1), ["a"])
    take(old)
    old.put(make_record(1, value=None, retracts=True), ["a"])
    delete(old.path)
    new.open()
    old.bind([])

    (record,) = take(new)
    assert (True, 1) == (record.retracts, record.revision)


def test_a_second_process_that_had_the_file_open_brings_nothing_twice(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, clock: FakeClock
) -> None:
    """
    All of them had the same: the first has brought it.
    """
    with contextlib.closing(SQLiteStore(old.path, clock=clock)) as also:
        old.put(make_record(1), ["a"])
        also.put(make_record(2), ["a"])
        delete(old.path)
        new.put(make_record(11), ["a"])
        old.put(make_record(3), ["a"])
        also.put(make_record(4), ["a"])

        assert 5 == new.stats()["a"].recorded
        assert [11, 1, 2, 3, 4] == numbers(take(also))


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_what_is_committed_into_a_file_that_is_just_replaced_is_done_in_the_other(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, script: Script, is_forgotten: bool
) -> None:
    """
    To accept something twice is no harm, and to erase somebody twice is needed: a backup has them still.
    """
    old.put(make_record(1, user_id="leaves"), ["a"])
    backup = back_up(old.path)
    script.on("COMMIT", lambda: backup.replace(old.path))
    if is_forgotten:
        old.forget("leaves")
    else:
        old.put(make_record(2), ["a"])

    assert ([] if is_forgotten else [1, 2]) == numbers(take(new))


# --- a copy of itself ---


def test_a_backup_gets_what_came_since_it_was_made(old: SQLiteStore, make_record: RecordMaker) -> None:
    """
    New judgements and changes of mind; what it has already is not brought again.
    """
    old.put(make_record(1, value=1), ["a"])
    old.put(make_record(2, value=2), ["a"])
    backup = back_up(old.path)
    old.put(make_record(1, value=3), ["a"])
    old.put(make_record(3, value=4), ["a"])
    backup.replace(old.path)

    assert 4 == old.stats()["a"].recorded
    assert [2, 3, 4] == sorted({record.id: record.value for record in take(old)}.values())


def test_what_a_copy_has_lost_on_purpose_stays_away(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A process puts the deleted file back and forgets somebody; one that comes later does not bring them back.
    """
    old.bind([Binding("response_id", "key", make_record().handle)])
    old.put_many(
        [Entry(make_record(1, user_id="leaves"), ["a"]), Parked(make_record(3, user_id="leaves"), "key", "k", None)]
    )
    old.put(make_record(2), ["a"])
    new.stats()
    delete(old.path)
    new.stats()
    assert new.forget("leaves") == 2
    old.put(make_record(4), ["a"])

    assert [2, 4] == numbers(take(old))
    assert [] == old.parked("key", "k")
    assert [f"a file of the store {old.path} has vanished; it was put back with all that it had"] == logged(caplog)


@pytest.mark.parametrize("is_taken_back", [False, True])
def test_a_change_of_mind_since_the_backup_stays_the_last_word(
    old: SQLiteStore, make_record: RecordMaker, clock: FakeClock, is_taken_back: bool
) -> None:
    """
    What the backup has as waiting is not sent again: it was delivered, and something else was said since.
    """
    old.put(make_record(1, value=1), ["a"])
    backup = back_up(old.path)
    take(old)
    clock.advance(seconds=1)
    old.put(make_record(1, value=None, retracts=True) if is_taken_back else make_record(1, value=2), ["a"])
    take(old)
    backup.replace(old.path)

    assert [] == take(old)
    assert {"delivered": 2, "pending": 0} == {
        state: getattr(old.stats()["a"], state) for state in ("delivered", "pending")
    }


def test_what_was_not_delivered_of_a_change_since_the_backup_is_all_that_is_sent(
    old: SQLiteStore, make_record: RecordMaker, clock: FakeClock
) -> None:
    """
    The older word is superseded there as it was here.
    """
    old.put(make_record(1, value=1), ["a"])
    backup = back_up(old.path)
    clock.advance(seconds=1)
    old.put(make_record(1, value=2), ["a"])
    backup.replace(old.path)

    assert [2] == [record.value for record in take(old)]
    assert (1, 1) == (old.stats()["a"].superseded, old.stats()["a"].delivered)


def test_keys_and_parked_judgements_since_the_backup_go_along_alone(old: SQLiteStore, make_record: RecordMaker) -> None:
    """
    Also where no judgement was recorded since.
    """
    old.put(make_record(1), ["a"])
    backup = back_up(old.path)
    old.bind([Binding("app", "m-1", make_record().handle)])
    old.put_many([Parked(make_record(2), "app", "m-2")])
    backup.replace(old.path)
    old.bind([])

    assert 1 == len(old.find("app", "m-1"))
    assert [make_record(2).id] == [each.record.id for each in old.parked("app", "m-2")]


def test_what_was_parked_in_the_backup_is_joined_once(old: SQLiteStore, make_record: RecordMaker) -> None:
    """
    It is its record by now, and means that one.
    """
    old.put_many([Parked(make_record(1), "app", "m-1")])
    backup = back_up(old.path)
    old.unpark(make_record(1).id, Entry(make_record(9), ["a"]))
    backup.replace(old.path)
    old.bind([])

    assert [] == old.parked("app", "m-1")
    assert ["a"] == list(old.status(make_record(1).id) or {})


def test_a_parked_judgement_that_was_changed_since_the_backup_stays_changed(
    old: SQLiteStore, make_record: RecordMaker
) -> None:
    """
    The later word is the one that waits.
    """
    old.put_many([Parked(make_record(1, value=1, recorded_at_unix_nano=1), "app", "m-1")])
    backup = back_up(old.path)
    old.put_many([Parked(make_record(1, value=2, recorded_at_unix_nano=2), "app", "m-1")])
    backup.replace(old.path)
    old.bind([])

    assert [2] == [each.record.value for each in old.parked("app", "m-1")]


def test_a_key_that_was_bound_again_since_the_backup_is_as_young_as_that(
    old: SQLiteStore, make_record: RecordMaker, clock: FakeClock
) -> None:
    """
    It is kept for as long as it would have been.
    """
    old.bind([Binding("app", "m-1", make_record().handle)])
    backup = back_up(old.path)
    clock.advance(seconds=1)
    old.bind([Binding("app", "m-1", make_record().handle)])
    backup.replace(old.path)
    old.prune(clock.time_unix_nano())

    assert 1 == len(old.find("app", "m-1"))


# --- several files one after the other ---


def test_what_the_new_store_has_erased_of_its_own_hides_nothing(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker
) -> None:
    """
    That its numbers have gaps does not mean that what is missing was removed there.
    """
    for number in (1, 2, 3):
        old.put(make_record(number), ["a"])
    delete(old.path)
    for number in (11, 12, 13):
        new.put(make_record(number, user_id="leaves"), ["a"])
    assert 3 == new.forget("leaves")
    old.put(make_record(4), ["a"])

    assert [1, 2, 3, 4] == numbers(take(new))


def test_of_three_files_the_last_word_wins_whoever_brings_it_first(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, clock: FakeClock
) -> None:
    """
    The older word is there already when the newer one comes, under the same revision.
    """
    with contextlib.closing(SQLiteStore(old.path, clock=clock)) as third:
        old.put(make_record(1, value=1), ["a"])
        delete(old.path)
        clock.advance(seconds=1)
        new.put(make_record(1, value=2), ["a"])
        delete(old.path)
        third.open()
        old.bind([])
        new.bind([])

        latest = third.latest(make_record(1).id)
        assert latest is not None
        assert (2, 1) == (latest.value, latest.revision)
        assert [2] == [record.value for record in take(third)]
        assert (2, 1) == (third.stats()["a"].recorded, third.stats()["a"].superseded)


@pytest.mark.parametrize(
    ("later", "expected"), [({"value": 2}, "superseded"), ({"value": None, "retracts": True}, "retracted")]
)
def test_what_was_said_in_a_file_that_has_gone_again_is_the_last_word(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, clock: FakeClock, later: Any, expected: str
) -> None:
    """
    The first file is moved away, and back over the one in which somebody has changed their mind meanwhile.
    """
    old.put(make_record(1, value=1), ["a", "b"])
    old.close()
    old.path.rename(old.path.with_name("away.db"))
    clock.advance(seconds=1)
    new.put(make_record(1, **later), ["a"])
    old.path.with_name("away.db").rename(old.path)
    new.bind([])

    assert [later["value"]] == [record.value for record in take(new)]
    assert [1] == [record.value for record in take(new, "b")]
    assert 1 == getattr(new.stats()["a"], expected)


@pytest.mark.parametrize("is_sent_again", [True, False])
def test_of_several_words_that_the_other_file_does_not_know_the_last_is_brought(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, clock: FakeClock, is_sent_again: bool
) -> None:
    """
    It comes as the next revision there; what stands was told by other numbers, so that nothing is known of it.
    """
    old.put(make_record(1, value=1), ["a"])
    take(old)
    old.close()
    old.path.rename(old.path.with_name("away.db"))
    for value in (2, 3):
        clock.advance(seconds=1)
        new.put(make_record(1, value=value), ["a"])
        (lease,) = new.lease("a", limit=1, duration_millis=MINUTE)
        parts = {"value": PartState("unclear", None), "comment": PartState("dead", "400")}
        new.settle(lease, Settlement("bury", parts, standing={"value": Standing(lease.record)}))
    old.path.with_name("away.db").rename(old.path)
    new.bind([])
    latest = new.latest(make_record(1).id)
    assert latest is not None
    assert (3, 1) == (latest.value, latest.revision)
    assert 2 == new.stats()["a"].recorded
    if is_sent_again:
        new.requeue(make_record(1).id, "a")
    else:
        new.put(make_record(1, value=4), ["a"])
    (lease,) = new.lease("a", limit=1, duration_millis=MINUTE)

    assert ({}, {}) == (dict(lease.parts), dict(lease.standing))


# --- what may go wrong ---


def test_a_store_of_an_older_release_is_brought_up_first(
    tmp_path: Path, old: SQLiteStore, make_record: RecordMaker
) -> None:
    """
    A backup of before an upgrade has the tables of before; it gets the newer ones, and then what it lacks.
    """
    older = sqlite3.connect(tmp_path / "older.db", isolation_level=None)
    migrate(older, 0, 1)
    older.close()
    old.put(make_record(1), ["a"])
    (tmp_path / "older.db").replace(old.path)
    old.put(make_record(2), ["a"])

    assert [1, 2] == numbers(take(old))


def test_a_store_that_is_locked_gets_it_later(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Nothing is given up with the file that is open: it stays open until what it has could be brought.
    """
    old.put(make_record(1), ["a"])
    delete(old.path)
    new.open()
    for words in ("INSERT INTO other.records", "INSERT INTO other.deliveries", "COMMIT", "ATTACH"):
        script.fail(words, "database is locked")
        with pytest.raises(StoreError, match="locked"):
            old.put(make_record(2), ["a"])
    old.put(make_record(2), ["a"])

    assert [1, 2] == numbers(take(new))
    assert [f"{old.url} goes on with 1 records that only the file had that was replaced"] == logged(caplog)


@pytest.mark.parametrize("moment", ["ATTACH", "BEGIN IMMEDIATE TRANSACTION", "COMMIT", "DETACH"])
def test_an_interrupt_keeps_nothing_from_being_brought_later(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, script: Script, moment: str
) -> None:
    """
    Whenever Ctrl-C comes, the next use brings all that is not there yet.
    """

    def interrupt() -> None:
        raise KeyboardInterrupt

    old.put(make_record(1), ["a"])
    delete(old.path)
    new.put(make_record(11), ["a"])
    if moment == "ATTACH":
        script.on(moment, interrupt)
    else:  # the next one: others come before that are not meant
        script.on("ATTACH", lambda: script.on(moment, interrupt))
    with pytest.raises(KeyboardInterrupt):
        old.put(make_record(2), ["a"])
    old.put(make_record(3), ["a"])

    assert {1, 3, 11} <= set(numbers(take(new))) <= {1, 2, 3, 11}


def test_another_process_that_writes_all_the_while_keeps_nothing_away(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker
) -> None:
    """
    It waits its turn, as everybody does: nothing that it has read is old when it writes.
    """
    old.put_many([Entry(make_record(number), ["a"]) for number in range(1, 3_001)])
    delete(old.path)
    new.open()
    is_over = threading.Event()

    def write() -> None:
        for number in itertools.count(10_000):
            if is_over.is_set():
                return
            new.put(make_record(number), ["b"])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        old.put(make_record(5_000), ["a"])
    finally:
        is_over.set()
        writer.join()

    assert 3_001 == new.stats()["a"].pending


def test_a_newer_release_s_store_is_refused_and_gets_nothing(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker
) -> None:
    """
    What was accepted waits in the file that is open, until the path is free.
    """
    old.put(make_record(1), ["a"])
    delete(old.path)
    new._file.write(lambda connection: connection.execute("PRAGMA user_version = 99") and None)
    new.close()
    with pytest.raises(StoreError, match="upgrade"):
        old.put(make_record(2), ["a"])
    new.path.unlink()
    old.put(make_record(3), ["a"])

    assert [1, 3] == numbers(take(old))


def test_a_damaged_file_in_its_place_is_kept_aside_and_the_open_one_is_put_back(
    old: SQLiteStore, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A copy that broke off, or what is no database at all: what is open is whole.
    """
    old.put(make_record(1), ["a"])
    delete(old.path)
    old.path.write_bytes(b"half of a backup" * 1_000)
    old.put(make_record(2), ["a"])

    assert [1, 2] == numbers(take(old))
    (aside,) = old.path.parent.glob("*.damaged-*")
    assert b"half of a backup" * 1_000 == aside.read_bytes()
    kept, put_back = logged(caplog)
    assert f"what others have written to the store {old.path} meanwhile is kept as {aside}" == kept
    assert f"a file of the store {old.path} has vanished; it was put back with all that it had" == put_back


def test_a_replaced_file_that_is_damaged_itself_is_told_of(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, caplog: pytest.LogCaptureFixture
) -> None:
    """
    What can be read of it goes into the one that is there.
    """
    old.put_many([Entry(make_record(n, comment=f"{n} was good. " * 20), ["a"]) for n in range(1, 300)])
    old.close()
    damaged = leaves(old.path, root_page(old.path, "records"))[1]
    old.open()
    destroy(old.path, damaged)
    delete(old.path)
    new.put(make_record(400), ["a"])
    old.put(make_record(401), ["a"])

    found = numbers(take(new))
    assert {400, 401, 1, 299} <= set(found)
    assert 250 < len(found) < 301
    damage, brought = logged(caplog)
    assert damage.startswith(f"the file of {old.url} that was replaced is damaged: database disk image is malformed")
    assert f"{old.url} goes on with {len(found) - 2} records that only the file had that was replaced" == brought
    assert [] == [*old.path.parent.glob("*.new*"), *old.path.parent.glob("*.saved*")]


@pytest.mark.parametrize("damage", ["UPDATE origin SET id = x'05'", "UPDATE origin SET generation = 'x'"])
def test_a_file_that_does_not_know_which_store_it_is_is_saved_all_the_same(
    old: SQLiteStore, new: SQLiteStore, make_record: RecordMaker, damage: str
) -> None:
    """
    It is then a store of its own.
    """
    old.put_many([Entry(make_record(n, comment=f"{n} was good. " * 20), ["a"]) for n in range(1, 300)])
    old._file.write(lambda connection: connection.execute(damage) and None)
    old.close()
    destroy(old.path, root_page(old.path, "records_by_call"))

    assert 299 == new.stats()["a"].pending
    ((store, generation),) = new._file.read(lambda c: c.execute("SELECT id, generation FROM origin").fetchall())
    assert (32, 0) == (len(store), generation)
