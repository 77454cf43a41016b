"""Both stores keep the contract of `Store`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_feedback.stores.memory import MemoryStore
from otel_feedback.stores.sqlite import SQLiteStore
from otel_feedback.testing import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(clock=self.clock)


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[SQLiteStore]:
        store = SQLiteStore(tmp_path / "feedback.db", clock=self.clock)
        store.open()
        yield store
        store.close()
