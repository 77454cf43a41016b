"""Power cuts: what a disk holds of SQLite's files when the power fails at any moment of a run.

`PowerCutVFS` passes everything through to the files and logs what changes them. `image_after_cut` reads the beginning
of such a log as a disk would that loses its power there. `ApswConnection` lets a store use it all, by its `connect`.

What a disk is taken to keep, which is no more than SQLite asks of it (https://www.sqlite.org/atomiccommit.html):

- What was written before a file's last sync is there. Of what was written later any part may be: writes are kept,
  dropped or torn, one by one. Since the parts are chosen freely, that is any order of writing as well.
- A write tears at 512 bytes and harms nothing beside it: the VFS `unix` says so itself
  (SQLITE_IOCAP_POWERSAFE_OVERWRITE), and so does every disk with sectors of 512 bytes. What a torn write adds to a file
  may be zeros or rubbish.
- A file's beginning and end (its directory entry) last once the *directory* was synced, which is what POSIX promises;
  Linux keeps more. The VFS `unix` syncs the directory with the first sync of a journal or a WAL that it was asked to
  make (UNIXFILE_DIRSYNC in os_unix.c), and at deletions that ask for it (`syncDir` of xDelete, where a WAL's deletion
  does not). Until then a file may be missing, or be there although it was deleted.
- The `-shm` file is memory: after a cut it is missing or rubbish.
"""

from __future__ import annotations

import itertools
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import apsw
from typing_extensions import override

BASE = "unix"
SECTOR = 512
# Small, so that a run of a hundred transactions has dozens of checkpoints.
AUTOCHECKPOINT_PAGES = 12

# --- sqlite3's face ----------------------------------------------------------------------------------------------

# The errors of sqlite3 that are no OperationalError (`get_exception_class` in Modules/_sqlite/util.c), by result code.
ERRORS: Mapping[int, type[sqlite3.Error]] = {
    apsw.SQLITE_INTERNAL: sqlite3.InternalError,
    apsw.SQLITE_NOTFOUND: sqlite3.InternalError,
    apsw.SQLITE_CORRUPT: sqlite3.DatabaseError,
    apsw.SQLITE_NOTADB: sqlite3.DatabaseError,
    apsw.SQLITE_TOOBIG: sqlite3.DataError,
    apsw.SQLITE_CONSTRAINT: sqlite3.IntegrityError,
    apsw.SQLITE_MISMATCH: sqlite3.IntegrityError,
    apsw.SQLITE_MISUSE: sqlite3.InterfaceError,
}
# What SQLite says where apsw says nothing, since a VFS in Python raised the error (`sqlite3ErrStr` in main.c).
MESSAGES: Mapping[int, str] = {
    apsw.SQLITE_BUSY: "database is locked",
    apsw.SQLITE_READONLY: "attempt to write a readonly database",
    apsw.SQLITE_IOERR: "disk I/O error",
    apsw.SQLITE_CORRUPT: "database disk image is malformed",
    apsw.SQLITE_FULL: "database or disk is full",
    apsw.SQLITE_CANTOPEN: "unable to open database file",
    apsw.SQLITE_NOTADB: "file is not a database",
}
CHANGES_ROWS = re.compile(r"\s*(INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)
SETS_AUTOCHECKPOINT = re.compile(r"\s*PRAGMA\s+wal_autocheckpoint\s*=\s*(\d+)", re.IGNORECASE)


@contextmanager
def sqlite3_errors() -> Iterator[None]:
    """Raise what sqlite3 would raise."""
    try:
        yield
    except (apsw.ConnectionClosedError, apsw.CursorClosedError) as error:
        raise sqlite3.ProgrammingError("Cannot operate on a closed database.") from error
    except apsw.Error as error:
        code = getattr(error, "result", apsw.SQLITE_ERROR)
        found = ERRORS.get(code, sqlite3.OperationalError)(MESSAGES.get(code) or str(error))
        found.sqlite_errorcode = getattr(error, "extendedresult", code)
        raise found from error


class ApswCursor:
    """The part of `sqlite3.Cursor` that a store uses; one row ahead, so that it ends with its last row."""

    def __init__(self, rows: Iterator[tuple[Any, ...]], *, lastrowid: int, rowcount: int) -> None:
        self.lastrowid = lastrowid
        self.rowcount = rowcount
        self._rows = rows
        self._next = next(rows, None)

    def __del__(self) -> None:
        """Reset a statement that nobody has read to its end, of which sqlite3 hears no error."""
        if isinstance(self._rows, apsw.Cursor):
            with suppress(apsw.Error):
                self._rows.close()

    def __iter__(self) -> ApswCursor:
        return self

    def __next__(self) -> tuple[Any, ...]:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def fetchone(self) -> tuple[Any, ...] | None:
        with sqlite3_errors():
            row = self._next
            self._next = None if row is None else next(self._rows, None)
            return row

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self)


