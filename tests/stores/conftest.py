"""What the tests of the stores share: a judgement, and both stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import SpanContext, TraceFlags

from otel_feedback._handle import FeedbackHandle
from otel_feedback._record import FeedbackRecord
from otel_feedback.stores.memory import MemoryStore
from otel_feedback.stores.sqlite import SQLiteStore
from otel_feedback.testing import FakeClock

JUDGEMENT = FeedbackRecord(
    id="00000000-0000-7000-8000-000000000001",
    handle=FeedbackHandle(SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))),
    name="rating",
    value=True,
)


@pytest.fixture
def make_record() -> Callable[..., FeedbackRecord]:
    """Make a judgement; the same number means the same id."""

    def make(number: int = 1, **changes: Any) -> FeedbackRecord:
        return replace(JUDGEMENT, id=f"00000000-0000-7000-8000-{number:012}", **changes)

    return make


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of a store is."""
    return tmp_path / "feedback.db"


@pytest.fixture
def sqlite_store(path: Path, clock: FakeClock) -> Iterator[SQLiteStore]:
    """An open store in a file."""
    store = SQLiteStore(path, clock=clock)
    store.open()
    yield store
    store.close()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, clock: FakeClock) -> MemoryStore | SQLiteStore:
    """Either store."""
    if request.param == "memory":
        return MemoryStore(clock=clock)
    found: SQLiteStore = request.getfixturevalue("sqlite_store")
    return found
