"""The embedded store: one SQLite file that any number of processes share."""

from __future__ import annotations

import sqlite3
import warnings
from pathlib import Path
from typing import Literal

from otel_feedback._time import Clock, SystemClock
from otel_feedback.stores._sql import SQLStore
from otel_feedback.stores._sqlite_file import SQLiteFile
from otel_feedback.stores._sqlite_rescue import Connect


class SQLiteStore(SQLStore):
    """The index and the outbox in one SQLite file in WAL mode, one transaction a method.

    Args:
        path: the file; it and its directory are made when they are missing.

        durability: `disk` syncs each commit (`synchronous=FULL`), `process` leaves that to checkpoints (`NORMAL`).

        max_queue_size: how many records may wait at a destination; more are refused. By default, any number.

        clock: what tells the time.

        connect: opens a connection, as `sqlite3.connect` does.

    The path is taken as it was when the store was made, so a later change of directory does not move it. A file that
    is deleted while it is open is put back, or what it had goes into the store that has taken its place; one that is
    damaged is kept aside, under a name of its own, and what can be read of it goes on.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        durability: Literal["disk", "process"] = "disk",
        max_queue_size: int | None = None,
        clock: Clock | None = None,
        connect: Connect = sqlite3.connect,
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self.durability: str = durability
        clock = clock or SystemClock()
        self._file = SQLiteFile(self.path, durability=durability, clock=clock, connect=connect)
        super().__init__(self._file, max_queue_size=max_queue_size, clock=clock)

    def __del__(self) -> None:
        """Warn when the file was left open, and close it."""
        file: SQLiteFile | None = getattr(self, "_file", None)  # none, where the path was no path
        if file is not None and file.is_open:
            warnings.warn(f"{self!r} was collected open; close it", ResourceWarning, source=self, stacklevel=2)
            file.close()

    def __repr__(self) -> str:
        """Name the file and whether it is open."""
        return f"<SQLiteStore path={str(self.path)!r} {'open' if self._file.is_open else 'closed'}>"

    # --- life cycle ---

    def open(self) -> None:
        """Open the file, making it when it is missing.

        Raises:
            StoreError: when it cannot be made or written, is not ours, or was written by a newer release.
        """
        self._file.write(lambda _: None, is_vital=True)  # what was accepted goes on, however full the disk is

    def close(self) -> None:
        """Close the file; using the store again opens it again."""
        self._file.close()
