"""HTTP in, HTTP out: Starlette routes around `_core.py`. It decides nothing about vendors."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from ._body import BodyTooLargeError, read_capped, read_json, unpack
from ._core import HANDLERS, Core, Incoming, Reply
from ._faults import Fault
from ._model import VENDORS, Answer, Vendor
from ._page import render

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Receive, Scope, Send

    from ._connection import Connection

HUGE_CHUNK = b" " * 65_536
"""What a huge answer is made of: white space, so that it stays JSON to a reader who reads all of it."""


PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The page has one style sheet inside, and nothing else may be loaded or run."""


@dataclass(slots=True)
class Life:
    """The server's beginning and end, as its app sees them."""

    started: Callable[[], None]
    stopping: asyncio.Event


def build(core: Core, started: Callable[[], None]) -> tuple[Starlette, Life]:
    """Make the app."""
    life = Life(started, asyncio.Event())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        life.started()
        yield

    routes = [
        Route("/", partial(_page, core)),
        Route("/state", partial(_state, core)),
        Route("/faults", partial(_inject, core), methods=["POST"]),
        Route("/faults", partial(_clear_faults, core), methods=["DELETE"]),
        Route("/reset", partial(_reset, core), methods=["POST"]),
        *(Mount(f"/{vendor}", routes=_vendor_routes(core, life, vendor)) for vendor in VENDORS),
    ]
    # A page of somebody else's could have its name resolve to 127.0.0.1 and read this one: only our names.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=routes, lifespan=lifespan, middleware=[hosts]), life


def _vendor_routes(core: Core, life: Life, vendor: Vendor) -> list[Route]:
    """Make a vendor's routes from the table of handlers, and one for whatever is in no table."""
    mine = sorted((template, method) for (name, method, template) in HANDLERS if name == vendor)
    known = [
        Route(template, _Endpoint(core, life, vendor, template), methods=[method for _, method in group])
        for template, group in groupby(mine, key=lambda pair: pair[0])
    ]
    return [*known, Route("/{rest:path}", _Endpoint(core, life, vendor, None))]


@dataclass(slots=True)
class _Endpoint:
    """One address of a vendor, as an ASGI app: a fault may need the connection itself."""

    core: Core
    life: Life
    vendor: Vendor
    template: str | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            incoming = await self._read(request)
        except ClientDisconnect:
            return  # half a request is none
        reply = self.core.receive(incoming)
        await _answer(reply, self.life, scope, receive, send)

    async def _read(self, request: Request) -> Incoming:
        raw, body, refusal = await _read_body(request, self.core.limits.body_bytes)
        prefix = f"/{self.vendor}"
        is_known = (self.vendor, request.method, self.template) in HANDLERS
        return Incoming(
            vendor=self.vendor,
            template=self.template if is_known else None,
            method=request.method,
            whole_path=request.url.path,
            path=request.url.path.removeprefix(prefix),
            path_params={name: str(value) for name, value in request.path_params.items()},
            query=dict(request.query_params),
            query_text=request.url.query,
            headers=dict(request.headers),
            raw_body=raw,
            body=body,
            refusal=refusal,
        )


async def _read_body(request: Request, limit: int) -> tuple[bytes, bytes | None, tuple[int, str, str] | None]:
    """Answer the body as sent, the body unpacked, and why there is none."""
    raw = b""
    try:
        raw = await read_capped(request.stream(), limit)
        return raw, unpack(raw, request.headers.get("content-encoding", "").strip().lower(), limit), None
    except BodyTooLargeError as error:
        return raw, None, (413, "body_too_large", str(error))
    except ValueError as error:
        return raw, None, (400, "unreadable_body", str(error))


async def _answer(reply: Reply, life: Life, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the answer, spoiled where a fault says so."""
    kind = reply.fault.kind if reply.fault is not None else None
    if kind in {"reset", "reset_after"}:
        _connection(scope).reset()
        await _see_off(receive)
        return
    if kind == "truncated":
        await _send_half(reply.answer, scope, send)
        await _see_off(receive)
        return
    if reply.fault is not None and kind == "slow":
        await _wait(life, reply.fault.delay_millis)
    response = _huge(reply) if reply.fault is not None and kind == "huge" else _response(reply.answer)
    await response(scope, receive, send)


def _connection(scope: Scope) -> Connection:
    connection: Connection = scope["state"]["connection"]
    return connection


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers), answer.media_type)


def _huge(reply: Reply) -> Response:
    """Answer the right thing, followed by much white space."""
    size = reply.fault.size_bytes if reply.fault is not None else 0

    async def content() -> AsyncIterator[bytes]:
        yield reply.answer.body
        for _ in range(size // len(HUGE_CHUNK) + 1):
            yield HUGE_CHUNK

    return StreamingResponse(content(), reply.answer.status, dict(reply.answer.headers), reply.answer.media_type)


async def _send_half(answer: Answer, scope: Scope, send: Send) -> None:
    """Promise the whole answer, send half of it, and close the connection."""
    whole = answer.body or b"{}"
    headers = [(b"content-type", answer.media_type.encode()), (b"content-length", str(len(whole)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": whole[: len(whole) // 2], "more_body": True})
    _connection(scope).close()


async def _see_off(receive: Receive) -> None:
    """Wait until the client is gone: only then may an app end without an answer.

    The body has been read, so the next thing that the server has to say is `http.disconnect`.
    """
    await receive()


async def _wait(life: Life, delay_millis: int) -> None:
    """Wait, unless the server stops first."""
    try:
        await asyncio.wait_for(life.stopping.wait(), delay_millis / 1_000)
    except asyncio.TimeoutError:
        return


async def _page(core: Core, request: Request) -> Response:
    page = render(core.state(), refresh=request.query_params.get("refresh", "off"))
    return HTMLResponse(page, headers={"content-security-policy": PAGE_POLICY})


async def _state(core: Core, _: Request) -> Response:
    # not Starlette's own JSON: what clients sent may hold lone surrogates, which are JSON but no UTF-8
    return Response(json.dumps(core.state()), media_type="application/json")


async def _inject(core: Core, request: Request) -> Response:
    try:
        fault = Fault.from_json(read_json(await read_capped(request.stream(), core.limits.body_bytes)))
        core.inject(fault)
    except (TypeError, ValueError) as error:
        return JSONResponse({"message": str(error)}, 400)
    return JSONResponse(fault.to_json(), 201)


async def _clear_faults(core: Core, _: Request) -> Response:
    core.clear_faults()
    return Response(status_code=204)


async def _reset(core: Core, _: Request) -> Response:
    core.reset()
    return Response(status_code=204)
