"""One SQLite file that stays usable: group commit, and what to do when it is full, damaged, moved or forked.

Everything about the life of the file lives here; this file does not know what is kept in it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Generic, TypeVar

from otel_feedback._time import NANOS_PER_MILLI, Clock
from otel_feedback.exceptions import FeedbackError, StoreError
from otel_feedback.stores import _sqlite_rescue as rescue
from otel_feedback.stores._forks import tell_of_forks
from otel_feedback.stores._sqlite_merge import bring_over
from otel_feedback.stores._sqlite_rescue import Connect, Inode
from otel_feedback.stores._sqlite_schema import APPLICATION_ID, claim, refuse_newer, scalar

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A writer holds the lock for one small transaction; whoever waits this long has found a stuck process.
BUSY_TIMEOUT_MILLIS = 10_000
# What is set aside to be given up when the disk is full: SQLite needs room even to delete. 256 pages, more than what
# settles a batch, and written back into the file by each checkpoint.
BALLAST_BYTES = 1024 * 1024
# A file that is larger is not checked when it is opened, which would read all of it: damage is found when it is met.
CHECK_BYTES = 16 * 1024 * 1024
# A file that is moved away again and again while it is written is nobody's accident.
MAX_MOVES = 3

# SQLite's own words; Python tells its codes only from 3.11 on.
_FULL = ("database or disk is full",)
_DAMAGED = (
    "database disk image is malformed",
    "file is not a database",
    "malformed database schema",
    "Could not decode to UTF-8",  # of a text that was one when it was written
)
_READ_ONLY = ("attempt to write a readonly database",)
_BUSY = ("database is locked", "database table is locked")
# What the system says of a disk that is full.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class _Moved(Exception):  # noqa: N818 (never leaves this file)
    """The path does not name the open file any more; nothing was written."""


# What SQLite can fail with: of some damage Python cannot even decode the error's text.
_SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
# What a use of the file can fail with; what an action raises else is its own affair.
_ERRORS = (*_SQLITE_ERRORS, OSError, FeedbackError)


@dataclass(slots=True)
class _Batch:
    """One transaction for several jobs. They are all done at one moment, wherever this thread may be interrupted."""

    is_committed: bool = False


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """What one caller wants to be done in a transaction, and how it ended."""

    action: Callable[[Any], T]
    # Whether it may use up the ballast: what makes room again may, what asks for more may not.
    is_vital: bool
    result: T | None = None
    error: Exception | None = None
    batch: _Batch | None = None

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self.batch is not None and self.batch.is_committed

    def fail(self, error: Exception) -> None:
        """Note that it cannot be done."""
        self.result, self.error, self.batch = None, error, _Batch(is_committed=True)


@dataclass(slots=True)
class _Open:
    """A connection, which file it has open, and which log and index of the log beside it."""

    connection: Any
    inode: Inode
    logs: Sequence[Inode | None] = ()


class SQLiteFile:
    """Runs transactions in one file.

    Args:
        path: where it is.

        durability: `disk` syncs each commit, `process` leaves that to checkpoints.

        clock: what tells the time.

        connect: opens a connection, as `sqlite3.connect` does.
    """

    def __init__(self, path: Path, *, durability: str, clock: Clock, connect: Connect) -> None:
        self._writer: _Open | None = None
        self._reader: _Open | None = None
        self.path = path
        self.url = f"sqlite:///{path}"
        self._durability = durability
        self._clock = clock
        self._connect = connect
        self._is_checked = False
        self._jobs: deque[_Job[Any]] = deque()
        # The threads that are using the file now.
        self._inside: set[int] = set()
        self._write_lock = threading.RLock()
        self._read_lock = threading.RLock()
        tell_of_forks(self)

    @property
    def is_open(self) -> bool:
        """Whether a connection is open."""
        return self._writer is not None or self._reader is not None

    @property
    def ballast(self) -> Path:
        """The file that is given up when the disk is full."""
        return self.path.with_name(f"{self.path.name}-ballast")

    # --- uses ---

    def write(self, action: Callable[[Any], T], *, is_vital: bool = False) -> T:
        """Run an action in a transaction and commit it, together with what other threads ask for meanwhile.

        The action may run more than once; only its last run counts. An exception that it raises undoes what it did.

        Args:
            action: gets the connection, and answers no cursor of it: one that is alive keeps the file open after it was
                closed for a fork.

            is_vital: it makes room, so that it may use the ballast on a full disk.

        Raises:
            StoreError: when it could not be committed.
        """
        return self._use(lambda: self._write(action, is_vital=is_vital))

    def read(self, action: Callable[[Any], T]) -> T:
        """Run an action that only reads, without waiting for a writer.

        Raises:
            StoreError: when the file cannot be read.
        """
        return self._use(lambda: self._read_mended(action))

    def erase_traces(self) -> None:
        """Bring the write-ahead log into the file and leave nothing in it, as far as readers let it.

        What was deleted may be in a damaged file that was kept aside as well; the log tells of those.
        """
        is_busy = True
        with self._write_lock, contextlib.suppress(*_ERRORS):
            is_busy = scalar(self._writing(), "PRAGMA wal_checkpoint(TRUNCATE)")
        if is_busy:
            logger.warning("the log of %s may still have what was erased: somebody has it open and reads", self.url)
        for kept in rescue.kept_aside(self.path):
            logger.warning("the damaged file %s may still have what was erased; delete it", kept)

    def discard_aside(self, before_unix_nano: int) -> None:
        """Delete the damaged files that were kept, if nothing in them is newer."""
        rescue.discard_aside(self.path, before_unix_nano)

    def close(self) -> None:
        """Close the file; using it again opens it again."""
        if threading.get_ident() in self._inside:
            return  # a signal's handler has come in the middle of a use, which goes on after it
        with self._write_lock:
            self._close_writer()
            self._close_reader()

    def _use(self, use: Callable[[], T]) -> T:
        """Let a thread in, unless it is a finaliser or a signal's handler in the middle of its thread's own use."""
        thread = threading.get_ident()
        if thread in self._inside:
            raise StoreError(f"the store {self.url} failed: it was used within a transaction", store=self.url)
        try:
            self._inside.add(thread)
            return use()
        finally:
            self._inside.discard(thread)

    # --- transactions ---

    def _write(self, action: Callable[[Any], T], *, is_vital: bool) -> T:
        """Run an action in a transaction, whoever commits it."""
        job = _Job(action, is_vital)
        self._jobs.append(job)
        with self._write_lock:
            while not job.is_done:
                self._lead(job)
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # what is done and has no error has its result

    def _read_mended(self, action: Callable[[Any], T]) -> T:
        """Run an action that reads, and once more where what it failed at can be mended."""
        met: list[Inode] = []
        try:
            return self._read(action, met)
        except _SQLITE_ERRORS as error:
            damage = _told(error)
        try:
            with self._write_lock:
                if _is(damage, _DAMAGED):
                    self._repair(damage, met[-1] if met else None)
                self._close_reader()
            return self._read(action, met)
        except (*_SQLITE_ERRORS, OSError) as error:
            failed = self._failed(_told(error))
        raise failed

    def _read(self, action: Callable[[Any], T], met: list[Inode]) -> T:
        """Run an action on the file that is in place; note which one that is."""
        for _ in range(MAX_MOVES):
            with self._read_lock:
                if self._reader is not None and self._is_in_place(self._reader):
                    met.append(self._reader.inode)
                    return action(self._reader.connection)
            # Which makes, moves or mends the file first, where that is needed.
            self._write(self._open_reader, is_vital=True)
        raise self._moves_on()

    def _lead(self, own: _Job[Any]) -> None:
        """Commit what waits, the caller's own job among it."""
        jobs: list[_Job[Any]] = []
        try:
            while self._jobs:
                jobs.append(self._jobs.popleft())
            if own not in jobs:  # another leader was interrupted with it in hand
                jobs.append(own)
            self._run(jobs)
        finally:
            # Whatever has interrupted this thread, the others' jobs are not its own.
            self._jobs.extendleft(job for job in reversed(jobs) if not job.is_done and job is not own)

    def _run(self, jobs: list[_Job[Any]]) -> None:
        """Commit jobs in one transaction; where that fails, each in its own."""
        try:
            self._commit(jobs)
        except _ERRORS as raised:
            error = _told(raised)
            if len(jobs) == 1:
                self._run_mended(jobs[0], error)
                return
            if _is(error, _BUSY):  # each alone would wait as long once more
                for job in jobs:
                    job.fail(self._failed(error))
                return
            for job in jobs:
                self._run([job])

    def _run_mended(self, job: _Job[Any], error: Exception) -> None:
        """Commit a job that has failed once more, where what it failed at can be mended."""
        try:
            if self._mend(error, job):
                self._commit([job])
                return
        except _ERRORS as again:
            error = _told(again)
        job.fail(self._failed(error))

    def _commit(self, jobs: list[_Job[Any]]) -> None:
        """Commit jobs into the file that the path names, wherever that was moved to meanwhile."""
        for _ in range(MAX_MOVES):
            batch = _Batch()
            try:
                self._transact(jobs, batch)
            except _Moved:
                self._follow()
                continue
            # A file that was deleted in the middle of it has taken the transaction with it, unless it is put back.
            if self._is_in_place(self._writer):
                return
            if self._follow():
                return
            batch.is_committed = False
        raise self._moves_on()

    def _transact(self, jobs: list[_Job[Any]], batch: _Batch) -> None:
        """Run one transaction."""
        connection = self._writing()
        try:
            asking = [job for job in jobs if not job.is_vital]
            if asking and not self._keep_ballast():
                raise sqlite3.OperationalError(_FULL[0])  # noqa: TRY301 (what undoes the transaction is below)
            connection.execute("BEGIN IMMEDIATE")
            if not self._is_in_place(self._writer):
                raise _Moved  # noqa: TRY301 (the same)
            refuse_newer(connection, self.path, self.url)
            for job in jobs:
                _attempt(connection, job)
            for job in jobs:
                job.batch = batch
            connection.execute("COMMIT")
            batch.is_committed = True
        except BaseException as error:
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            elif all(job.batch is batch for job in jobs) and not isinstance(error, _SQLITE_ERRORS):
                batch.is_committed = True  # whatever has interrupted this thread since
            if connection.in_transaction:  # it would keep every other process out
                self._close_writer()
            raise

    # --- what can be mended ---

    def _mend(self, error: Exception, job: _Job[Any]) -> bool:
        """Mend what made a transaction fail, if it can be; say whether to try again."""
        if isinstance(error, FeedbackError) or _is(error, _BUSY):
            return False
        if _is(error, _DAMAGED):
            return self._repair(error, None if self._writer is None else self._writer.inode)
        if self._writer is not None and not self._is_in_place(self._writer):
            self._follow()
            return True
        if job.is_vital and (_is(error, _FULL) or self._has_no_room()):
            self._release_ballast()
            self._checkpoint()  # the log may have taken all the room that the ballast has left
            return True
        # What a failed commit has left in the log is not committed to this connection, and is to the next one that
        # opens the file: so it stays open, unless it is of no use any more.
        if _is(error, _READ_ONLY):
            self._close_writer()
        return False

    def _keep_ballast(self) -> bool:
        """Set room aside, if it is not; say whether the disk has it."""
        if self.ballast.exists():
            return True
        if self._has_no_room(2 * BALLAST_BYTES):  # trying would take what others, who settle, need meanwhile
            return False
        growing = self.ballast.with_name(f"{self.ballast.name}.{os.getpid()}")
        try:
            # Noise, because zeros may take no room at all.
            growing.write_bytes(Random(0).randbytes(BALLAST_BYTES))  # noqa: S311 (nobody guesses it)
            growing.replace(self.ballast)
        except OSError as error:
            with contextlib.suppress(OSError):
                growing.unlink()
            return error.errno not in _NO_ROOM
        return True

    def _release_ballast(self) -> None:
        """Give the ballast up, if there is any."""
        with contextlib.suppress(OSError):
            self.ballast.unlink()
            logger.error("the disk of %s is full: nothing is accepted, what was accepted goes on", self.url)

    def _has_no_room(self, needed: int = BALLAST_BYTES) -> bool:
        """Tell whether the disk is full, where SQLite only says that something has failed."""
        try:
            return shutil.disk_usage(self.path.parent).free < needed
        except OSError:
            return False

    def _repair(self, error: Exception, damaged: Inode | None) -> bool:
        """Put a damaged file aside and go on with what can be read of it; say whether there is a file of ours again."""
        if damaged is None:  # it could not even be opened
            damaged = rescue.inode(self.path)
            if not self._is_ours():
                return False
        self._close_reader()
        self._close_writer()
        with rescue.alone(self.path.parent):
            if damaged == rescue.inode(self.path):  # else another process has done it
                try:
                    rescue.replace_damaged(self.path, self._connect, self._clock.time_unix_nano(), error)
                except (*_SQLITE_ERRORS, OSError) as failure:
                    text = f"the store {self.url} is damaged ({error}) and cannot be replaced: {failure}"
                    logger.critical(text)
                    raise StoreError(text, store=self.url) from failure
        return True

    def _is_ours(self) -> bool:
        """Tell whether a file that SQLite cannot read was ours: by its mark, or by its ballast."""
        try:
            with self.path.open("rb") as file:
                header = file.read(72)
        except OSError:
            return False
        return header[68:] == APPLICATION_ID.to_bytes(4, "big") or self.ballast.exists()

    def _follow(self) -> bool:
        """Use the file that the path names now; say whether all that was in the open one is in it.

        Where the path names none, or an empty one, a copy of the open file is put there; so it is where the file has
        lost its log: whoever opened it now would neither read what is in that, nor be kept out by its locks. Another
        store that is there gets what it lacks.
        """
        opened: _Open = self._writer  # type: ignore[assignment]  # it is open
        rescue.make_directory(self.path.parent)
        with rescue.alone(self.path.parent):
            rescue.sweep(self.path)
            is_gone = rescue.size(self.path) == 0 or rescue.inode(self.path) == opened.inode
            if is_gone:
                self._put_back()
            else:
                if None not in opened.logs and rescue.logs(self.path)[:1] == opened.logs[:1]:
                    rescue.remove_logs(self.path)  # of the file that is no more; it would be read into the new one
                is_gone = not self._bring_over()
        self._close_writer()
        return is_gone

    def _bring_over(self) -> bool:
        """Bring what only the open file has into the one that has replaced it; say whether that can be read at all.

        Where that is not ours the open one stays open, and what it has comes when the path is free.
        """
        opened: _Open = self._writer  # type: ignore[assignment]  # it is open
        other = self._attach().connection
        try:
            other.execute("BEGIN IMMEDIATE")
            claim(other, self.path, self.url)
            other.execute("COMMIT")
        except _SQLITE_ERRORS as raised:
            if not _is(_told(raised), _DAMAGED):
                raise
            self._put_back()
            return False
        finally:
            other.close()
        try:
            count = bring_over(opened.connection, self.path)
        except _SQLITE_ERRORS as raised:
            error = _told(raised)
            if not _is(error, _DAMAGED):
                raise
            logger.critical("the file of %s that was replaced is damaged: %s", self.url, error)
            with rescue.saved(opened.connection, self.path, self._connect) as saved:
                count = bring_over(saved, self.path)
        logger.error("the store's file was replaced; %s goes on with the new one", self.url)
        if count:
            logger.critical("%s goes on with %s records that only the file had that was replaced", self.url, count)
        return True

    def _put_back(self) -> None:
        """Put a copy of the open file where it was; one that cannot even be read is given up."""
        opened: _Open = self._writer  # type: ignore[assignment]  # it is open
        now = self._clock.time_unix_nano()
        try:
            known = (opened.inode, *opened.logs)
            rescue.put_back(self.path, opened.connection, self._connect, known=known, now_unix_nano=now)
        except (*_SQLITE_ERRORS, OSError) as error:
            text = f"the file of {self.url} has vanished and cannot be put back: {error}"
            logger.critical(text)
            try:
                opened.connection.execute("SELECT count(*) FROM sqlite_master")
            except sqlite3.Error:
                self._close_writer()
            raise StoreError(text, store=self.url) from error

    def _failed(self, error: Exception) -> Exception:
        """Translate the errors of SQLite and of the system, here and nowhere else."""
        if isinstance(error, FeedbackError):
            return error
        text = f"the store {self.url} failed: {error}"
        if not self._is_in_place(self._writer) and not _is(error, _BUSY):
            text = (
                f"the store {self.url} cannot be opened: {error}; give it a file of its own, at another path, in a "
                "directory that this process can write"
            )
        failed = StoreError(text, store=self.url)
        failed.__cause__ = error
        return failed

    def _moves_on(self) -> StoreError:
        """Say that nobody can use a file that does not stay."""
        return StoreError(f"the store {self.url} failed: its file is moved again and again", store=self.url)

    # --- connections ---

    def _writing(self) -> Any:
        """Answer the connection that writes, opening the file, and making it when it is missing."""
        if self._writer is None:
            self._writer = self._open()
            self._check()
            self._keep_ballast()
        return self._writer.connection

    def _open(self) -> _Open:
        """Open the file and bring its schema and its mode up."""
        rescue.make_directory(self.path.parent)
        with rescue.alone(self.path.parent):
            rescue.sweep(self.path)
            opened = self._attach()
            connection = opened.connection
            try:
                # Under one lock, so that of two processes that start together one makes the tables and the other
                # finds them. Changing the journal mode inside of it is not possible, and does not need to be.
                connection.execute("BEGIN IMMEDIATE")
                claim(connection, self.path, self.url)
                connection.execute("COMMIT")
                self._use_wal(connection)
                connection.execute(f"PRAGMA synchronous = {'FULL' if self._durability == 'disk' else 'NORMAL'}")
                scalar(connection, "PRAGMA schema_version")  # it is reading that opens the log
                opened.logs = rescue.logs(self.path)
            except BaseException:
                connection.close()
                raise
        return opened

    def _check(self) -> None:
        """Look for damage once, where that takes no time to speak of."""
        if self._is_checked or rescue.size(self.path) > CHECK_BYTES:
            return
        try:
            found = scalar(self._writer.connection, "PRAGMA quick_check(1)")  # type: ignore[union-attr]  # it is open
        except _SQLITE_ERRORS as raised:
            error = _told(raised)
            found = str(error) if _is(error, _DAMAGED) else "ok"  # a check that could not be done has found nothing
        if found != "ok":
            raise sqlite3.DatabaseError(f"{_DAMAGED[0]}: {found}")
        self._is_checked = True

    def _open_reader(self, _: object) -> None:
        """Open the connection that reads, in a transaction: the file is there, and nobody of ours is moving it."""
        self._close_reader()
        reader = self._attach()
        reader.connection.execute("PRAGMA query_only = ON")
        reader.logs = self._writer.logs  # type: ignore[union-attr]  # it is open, and has the same
        with self._read_lock:
            self._reader = reader

    def _attach(self) -> _Open:
        """Open a connection to the file that the path names before and after."""
        for _ in range(MAX_MOVES):
            before = rescue.inode(self.path)
            if before is not None and not os.access(self.path, os.W_OK):  # pragma: no cover (root may write everything)
                # SQLite would make its log with the same mode, and the file could not be written later either.
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))
            connection = self._connect(
                self.path, timeout=BUSY_TIMEOUT_MILLIS / 1_000, isolation_level=None, check_same_thread=False
            )
            try:
                if before is not None and before == rescue.inode(self.path):
                    # What is deleted is overwritten: it was somebody's word.
                    connection.execute("PRAGMA secure_delete = ON")
                    return _Open(connection, before)
            except BaseException:
                connection.close()
                raise
            connection.close()
        raise self._moves_on()

    def _use_wal(self, connection: Any) -> None:
        """Switch to WAL; where others open the file at once SQLite may fail without waiting, so this waits."""
        connection.execute("PRAGMA busy_timeout = 0")
        deadline = self._clock.monotonic_nano() + BUSY_TIMEOUT_MILLIS * NANOS_PER_MILLI
        while True:
            try:
                # Fetched, because it is the fetch that switches.
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if not _is(error, _BUSY) or self._clock.monotonic_nano() > deadline:
                    raise
                threading.Event().wait(0.01)
            else:
                connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MILLIS}")
                return

    def _is_in_place(self, opened: _Open | None) -> bool:
        """Tell whether the path still names the file that is open, and its log and that one's index."""
        if opened is None or opened.inode != rescue.named(self.path):
            return False
        return None not in opened.logs and opened.logs == rescue.logs(self.path)

    def _checkpoint(self) -> None:
        """Bring the write-ahead log into the file."""
        if self._writer is not None:
            with contextlib.suppress(sqlite3.Error):
                self._writer.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _close_writer(self) -> None:
        """Close the connection that writes."""
        opened, self._writer = self._writer, None
        _close(opened)

    def _close_reader(self) -> None:
        """Close the connection that reads."""
        with self._read_lock:
            opened, self._reader = self._reader, None
            _close(opened)

    # --- forks ---

    # A connection must not be carried across a fork
    # (https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_file_across_a_fork_): the child's own
    # connection would rely on locks that only the parent holds, and lose what it wrote when the parent closed. So the
    # file is closed before a fork, and opened again on both sides when it is next used.

    def before_fork(self) -> None:
        """Close the file and let no thread open it again before the fork."""
        self._write_lock.acquire()
        self._read_lock.acquire()
        self._close_writer()
        self._close_reader()

    def after_fork(self, *, is_child: bool) -> None:
        """Let the file be used again; whoever does opens it."""
        if is_child:  # what waits is the parent's, whose threads wait for it
            self._jobs.clear()
            self._inside.clear()
        self._read_lock.release()
        self._write_lock.release()


