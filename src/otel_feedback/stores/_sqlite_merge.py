"""What a file that was replaced knows goes into the one that has taken its place.

Everything about telling which of two files knows more of a judgement lives here; this file opens none.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from otel_feedback.stores._sqlite_schema import scalar

# A file that was put back, or saved from damage, has all that the one before it had, but for what was removed since.
_IS_LATER = """
SELECT count(*) FROM main.origin AS mine JOIN other.origin AS theirs ON theirs.id = mine.id
WHERE theirs.generation > mine.generation
"""
_SAME = "(there.id, there.revision, there.put_at) = (here.id, here.revision, here.put_at)"
_MISSING = f"""
SELECT here.id, here.sequence, here.put_at FROM main.records AS here
WHERE NOT EXISTS (SELECT 1 FROM other.records AS there WHERE {_SAME}) ORDER BY here.sequence
"""  # noqa: S608 (a text of our own)
# When the other file was last told something of a judgement that this one does not know.
_TOLD = f"""
SELECT max(there.put_at) FROM other.records AS there
WHERE there.id = ? AND NOT EXISTS (SELECT 1 FROM main.records AS here WHERE {_SAME})
"""  # noqa: S608 (a text of our own)
_LATEST = "SELECT sequence FROM main.records WHERE id = ? ORDER BY revision DESC LIMIT 1"
_REVISION = "SELECT revision FROM main.records WHERE id = ? AND sequence = ?"
_NEXT_REVISION = "SELECT max(revision) + 1 FROM other.records WHERE id = ?"
_COPY_RECORD = """
INSERT INTO other.records (revision, {columns}) SELECT ?, {columns} FROM main.records WHERE id = ? AND sequence = ?
"""
# The index is named: the table's own order begins with the destination.
_COPY_DELIVERIES = """
INSERT INTO other.deliveries (sequence, {columns}) SELECT ?, {columns} FROM main.deliveries INDEXED BY deliveries_by_id
WHERE id = ? AND sequence = ?
"""
_REPLACE = """
UPDATE other.deliveries SET state = CASE WHEN (SELECT retracts FROM other.records WHERE sequence = :number)
    THEN 'retracted' ELSE 'superseded' END
WHERE id = :id AND sequence < :number AND state = 'pending'
AND destination IN (SELECT destination FROM other.deliveries WHERE id = :id AND sequence = :number)
"""
# What of a delivery is news, where the other file only knows that it waits.
_NEWS = "state, due, fence, attempts, reason, parts, held, standing"
_SETTLED = f"""
SELECT {", ".join(f"mine.{name}" for name in _NEWS.split(", "))}, theirs.destination, theirs.sequence
FROM other.deliveries AS theirs
JOIN other.records AS there ON there.sequence = theirs.sequence
JOIN main.records AS here ON {_SAME}
JOIN main.deliveries AS mine ON mine.sequence = here.sequence AND mine.destination = theirs.destination
WHERE theirs.state = 'pending' AND (mine.state NOT IN ('pending', 'leased') OR mine.attempts > theirs.attempts)
"""  # noqa: S608 (a text of our own)
_SETTLE = f"""
UPDATE other.deliveries SET ({_NEWS}) = (?, ?, ?, ?, ?, ?, ?, ?) WHERE destination = ? AND sequence = ?
"""  # noqa: S608 (a text of our own)
_COPY_KEYS = """
INSERT INTO other.keys ({columns}) SELECT {columns} FROM main.keys WHERE true ORDER BY rowid
ON CONFLICT (kind, key, call) DO UPDATE SET bound_at = excluded.bound_at, handle = excluded.handle
WHERE excluded.bound_at > bound_at
"""
_COPY_PARKED = """
INSERT OR REPLACE INTO other.parked ({columns}) SELECT {columns} FROM main.parked AS here WHERE NOT EXISTS (
    SELECT 1 FROM other.parked AS there WHERE there.id = here.id AND (
        there.record_id IS NOT NULL OR here.record_id IS NULL AND there.recorded_at >= here.recorded_at
    )
) ORDER BY rowid
"""


def bring_over(connection: Any, path: Path) -> int:
    """Bring what the open file knows, and the one at a path does not, into that one; answer how many records.

    Both have the newest schema. Whichever was told last has a judgement's last word. The records get new numbers, in
    their order: a lease of before settles nothing of the other file.
    """
    with _beside(connection, path):
        if scalar(connection, _IS_LATER):
            return 0
        connection.executemany(_SETTLE, connection.execute(_SETTLED).fetchall())
        count = _bring_records(connection)
        for statement, table in ((_COPY_KEYS, "keys"), (_COPY_PARKED, "parked")):
            connection.execute(statement.format(columns=_columns(connection, table)))
    return count


def _bring_records(connection: Any) -> int:
    """Bring the records that the other file does not have, with their deliveries; answer how many."""
    copy_record = _COPY_RECORD.format(columns=_columns(connection, "records", without=("sequence", "revision")))
    known = _columns(connection, "deliveries", without=("sequence",))
    # What stands, and of which parts, is told by revisions: where these get other numbers it is not known any more.
    renumbered = _columns(connection, "deliveries", without=("sequence", "parts", "standing"))
    count = 0
    for record_id, sequence, put_at in connection.execute(_MISSING).fetchall():
        place = (record_id, sequence)
        told = connection.execute(_TOLD, (record_id,)).fetchone()[0]
        if told is None:
            revision = connection.execute(_REVISION, place).fetchone()[0]
        elif told < put_at and (sequence,) == connection.execute(_LATEST, (record_id,)).fetchone():
            revision = connection.execute(_NEXT_REVISION, (record_id,)).fetchone()[0]
        else:  # they have said something else since
            continue
        number = connection.execute(copy_record, (revision, *place)).lastrowid
        columns = known if told is None else renumbered
        connection.execute(_COPY_DELIVERIES.format(columns=columns), (number, *place))
        connection.execute(_REPLACE, {"id": record_id, "number": number})
        count += 1
    return count


@contextmanager
def _beside(connection: Any, path: Path) -> Iterator[None]:
    """Attach a file to a connection for one transaction."""
    _part(connection)  # of one that an interrupt has left there
    try:
        connection.execute("ATTACH ? AS other", (str(path),))
        # Not the words of every other transaction: Python keeps those prepared, to lock the first file alone.
        connection.execute("BEGIN IMMEDIATE TRANSACTION")
        yield
        connection.execute("COMMIT")
    finally:
        _part(connection)


def _part(connection: Any) -> None:
    """End a transaction that was not committed, and detach the file, whichever of them there is."""
    for statement in ("ROLLBACK", "DETACH other"):
        with contextlib.suppress(sqlite3.Error):
            connection.execute(statement)


def _columns(connection: Any, table: str, without: tuple[str, ...] = ()) -> str:
    """Name the columns of a table."""
    names = connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
    return ", ".join(name for (name,) in names if name not in without)
