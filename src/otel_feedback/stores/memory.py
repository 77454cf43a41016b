"""The store that lives in this process's memory and survives nothing: for tests, and for apps that accept loss."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from otel_feedback._time import Clock, SystemClock
from otel_feedback.exceptions import StoreError
from otel_feedback.stores._forks import tell_of_forks
from otel_feedback.stores._sql import SQLStore
from otel_feedback.stores._sqlite_schema import migrate

T = TypeVar("T")

# What a child leaves to its parent: everything but the keys.
_LEAVE = ("DELETE FROM deliveries", "DELETE FROM records", "DELETE FROM parked", "DELETE FROM tallies")


class MemoryStore(SQLStore):
    """The index and the outbox in a SQLite database in memory.

    A forked child keeps the index and starts with an empty outbox: what was recorded before is its parent's to deliver.

    Args:
        max_queue_size: how many records may wait at a destination; more are refused. By default, any number.

        clock: what tells the time.
    """

    durability = "memory"

    def __init__(self, *, max_queue_size: int | None = None, clock: Clock | None = None) -> None:
        self._memory = _Memory()
        super().__init__(self._memory, max_queue_size=max_queue_size, clock=clock or SystemClock())

    def __repr__(self) -> str:
        """Say what it is."""
        return "<MemoryStore>"

    def open(self) -> None:
        """Do nothing: memory is open."""

    def close(self) -> None:
        """Do nothing: what is in memory goes with the process."""


class _Memory:
    """Runs transactions in a database in memory, one at a time."""

    url = "memory:"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        migrate(self._connection, 0)
        tell_of_forks(self)

    def __del__(self) -> None:
        """Give the memory back."""
        self._connection.close()

    def write(self, action: Callable[[Any], T], *, is_vital: bool = False) -> T:  # noqa: ARG002 (memory has no ballast)
        """Run an action in a transaction and commit it."""
        with self._lock:
            if self._connection.in_transaction:
                # A finaliser has come in the middle of a transaction of its own thread.
                raise StoreError(f"the store {self.url} failed: it was used within a transaction", store=self.url)
            self._connection.execute("BEGIN")
            try:
                result = action(self._connection)
                self._connection.execute("COMMIT")
            except BaseException as error:
                self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise StoreError(f"the store {self.url} failed: {error}", store=self.url) from error
                raise
            return result

    def read(self, action: Callable[[Any], T]) -> T:
        """Run an action that only reads."""
        with self._lock:
            return action(self._connection)

    def erase_traces(self) -> None:
        """Do nothing: there is no log and no other file."""

    def discard_aside(self, before_unix_nano: int) -> None:
        """Do nothing: the same."""

    def before_fork(self) -> None:
        """Let no thread be in the database at the fork: SQLite's own locks would stay locked in the child."""
        self._lock.acquire()

    def after_fork(self, *, is_child: bool) -> None:
        """Let it be used again; a child gives up the parent's outbox."""
        if is_child:
            for statement in _LEAVE:
                self._connection.execute(statement)
        self._lock.release()
