"""What the tests of the SQLite file share: connections that fail as told, damage, deletion, and other processes."""

from __future__ import annotations

import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import Self

from otel_feedback._time import SystemClock
from otel_feedback.stores._sqlite_file import SQLiteFile
from otel_feedback.stores._sqlite_rescue import Connect

PAGE = 4096
DEADLINE_SECONDS = 20


# --- connections ---------------------------------------------------------------------------------------------------


class Watched:
    """A real connection that shows each statement to somebody before it runs."""

    def __init__(self, connection: sqlite3.Connection, before: Callable[[str], None]) -> None:
        self._connection = connection
        self._before = before

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        self._before(sql)
        return self._connection.execute(sql, parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def watched_by(before: Callable[[str], None]) -> Connect:
    """Make a `connect` whose connections show their statements."""
    return lambda *args, **kwargs: Watched(sqlite3.connect(*args, **kwargs), before)


@dataclass
class Script:
    """Counts the statements that begin with a word, and fails or does something at chosen ones.

    `on(word, act)` runs at the next statement that begins with the word, once for each time it was asked for.
    """

    seen: dict[str, int] = field(default_factory=dict)
    _acts: list[tuple[str, Callable[[], object]]] = field(default_factory=list)

    def __call__(self, sql: str) -> None:
        sql = sql.strip()
        self.seen[sql.partition(" ")[0]] = self.seen.get(sql.partition(" ")[0], 0) + 1
        for number, (start, act) in enumerate(self._acts):
            if sql.startswith(start):
                del self._acts[number]
                act()
                return

    def on(self, start: str, act: Callable[[], object]) -> None:
        self._acts.append((start, act))

    def fail(self, start: str, words: str, error: type[sqlite3.Error] = sqlite3.OperationalError) -> None:
        def fail() -> None:
            raise error(words)

        self.on(start, fail)


class Disk:
    """A full disk: while the file that is set aside is there, nothing that writes succeeds; reading does.

    `is_empty_aside` says that there is no room even when that is gone.
    """

    WRITES = (
        "INSERT",
        "UPDATE",
        "DELETE",
        "PRAGMA user_version =",
        "PRAGMA application_id =",
        "CREATE",
        "ALTER",
        "VACUUM",
    )

    def __init__(self, ballast: Path) -> None:
        self._ballast = ballast
        self.is_full = False
        self.has_room_behind_ballast = True
        self.words = "database or disk is full"

    def __call__(self, sql: str) -> None:
        fits = self.has_room_behind_ballast and not self._ballast.exists()
        if self.is_full and not fits and sql.strip().startswith(self.WRITES):
            raise sqlite3.OperationalError(self.words)


def make_file(path: Path, connect: Connect = sqlite3.connect) -> SQLiteFile:
    """Make a file on its own, with a table of its own to write into."""
    file = SQLiteFile(path, durability="process", clock=SystemClock(), connect=connect)
    file.write(lambda connection: connection.execute("CREATE TABLE IF NOT EXISTS notes (note)"))
    return file


def note(text: object) -> Callable[[Any], object]:
    """Make an action that writes one note."""
    return lambda connection: connection.execute("INSERT INTO notes VALUES (?)", (text,))


def notes(file: SQLiteFile) -> list[Any]:
    """Read the notes."""
    return [row[0] for row in file.read(lambda c: c.execute("SELECT note FROM notes ORDER BY note").fetchall())]


# --- threads -------------------------------------------------------------------------------------------------------


def until(is_so: Callable[[], object]) -> None:
    """Look again and again until something is so."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.001)


class Caller(threading.Thread):
    """A thread that calls something and keeps what came of it; one that hangs does not keep the tests from ending."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:  # noqa: BLE001 (whatever it is, the test shall see it)
            self.error = error

    def ended(self, seconds: float = DEADLINE_SECONDS) -> bool:
        self.join(seconds)
        return not self.is_alive()


# --- damage --------------------------------------------------------------------------------------------------------


def checkpoint(path: Path) -> None:
    """Bring the log into the file."""
    connection = sqlite3.connect(path)
    assert 0 == connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    connection.close()


def root_page(path: Path, name: str) -> int:
    """Find where a table or an index begins."""
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    connection.close()
    return int(page)


def leaves(path: Path, root: int) -> list[int]:
    """List the leaf pages of a tree, in their order (https://www.sqlite.org/fileformat2.html#b_tree_pages)."""
    data = path.read_bytes()

    def walk(number: int) -> list[int]:
        start = (number - 1) * PAGE
        kind, _, cells = struct.unpack_from(">BHH", data, start)
        if kind in {10, 13}:
            return [number]
        places = struct.unpack_from(f">{cells}H", data, start + 12)
        children = [struct.unpack_from(">I", data, start + place)[0] for place in places]
        (last,) = struct.unpack_from(">I", data, start + 8)
        return [leaf for child in (*children, last) for leaf in walk(child)]

    return walk(root)


def rows_in(path: Path, page: int) -> int:
    """Count the rows in a leaf page."""
    return int(struct.unpack_from(">H", path.read_bytes(), (page - 1) * PAGE + 3)[0])


def destroy(path: Path, page: int) -> None:
    """Overwrite a page with what no page can be."""
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xab" * PAGE)


def kept_aside(path: Path) -> list[Path]:
    """List the damaged files that were kept."""
    found = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(each for each in found if not each.name.endswith(("-wal", "-shm")))


# --- processes -----------------------------------------------------------------------------------------------------

# Does what it is told, a line at a time: an expression on `store`, `record(number)` and `leased(destination)`.
WORKER = """
import logging, sys
from pathlib import Path
from opentelemetry.trace import SpanContext
from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord
from otel_feedback.stores.sqlite import SQLiteStore

logging.disable()
store = SQLiteStore(sys.argv[1])

def record(number):
    return FeedbackRecord(
        id=str(number), handle=FeedbackHandle(SpanContext(1, number + 1, True)), name="rating", value=True
    )

def leased(destination):
    return [lease.record.id for lease in store.lease(destination, limit=1000, duration_millis=3_600_000)]

for line in sys.stdin:
    try:
        print(repr(eval(line)), flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
store.close()
"""


class Worker:
    """Another process that has a store open and does what it is told."""

    def __init__(self, path: Path, program: str = WORKER) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.communicate(timeout=DEADLINE_SECONDS)
        self._process.stdout.close()  # type: ignore[union-attr]  # it is a pipe
        self._process.stdin.close()  # type: ignore[union-attr]  # the same

    def tell(self, expression: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{expression}\n")

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, expression: str) -> str:
        self.tell(expression)
        return self.hear()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def together(workers: Sequence[Worker], expression: str) -> list[str]:
    """Tell several processes the same at once."""
    for worker in workers:
        worker.tell(expression)
    return [worker.hear() for worker in workers]
