"""`Sandbox`: the app behind uvicorn, in a thread, on 127.0.0.1."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import threading
import time
import warnings
from base64 import b64encode
from typing import TYPE_CHECKING

import uvicorn

from ._app import Life, build
from ._connection import ConnectionProtocol
from ._core import Core
from ._limits import Limits
from ._model import FeedbackState, OTLPEndpoint, ReceivedRequest, State
from ._state import mistargeted
from ._switches import Switches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from ._faults import Fault

HOST = "127.0.0.1"
"""Never another: what it keeps is open to whoever reaches it."""

API_KEY = "sandbox-key"
ENTITY, PROJECT = "sandbox", "sandbox"

BACKLOG = 128
"""Connections that may wait while the server starts; a test suite's threads are fewer."""

GRACEFUL_SECONDS = 2
"""How long stopping waits for answers under way; faults that wait are woken at once."""


class Sandbox:
    """The three vendors, played on loopback.

    Args:
        port: The port to listen on; 0 takes a free one.

        switches: How the vendors behave where their documents are silent.

        clock: Answers the time in Unix nanoseconds.

        rng: Draws for faults that have a probability.

    Example:
        >>> with Sandbox() as sandbox:
        ...     sandbox.state()["requests"]
        0

    """

    def __init__(
        self,
        port: int = 0,
        switches: Switches | None = None,
        clock: Callable[[], int] | None = None,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self._port = port
        self._core = Core(
            Switches() if switches is None else switches,
            time.time_ns if clock is None else clock,
            random.Random() if rng is None else rng,  # noqa: S311  chance in tests guards nothing
            limits=Limits(),
        )
        self._running: _Running | None = None

    def start(self) -> None:
        """Listen; does nothing where it listens already."""
        if self._running is None:
            self._running = _Running(self._core, self._port)

    def stop(self) -> None:
        """Stop listening; does nothing where that is done. What was received stays readable."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        if getattr(self, "_running", None) is not None:
            warnings.warn(f"{self!r} was never stopped", ResourceWarning, source=self, stacklevel=2)
            # At the interpreter's end the thread no longer runs and would be waited for without end; nor does
            # coverage see that end.
            if not sys.is_finalizing():  # pragma: no branch
                self.stop()

    def __repr__(self) -> str:
        return f"<Sandbox {'stopped' if self._running is None else self._running.url}>"

    @property
    def url(self) -> str:
        """The address of the page; `/state` below it is the same as JSON."""
        if self._running is None:
            raise RuntimeError("the sandbox is not running: use it in a with statement, or call start()")
        return self._running.url

    def environment(self) -> dict[str, str]:
        """Answer the variables that point vendors' clients, and our exporters, here."""
        return {
            "ORQ_BASE_URL": f"{self.url}/orq",
            "ORQ_API_KEY": API_KEY,
            "BRAINTRUST_API_URL": f"{self.url}/braintrust",
            "BRAINTRUST_BASE_URL": f"{self.url}/braintrust",  # what Braintrust's own API client reads
            "BRAINTRUST_API_KEY": API_KEY,
            "BRAINTRUST_PARENT": f"project_name:{PROJECT}",
            "WF_TRACE_SERVER_URL": f"{self.url}/weave",
            "WANDB_BASE_URL": f"{self.url}/weave",  # where weave.init() asks who it is
            "WANDB_API_KEY": API_KEY,
            "WANDB_ENTITY": ENTITY,
            "WANDB_PROJECT": PROJECT,
        }

    def otlp_endpoints(self) -> list[OTLPEndpoint]:
        """Answer where spans go, and with which headers, for each vendor; Weave has two views."""
        bearer = {"authorization": f"Bearer {API_KEY}"}
        basic = {
            "authorization": f"Basic {b64encode(f'api:{API_KEY}'.encode()).decode()}",
            "project_id": f"{ENTITY}/{PROJECT}",
        }
        parent = {**bearer, "x-bt-parent": f"project_name:{PROJECT}"}
        return [
            OTLPEndpoint("orq", f"{self.url}/orq/v2/otel/v1/traces", bearer),
            OTLPEndpoint("braintrust", f"{self.url}/braintrust/otel/v1/traces", parent),
            OTLPEndpoint("weave", f"{self.url}/weave/otel/v1/traces", basic),
            OTLPEndpoint("weave", f"{self.url}/weave/agents/otel/v1/traces", basic),
        ]

    def state(self) -> State:
        """Answer what was received and how it joins, as `GET /state` does."""
        return self._core.state()

    def mistargeted(self, expected: Mapping[str, str]) -> list[FeedbackState]:
        """Answer the feedback about another span than the one that is expected for its id, value or name."""
        return mistargeted(self._core.state(), expected)

    @property
    def requests(self) -> list[ReceivedRequest]:
        """Every request as it came, in order, without credentials."""
        return self._core.requests()

    def inject(self, fault: Fault) -> None:
        """Let the next matching requests fail."""
        self._core.inject(fault)

    def clear_faults(self) -> None:
        """Let no more requests fail."""
        self._core.clear_faults()

    def reset(self) -> None:
        """Forget spans, feedback, requests and faults."""
        self._core.reset()


class _Server(uvicorn.Server):
    """uvicorn, told by an event when to stop, where its own loop asks ten times a second."""

    def __init__(self, config: uvicorn.Config, life: Life) -> None:
        super().__init__(config)
        self._life = life

    async def main_loop(self) -> None:
        await self._life.stopping.wait()


def _listen(port: int) -> socket.socket:
    """Open a listening socket.

    Its protocol is named, because asyncio switches Nagle's algorithm off only where it is (`_set_nodelay` in
    asyncio/base_events.py); `socket.create_server` leaves it open, and each answer then waits 40 ms for an ACK.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


class _Running:
    """A listening socket, the server on it, and the thread that runs it."""

    def __init__(self, core: Core, port: int) -> None:
        self._socket = _listen(port)
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}"
        self._started = threading.Event()
        app, self._life = build(core, self._started.set)
        config = uvicorn.Config(
            app,
            http=ConnectionProtocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACEFUL_SECONDS,
        )
        self._server = _Server(config, self._life)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="otel-feedback-sandbox", daemon=True)
        self._thread.start()
        self._started.wait()

    def stop(self) -> None:
        """Stop the server and wait for its thread."""
        self._loop.call_soon_threadsafe(self._life.stopping.set)
        self._thread.join()

    def _run(self) -> None:
        """Serve until told to stop. The socket has been listening since before, so nobody waits for us."""
        try:
            self._loop.run_until_complete(self._server.serve(sockets=[self._socket]))
        finally:
            self._loop.close()
            self._socket.close()
            self._started.set()