class ApswConnection:
    """The part of `sqlite3.Connection` that a store uses, with `isolation_level=None`, on a VFS."""

    def __init__(self, path: str | Path, vfs: str, *, timeout: float) -> None:
        self._autocheckpoint_pages = AUTOCHECKPOINT_PAGES
        with sqlite3_errors():
            self._connection = apsw.Connection(os.fspath(path), vfs=vfs)
            self._connection.set_busy_timeout(round(timeout * 1_000))
            self._connection.set_wal_hook(self._checkpoint)

    def execute(self, sql: str, parameters: Any = ()) -> ApswCursor:
        if found := SETS_AUTOCHECKPOINT.match(sql):
            self._autocheckpoint_pages = int(found[1])
            return ApswCursor(iter([(self._autocheckpoint_pages,)]), lastrowid=0, rowcount=-1)
        return self._run(sql, lambda: self._connection.execute(sql, parameters))

    def executemany(self, sql: str, rows: Iterable[Any]) -> ApswCursor:
        return self._run(sql, lambda: self._connection.executemany(sql, rows))

    def _run(self, sql: str, run: Any) -> ApswCursor:
        with sqlite3_errors():
            before = self._connection.total_changes()
            rows = run()
            changed = self._connection.total_changes() - before
            return ApswCursor(
                rows,
                lastrowid=self._connection.last_insert_rowid(),
                rowcount=changed if CHANGES_ROWS.match(sql) else -1,
            )

    @property
    def in_transaction(self) -> bool:
        with sqlite3_errors():
            return self._connection.in_transaction

    def set_progress_handler(self, handler: Any, n: int) -> None:
        with sqlite3_errors():
            self._connection.set_progress_handler(handler, n)

    def close(self) -> None:
        # Closing tries a checkpoint, of whose errors sqlite3 never hears; apsw passes the VFS's exception on.
        with suppress(apsw.Error):
            self._connection.close()

    def _checkpoint(self, connection: apsw.Connection, name: str, pages: int) -> int:
        """Checkpoint after a commit as SQLite does (`sqlite3WalDefaultHook`), which does not care how it ends.

        It is done here since apsw lets an exception of the VFS fail even the commit, of which SQLite says that it went.
        """
        if 0 < self._autocheckpoint_pages <= pages:
            with suppress(apsw.Error):
                connection.wal_checkpoint(name, apsw.SQLITE_CHECKPOINT_PASSIVE)
        return apsw.SQLITE_OK


class UnsyncedConnection(ApswConnection):
    """A seeded bug: `synchronous` is off, whatever the store asks for."""

    def execute(self, sql: str, parameters: Any = ()) -> ApswCursor:
        return super().execute(re.sub(r"(synchronous\s*=\s*)\w+", r"\1OFF", sql), parameters)


# --- the log -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """A file was there before the run, durably."""

    name: str
    inode: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Created:
    """A file was made."""

    name: str
    inode: int


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes were written."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncated:
    """A file was cut off."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Synced:
    """A file was synced, and perhaps its directory with it."""

    inode: int
    has_directory: bool


@dataclass(frozen=True, slots=True)
class Deleted:
    """A file was deleted, and perhaps its directory synced."""

    name: str
    has_directory: bool


Event = Found | Created | Written | Truncated | Synced | Deleted

_numbers = itertools.count()


class PowerCutVFS(apsw.VFS):
    """Logs what changes the files of one directory, in order.

    It syncs nothing: the machine that runs the test keeps its power.

    Args:
        connection: what the store gets.

        keeps_syncs: whether a sync is one; a disk that answers before it has written keeps none.

        image: the files that are there already, all of them durable; the log begins with them.
    """

    def __init__(
        self,
        *,
        connection: type[ApswConnection] = ApswConnection,
        keeps_syncs: bool = True,
        image: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        self.vfs_name = f"power-cut-{next(_numbers)}"
        super().__init__(self.vfs_name, BASE)
        self._connection = connection
        self._keeps_syncs = keeps_syncs
        self._inodes = {name: next(_numbers) for name in image}
        self.log: list[Event] = [Found(name, inode, image[name]) for name, inode in self._inodes.items()]

    def connect(self, path: str | Path, *, timeout: float = 5.0, **_: object) -> ApswConnection:
        """Connect as `sqlite3.connect` does."""
        return self._connection(path, self.vfs_name, timeout=timeout)

    @override
    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path is None:  # temporary, and gone with the process
            return apsw.VFSFile(BASE, name, flags)
        file = _LoggedFile(self, name, flags)
        file.inode = self._inode(Path(path).name)
        return file

    @override
    def xDelete(self, name: str, syncs_directory: bool) -> None:
        super().xDelete(name, False)
        self._inodes.pop(Path(name).name, None)
        self.log.append(Deleted(Path(name).name, bool(syncs_directory) and self._keeps_syncs))

    def sync(self, inode: int, *, has_directory: bool) -> None:
        """Log a sync."""
        if self._keeps_syncs:
            self.log.append(Synced(inode, has_directory))

    def _inode(self, name: str) -> int:
        """Number a file, which is another one after it was deleted."""
        if name not in self._inodes:
            self._inodes[name] = next(_numbers)
            self.log.append(Created(name, self._inodes[name]))
        return self._inodes[name]


class _LoggedFile(apsw.VFSFile):
    """One open file."""

    inode: int

    def __init__(self, vfs: PowerCutVFS, name: Any, flags: list[int]) -> None:
        super().__init__(BASE, name, flags)
        self._vfs = vfs
        is_journal = flags[0] & (apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL)
        self._owes_directory = bool(is_journal and flags[0] & apsw.SQLITE_OPEN_CREATE)

    @override
    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._vfs.log.append(Written(self.inode, offset, bytes(data)))

    @override
    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._vfs.log.append(Truncated(self.inode, size))

    @override
    def xSync(self, flags: int) -> None:
        self._vfs.sync(self.inode, has_directory=self._owes_directory)
        self._owes_directory = False


# --- the disk ----------------------------------------------------------------------------------------------------

# How likely a write that was not synced is kept whole, and how likely it is torn; one line for each mood of a disk.
MOODS = ((0.0, 0.0), (1.0, 0.0), (0.5, 0.2), (0.2, 0.4), (0.85, 0.1), (0.0, 1.0))


@dataclass(slots=True)
class _File:
    """What is durable of a file, and what has been done to it since."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Written | Truncated] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()


