"""The fixtures of the sandbox's tests; what else they share is in `sandbox_bench.py`."""

from __future__ import annotations

import random

import pytest
from sandbox_bench import Bench

from otel_feedback.sandbox import Sandbox


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def bench_with():
    return Bench


@pytest.fixture(scope="session")
def running_sandbox():
    with Sandbox(rng=random.Random(7)) as running:
        yield running


@pytest.fixture
def sandbox(running_sandbox):
    """Answer a running sandbox that knows nothing yet: starting one for each test would take a tenth of a second."""
    running_sandbox.reset()
    return running_sandbox
