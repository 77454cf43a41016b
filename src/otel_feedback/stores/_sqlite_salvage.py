"""What can be read of a damaged file is copied into a new one.

Everything about going around damage lives here; this file opens none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pydantic_core

from otel_feedback._record import handle_from_json, record_from_json
from otel_feedback.stores import TRANSITIONS, UNROUTED
from otel_feedback.stores._sqlite_schema import SCHEMA_VERSION, descend, migrate, span_of

if TYPE_CHECKING:
    from otel_feedback.stores import State

_STATES: Mapping[str, str] = {state: state for state in TRANSITIONS.values()}
# What a column has to be to be of any use: a damaged page may look like a good one.
_TEXTS: Mapping[str, Callable[[str], object]] = {
    "call": span_of,
    "handle": handle_from_json,
    "body": record_from_json,
    "state": _STATES.__getitem__,
    **dict.fromkeys(("parts", "standing", "destinations"), pydantic_core.from_json),
    **dict.fromkeys(("kind", "key", "id", "name", "destination", "reason", "record_id"), str),
}
# What keeps from reading and is no damage: taken for damage, it would leave an empty file.
_PASSES = ("unable to open database file", "database is locked", "database or disk is full", "interrupted")
# So many numbers are tried one by one; a step of doubling size may go over what can be read.
_NEAR = 1_000
# A number beyond which no row is looked for.
_LAST = 2**62

_DROP_STRAY = "DELETE FROM deliveries WHERE sequence NOT IN (SELECT sequence FROM records)"
# Read from the index, which names what the table has lost.
_NAMED = "SELECT destination, sequence FROM deliveries INDEXED BY deliveries_by_id"
_NOWHERE = "SELECT sequence FROM records AS r WHERE NOT EXISTS (SELECT 1 FROM deliveries AS d WHERE d.id = r.id)"
_LATEST = """
SELECT id, call, put_at FROM records AS r
WHERE sequence = ? AND NOT EXISTS (SELECT 1 FROM records AS newer WHERE newer.id = r.id AND newer.revision > r.revision)
"""
_SEND_AGAIN = """
INSERT OR IGNORE INTO deliveries (destination, sequence, id, span, state, due, accepted_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_COUNT_AGAIN = """
UPDATE tallies SET count = (
    SELECT count(*) FROM deliveries AS d WHERE d.destination = tallies.destination
    AND CASE d.state WHEN 'leased' THEN 'pending' ELSE d.state END = tallies.state
    AND CASE d.state WHEN 'skipped' THEN coalesce(d.reason, '') ELSE '' END = tallies.reason
)
"""


def salvage(damaged: sqlite3.Connection, fresh: sqlite3.Connection) -> dict[str, int]:
    """Copy every row that can be read into an empty file's open transaction; answer how many, by table.

    A record whose delivery cannot be read goes to that destination once more, under the ids that the vendor knows. A
    pause is found again.
    """
    # Of a damaged schema, too, what can be read is used (https://www.sqlite.org/pragma.html#pragma_writable_schema).
    damaged.execute("PRAGMA writable_schema = ON")
    (version,) = next(iter(_Rows(damaged, "PRAGMA user_version")), (SCHEMA_VERSION,))
    version = min(max(version, 1), SCHEMA_VERSION)
    (last,) = next(iter(_Rows(damaged, "SELECT seq FROM sqlite_sequence WHERE name = 'records'")), (0,))
    migrate(fresh, 0, version)
    saved = {
        "keys": _copy(damaged, fresh, "keys", "rowid"),
        "records": _copy(damaged, fresh, "records", "sequence"),
        "deliveries": sum(
            _copy(damaged, fresh, "deliveries", "sequence", of=destination) for destination in _destinations(damaged)
        ),
        "parked": _copy(damaged, fresh, "parked", "rowid"),
    }
    migrate(fresh, version)
    for store, generation in _Rows(damaged, "SELECT id, generation FROM origin LIMIT 1"):
        if isinstance(store, str) and isinstance(generation, int):
            descend(fresh, store, generation)
    fresh.execute(_DROP_STRAY)
    saved["deliveries that are made again"] = _send_again(fresh, _Rows(damaged, _NAMED)) + _send_again(
        fresh, [(UNROUTED, sequence) for (sequence,) in fresh.execute(_NOWHERE).fetchall()]
    )
    fresh.execute(_COUNT_AGAIN)
    # No number is given twice: a lease of before may still be settled.
    fresh.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'records'", (last,))
    return saved


def _destinations(damaged: sqlite3.Connection) -> list[str]:
    """Name every destination of a damaged file, wherever it can still be read."""
    places = ("tallies", "deliveries INDEXED BY deliveries_by_id", "deliveries NOT INDEXED")
    queries = [f"SELECT DISTINCT destination FROM {place}" for place in places]  # noqa: S608 (names of our own schema)
    return list(dict.fromkeys(name for query in queries for (name,) in _Rows(damaged, query)))


def _send_again(fresh: sqlite3.Connection, deliveries: Iterable[tuple[str, int]]) -> int:
    """Let records go where they have no delivery, if they are the newest of their judgement; answer how many."""
    made = 0
    for destination, sequence in deliveries:
        for record_id, call, put_at in fresh.execute(_LATEST, (sequence,)).fetchall():
            pending: State = "pending"
            row = (destination, sequence, record_id, span_of(call), pending, put_at, put_at)
            made += fresh.execute(_SEND_AGAIN, row).rowcount
    return made


def _copy(
    damaged: sqlite3.Connection, fresh: sqlite3.Connection, table: str, number: str, of: str | None = None
) -> int:
    """Copy what can be read of a table, or of one destination in it, in the order of a number; answer how many rows."""
    columns = [name for (name,) in fresh.execute(f"SELECT name FROM pragma_table_info('{table}')")]  # noqa: S608 (ours)
    names, holes = ", ".join(columns), ", ".join("?" * len(columns))
    insert = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({holes})"  # noqa: S608 (as above)
    where = "" if of is None else "destination = ? AND "
    query = (
        f"SELECT {number}, {names} FROM {table} NOT INDEXED "  # noqa: S608 (as above)
        f"WHERE {where}{number} >= ? ORDER BY {number}"
    )
    rows = _around_damage(lambda start, more="": _Rows(damaged, query + more, (start,) if of is None else (of, start)))
    return sum(fresh.execute(insert, row).rowcount for _, *row in rows if _is_whole(columns, row))


def _around_damage(read: Callable[..., _Rows]) -> Iterator[Any]:
    """Answer every row that can be read, in the order of its number, going on behind each damaged place."""
    start = 0
    while start < _LAST:
        rows = read(start)
        for row in rows:
            if _is_next(row, start):
                yield row
                start = row[0] + 1
        if not rows.is_cut:
            return
        # Python reads one row ahead, and loses the last good one with it: those are read one at a time.
        while (one := list(read(start, " LIMIT 1"))) and _is_next(one[0], start):
            yield one[0]
            start = one[0][0] + 1
        start = _beyond(start, read)


def _is_next(row: Sequence[Any], start: int) -> bool:
    """Tell whether a row has a number that comes next: in a damaged tree it may be any, or none."""
    return type(row[0]) is int and row[0] >= start


def _beyond(start: int, read: Callable[..., _Rows]) -> int:
    """Find a number after one that cannot be read: doubling the step until one can be, and halving it back."""

    def is_readable(number: int) -> bool:
        rows = read(number, " LIMIT 1")
        return all(_is_next(row, number) for row in rows) and not rows.is_cut

    for number in range(start + 1, start + _NEAR):  # what lies between two damaged places may be short
        if is_readable(number):
            return number
    step = _NEAR
    while start + step < _LAST and not is_readable(start + step):
        step *= 2
    low, high = start + step // 2, start + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_readable(middle) else (middle, high)
    return high


def _is_whole(columns: Sequence[str], row: Sequence[Any]) -> bool:
    """Tell whether the values of a row are what they should be: a damaged page may look like a good one."""
    try:
        for name, value in zip(columns, row, strict=True):
            if value is None:
                continue
            if (check := _TEXTS.get(name)) is not None and isinstance(value, str):
                check(value)
            elif check is not None or not isinstance(value, int):
                return False
    except Exception:  # noqa: BLE001 (whatever a parser makes of what it cannot read)
        return False
    return True


class _Rows:
    """The rows of a query up to where the file is damaged; then it `is_cut`."""

    def __init__(self, connection: sqlite3.Connection, query: str, parameters: Sequence[Any] = ()) -> None:
        self._connection = connection
        self._query = query
        self._parameters = parameters
        self.is_cut = False

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._connection.execute(self._query, self._parameters)
        except (sqlite3.Error, UnicodeDecodeError) as error:  # some damage is in the error's own text
            if str(error).startswith(_PASSES):
                raise
            self.is_cut = True
