"""The exporters' fixtures: a vendor on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from exporter_bench import Vendor


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    """A server on loopback that answers by a script."""
    with Vendor() as running:
        yield running