class _Directory:
    """What is durable of a directory and its files, and what has been done to them since."""

    def __init__(self) -> None:
        self.files: dict[int, _File] = {}
        self.entries: dict[str, int | None] = {}
        self.pending: dict[str, list[int | None]] = {}

    def take(self, event: Event) -> None:
        """Let one event happen."""
        match event:
            case Found(name, inode, data):
                self.files[inode] = _File(bytearray(data))
                self.entries[name] = inode
            case Created(name, inode):
                self.files[inode] = _File()
                self.pending.setdefault(name, []).append(inode)
            case Written(inode) | Truncated(inode):
                self.files[inode].pending.append(event)
            case Synced(inode, has_directory):
                self.files[inode].sync()
                self._sync(has_directory)
            case Deleted(name, has_directory):
                self.pending.setdefault(name, []).append(None)
                self._sync(has_directory)

    def _sync(self, has_directory: bool) -> None:
        if has_directory:
            self.entries |= {name: changes[-1] for name, changes in self.pending.items()}
            self.pending.clear()

    def after_cut(self, rng: Random) -> dict[str, bytes]:
        """Choose what is there when the power comes back."""
        mood = rng.choice(MOODS)
        entries = {**self.entries}
        for name, changes in self.pending.items():
            entries[name] = rng.choice([self.entries.get(name), *changes])
        return {
            name: _survivor(self.files[inode], rng, mood)
            for name, inode in sorted(entries.items())
            if inode is not None
        }


def image_after_cut(log: Sequence[Event], rng: Random) -> dict[str, bytes]:
    """Answer the files, by name, after the power failed behind the last event of a log."""
    directory = _Directory()
    for event in log:
        directory.take(event)
    found = directory.after_cut(rng)
    wals = [name for name in found if name.endswith("-wal")]
    rubbish = {f"{name.removesuffix('-wal')}-shm": rng.randbytes(32_768) for name in wals if rng.random() < 0.5}
    return {**found, **rubbish}


def _survivor(file: _File, rng: Random, mood: tuple[float, float]) -> bytes:
    """Choose what is left of one file."""
    whole, torn = mood
    data = bytearray(file.durable)
    for change in file.pending:
        chance = rng.random()
        if chance < whole:
            _apply(data, change)
        elif chance < whole + torn:
            _tear(data, change, rng)
    return bytes(data)


def _apply(data: bytearray, change: Written | Truncated) -> None:
    """Do to bytes what was done to a file."""
    size = change.size if isinstance(change, Truncated) else change.offset + len(change.data)
    if len(data) < size:
        data.extend(bytes(size - len(data)))
    if isinstance(change, Truncated):
        del data[size:]
    else:
        data[change.offset : size] = change.data


def _tear(data: bytearray, change: Written | Truncated, rng: Random) -> None:
    """Write some sectors only; the file grows all the same, by zeros or rubbish. A truncation is done or not."""
    if isinstance(change, Truncated):
        return
    end = change.offset + len(change.data)
    if len(data) < end:
        missing = end - len(data)
        data.extend(rng.randbytes(missing) if rng.random() < 0.5 else bytes(missing))
    for sector in range(change.offset // SECTOR, -(-end // SECTOR)):
        start, stop = max(change.offset, sector * SECTOR), min(end, (sector + 1) * SECTOR)
        if rng.random() < 0.5:
            data[start:stop] = change.data[start - change.offset : stop - change.offset]
