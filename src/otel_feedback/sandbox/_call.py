"""A request and all that a vendor may look at to answer it: the one argument of every handler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._ledger import Ledger
    from ._model import Vendor
    from ._switches import Switches


@dataclass(frozen=True, slots=True)
class Call:
    """One request at a vendor's address, read and decoded, with what the sandbox knows."""

    vendor: Vendor
    path: str
    """The path below the vendor's base URL."""

    path_params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Lower-case names; credentials included, so it is never logged."""

    body: bytes
    received_at_unix_nano: int
    sequence: int
    ledger: Ledger
    """What was received before; a handler reads it and answers what is to be added."""

    switches: Switches
