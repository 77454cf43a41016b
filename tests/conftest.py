"""What every test gets: a scrubbed environment, no provider of its predecessor, no way off this machine."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_feedback import _active, _correlate
from otel_feedback.environment_variables import VARIABLES
from otel_feedback.testing import FakeClock

LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Ctrl-C reaches what a test begins, also where a shell has begun the tests in the background and ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of ours or OpenTelemetry's is set, and the working directory is empty."""
    for name in list(os.environ):
        if name in VARIABLES or name.startswith(("OTEL_", "WANDB_", "WEAVE_", "BRAINTRUST_", "ORQ_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_provider() -> Iterator[None]:
    """The slot of the current provider is empty before and after, and nothing is left of earlier spans."""
    yield
    provider: Any = _active.put(None)
    if provider is not None:
        provider.shutdown()
    _correlate.LIVE.clear()
    _correlate.ENDED.clear()


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine fails the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(LOOPBACK):
            pytest.fail(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def clock() -> FakeClock:
    """Time that goes only when told to."""
    return FakeClock()


@pytest.fixture
def rng() -> random.Random:
    """Chance that is the same every time."""
    return random.Random(20260101)
