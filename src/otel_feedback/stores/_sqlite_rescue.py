"""What is done about a file that is damaged or gone: it is kept aside and saved from, or put back.

Each ends with one rename, so that whoever is interrupted leaves the old file or the whole new one.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from otel_feedback._time import iso_utc
from otel_feedback.stores._sqlite_salvage import salvage
from otel_feedback.stores._sqlite_schema import descend

if sys.platform != "win32":  # pragma: no branch (where an open file cannot be moved by another process either)
    import fcntl

logger = logging.getLogger(__name__)

Connect = Callable[..., Any]
Inode = tuple[int, int]

# Whoever waits this long for another to replace a file has found a stuck process.
LOCK_SECONDS = 10
POLL_SECONDS = 0.01
_LOGS = ("-wal", "-shm")


def inode(path: Path | str) -> Inode | None:
    """Tell which file a path names, if any."""
    try:
        found = os.stat(path)  # noqa: PTH116 (asked at each write; a path object would cost as much as the answer)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def named(path: Path | str) -> Inode | None:
    """Tell which file a path names, if any that has something in it: beside an empty one SQLite deletes the log."""
    try:
        found = os.stat(path)  # noqa: PTH116 (as above)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_size else None


def size(path: Path) -> int:
    """Measure a file; one that is not there is empty."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextmanager
def alone(directory: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Be the only process that replaces a file there: under a lock on the directory, which leaves no file behind.

    Raises:
        TimeoutError: when somebody else is it for so long.
    """
    if sys.platform == "win32":  # pragma: no cover (see the import)
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        for _ in range(round(seconds / POLL_SECONDS)):
            if _is_locked(descriptor):
                break
            threading.Event().wait(POLL_SECONDS)
        else:  # a stopped process, another program, or this thread's own caller
            raise TimeoutError(errno.ETIMEDOUT, "somebody holds the directory's lock", str(directory))
        yield
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Take the lock, if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sweep(path: Path) -> None:
    """Finish what somebody who was interrupted had saved, and delete what is half made; nobody else may be at it."""
    if size(path) == 0 and _saved(path).exists():
        _put_in_place(path, _saved(path))
    made = (_saved(path), _growing(path), *(_log(_growing(path), suffix) for suffix in ("-journal", *_LOGS)))
    for leftover in (*made, *path.parent.glob(f"{glob.escape(path.name)}-ballast.*")):
        with contextlib.suppress(OSError):
            leftover.unlink()


def replace_damaged(path: Path, connect: Connect, now_unix_nano: int, error: Exception) -> None:
    """Put a damaged file aside and what can be read of it in its place; nobody else may be at it.

    The name of the damaged file goes in one rename, under its own write lock: whoever has it open and has written to
    it has done so before it was read, or finds it moved. From then on whoever opens the file finishes the rest.
    """
    sweep(path)
    aside = _aside(path, now_unix_nano)
    damaged = connect(path, isolation_level=None)
    try:
        _keep_writers_out(damaged)
        saved = _save(damaged, path, connect)
        _keep(path)
        logger.critical("the store %s is damaged (%s); it is kept as %s", path, error, aside)
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
    finally:
        with contextlib.suppress(sqlite3.Error):  # closing alone keeps the lock, as long as anybody holds a cursor
            damaged.execute("ROLLBACK")
        damaged.close()
    if size(log_of(path)):
        log_of(path).rename(log_of(aside))
    _put_in_place(path, _saved(path))
    counts = ", ".join(f"{count} {what}" for what, count in saved.items())
    logger.critical("the store %s goes on with what could be read: %s", path, counts)


def put_back(
    path: Path, connection: Any, connect: Connect, *, known: Sequence[Inode | None], now_unix_nano: int
) -> None:
    """Put a copy of the file that a connection has open where it, or its log, is not any more.

    Nobody else may be at it. What others have written there meanwhile is kept aside: a file that is not the known one,
    or a log.
    """
    sweep(path)
    origins: Sequence[tuple[str, int]] = ()
    try:
        connection.execute("VACUUM INTO ?", (str(_growing(path)),))
        origins = connection.execute("SELECT id, generation FROM origin").fetchall()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:  # it is damaged, too
        sweep(path)
        _save(connection, path, connect)
    file, *others = (found not in (None, one) for found, one in zip((inode(path), *logs(path)), known, strict=True))
    is_foreign = size(path) > 0 and (file or (any(others) and size(log_of(path)) > 0))
    if not is_foreign:  # else it does not have all that the others have
        _descend(path, origins, connect)
    _keep(path)
    if is_foreign:
        aside = _aside(path, now_unix_nano)
        logger.critical("what others have written to the store %s meanwhile is kept as %s", path, aside)
        path.rename(aside)
        with contextlib.suppress(FileNotFoundError):
            log_of(path).rename(log_of(aside))
    _put_in_place(path, _saved(path))
    logger.critical("a file of the store %s has vanished; it was put back with all that it had", path)


@contextmanager
def saved(damaged: Any, path: Path, connect: Connect) -> Iterator[Any]:
    """Open what can be read of a damaged file, for a while; nobody else may be at it."""
    sweep(path)
    _save(damaged, path, connect)
    connection = connect(_growing(path), isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()
        sweep(path)


def kept_aside(path: Path) -> Sequence[Path]:
    """List the damaged files that were kept, with their logs."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.damaged-*"))


