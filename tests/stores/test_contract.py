"""Both stores keep the contract of `Store`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from otel_feedback._time import Clock
from otel_feedback.stores._sql import SQLStore
from otel_feedback.stores.memory import MemoryStore, _Memory
from otel_feedback.stores.sqlite import SQLiteStore
from otel_feedback.testing import StoreContract

T = TypeVar("T")


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(clock=self.clock)

    @pytest.fixture
    def limited_store(self) -> MemoryStore:
        return MemoryStore(max_queue_size=3, clock=self.clock)


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[SQLiteStore]:
        with closing(SQLiteStore(tmp_path / "feedback.db", clock=self.clock)) as store:
            store.open()
            yield store

    @pytest.fixture
    def limited_store(self, tmp_path: Path) -> Iterator[SQLiteStore]:
        with closing(SQLiteStore(tmp_path / "limited.db", max_queue_size=3, clock=self.clock)) as store:
            store.open()
            yield store


class _WithoutCursors(_Memory):
    """A memory that lets no cursor out: one that is alive keeps a file open that was closed for a fork."""

    def write(self, action: Callable[[Any], T], *, is_vital: bool = False) -> T:
        return _no_cursor(super().write(action, is_vital=is_vital))

    def read(self, action: Callable[[Any], T]) -> T:
        return _no_cursor(super().read(action))


def _no_cursor(result: T) -> T:
    assert not isinstance(result, sqlite3.Cursor)
    return result


class _CheckedStore(MemoryStore):
    """A store that is asked for no cursor."""

    def __init__(self, *, max_queue_size: int | None = None, clock: Clock) -> None:
        self._memory = _WithoutCursors()
        SQLStore.__init__(self, self._memory, max_queue_size=max_queue_size, clock=clock)


class TestNothingKeepsACursor(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return _CheckedStore(clock=self.clock)

    @pytest.fixture
    def limited_store(self) -> MemoryStore:
        return _CheckedStore(max_queue_size=3, clock=self.clock)