def _attempt(connection: Any, job: _Job[Any]) -> None:
    """Run one job of a transaction; what it raises undoes its own part alone."""
    connection.execute("SAVEPOINT job")
    try:
        job.result, job.error = job.action(connection), None
    except _SQLITE_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001 (the caller gets it)
        connection.execute("ROLLBACK TO job")
        job.result, job.error = None, error
    connection.execute("RELEASE job")


def _is(error: Exception, words: tuple[str, ...]) -> bool:
    """Tell whether an error is one of those that these words begin."""
    return str(error).startswith(words)


def _told(error: Exception) -> Exception:
    """Bring an error into words that can be compared and logged, where Python could not decode SQLite's."""
    if isinstance(error, UnicodeDecodeError):  # the name of a table, or of an index, is damaged
        return sqlite3.DatabaseError(error.object.decode(errors="replace"))
    if type(error) is sqlite3.DatabaseError and not str(error):  # the same in Python 3.10
        return sqlite3.DatabaseError("malformed database schema")
    said, found, _ = str(error).partition(" with text ")  # which somebody wrote
    return type(error)(said) if found and isinstance(error, sqlite3.Error) else error


def _close(opened: _Open | None) -> None:
    """Close a connection, whatever state the file is in."""
    if opened is not None:
        with contextlib.suppress(sqlite3.Error):
            opened.connection.close()