def discard_aside(path: Path, before_unix_nano: int) -> None:
    """Delete the damaged files that were last written before a time."""
    for kept in kept_aside(path):
        with contextlib.suppress(OSError):
            if kept.stat().st_mtime_ns < before_unix_nano:
                kept.unlink()
                logger.warning("the damaged file %s is older than what is kept, and was deleted", kept)


def make_directory(directory: Path) -> None:
    """Make a file's directory; our own default one gets a `.gitignore`, as pytest's cache does."""
    if directory.is_dir():
        return
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # what people wrote is in it
    # A file that is synced is lost with a directory that is not.
    for each in (directory, *directory.parents):
        with contextlib.suppress(OSError):  # one that is not ours to open was there before
            _sync(each)
    if directory.name == ".otel_feedback":
        (directory / ".gitignore").write_bytes(b"# made by otel-feedback\n*\n")


def log_of(path: Path) -> Path:
    """Name the write-ahead log of a file."""
    return _log(path, "-wal")


def logs(path: Path) -> Sequence[Inode | None]:
    """Tell which log is beside a file, and which index of it."""
    return [inode(f"{path}{suffix}") for suffix in _LOGS]


def remove_logs(path: Path) -> None:
    """Delete the log that is beside a file, and its index."""
    for suffix in _LOGS:
        _log(path, suffix).unlink(missing_ok=True)


def _growing(path: Path) -> Path:
    """Name the file that is made before it takes another's place."""
    return path.with_name(f"{path.name}.new")


def _log(path: Path, suffix: str) -> Path:
    """Name a file that SQLite keeps beside another."""
    return path.with_name(f"{path.name}{suffix}")


def _saved(path: Path) -> Path:
    """Name what has been saved of a damaged file, until it takes its place."""
    return path.with_name(f"{path.name}.saved")


def _aside(path: Path, now_unix_nano: int) -> Path:
    """Name what is kept of a file that another one replaces."""
    return path.with_name(f"{path.name}.damaged-{iso_utc(now_unix_nano).replace(':', '').replace('.', '')}")


def _keep(path: Path) -> None:
    """Keep what was made as what has been saved: from now on whoever opens the file puts it in place."""
    _sync(_growing(path))
    _growing(path).rename(_saved(path))
    _sync(path.parent)


def _keep_writers_out(damaged: Any) -> None:
    """Take a damaged file's write lock, where the damage leaves that to be taken."""
    try:
        damaged.execute("BEGIN IMMEDIATE")
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # locked, full, no descriptor: that passes
            raise


def _descend(path: Path, origins: Sequence[tuple[str, int]], connect: Connect) -> None:
    """Mark the new file as what has become of another one."""
    fresh = connect(_growing(path), isolation_level=None)
    try:
        for origin in origins:
            descend(fresh, *origin)
    finally:
        fresh.close()


def _save(damaged: Any, path: Path, connect: Connect) -> dict[str, int]:
    """Fill a new file with what can be read of a damaged one; answer how many rows, by table."""
    fresh = connect(_growing(path), isolation_level=None)
    try:
        fresh.execute("PRAGMA secure_delete = ON")
        fresh.execute("BEGIN IMMEDIATE")
        saved = salvage(damaged, fresh)
        fresh.execute("COMMIT")
    finally:
        fresh.close()
    return saved


def _put_in_place(path: Path, made: Path) -> None:
    """Give the file that was made its name, for good."""
    remove_logs(path)  # what another file's log has left would be read into it
    _sync(made)
    made.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Sync a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
