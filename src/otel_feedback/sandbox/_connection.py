"""The TCP connection under a request, for faults that no HTTP answer can play.

uvicorn gives each request a copy of its protocol's `app_state` as `scope["state"]` (ASGI's lifespan state).
A protocol that puts its connection there, when the connection is made, is all that an app needs to cut it.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

_NO_LINGER = struct.pack("ii", 1, 0)
"""SO_LINGER on, for no time: closing then sends RST instead of FIN (POSIX, setsockopt; tcp(7))."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One client's connection."""

    transport: asyncio.Transport

    def reset(self) -> None:
        """Abort it, so that the client sees a reset and not an orderly end."""
        raw = self.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def close(self) -> None:
        """End it in order, after what was written."""
        self.transport.close()


class ConnectionProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which shows its connection to the app."""

    def connection_made(self, transport: Any) -> None:
        """Keep the connection where each request's scope takes its state from."""
        self.app_state = {**self.app_state, "connection": Connection(transport)}
        super().connection_made(transport)
