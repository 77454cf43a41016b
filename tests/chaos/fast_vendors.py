"""Three vendors that store and fail and do nothing else, for runs that are too long for the sandbox.

The sandbox keeps every request, checks it against the published contract and stops at 50,000 submissions. This program
reads as little of a request as its rules need: orq keeps a property of a trace by id, Braintrust merges scores and adds
comments to rows, Weave keeps a row by reference and id. It answers in the sandbox's own shape, so that one audit reads
both. It is a process of its own: it competes with the client for a core, but never for the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from typing_extensions import Self

PROJECT_ID = "6f1a3f0e-0000-4000-8000-000000000001"
# As in the sandbox: what is stored before the trouble begins.
STORING = frozenset({"reset_after", "truncated", "slow", "silent"})
# SO_LINGER on, for no time: closing then sends RST.
NO_LINGER = struct.pack("ii", 1, 0)
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)

Answer = tuple[int, bytes]
FINE: Answer = (200, b'{"status":"success","of":"a stand-in whose answers can be cut in half"}')


@dataclass(frozen=True, slots=True)
class FaultRates:
    """How often a request fails, by kind; the rest is answered.

    `slow` is answered after `slow_millis`, `silent` is stored and never answered: the client's timeout ends it.
    """

    reset: float = 0.05
    reset_after: float = 0.05
    unavailable: float = 0.05
    busy: float = 0.05
    truncated: float = 0.05
    slow: float = 0.0495
    silent: float = 0.0005
    slow_millis: int = 2

    def draw(self, rng: random.Random) -> str | None:
        """Choose what happens to one request."""
        left = rng.random()
        for kind in ("reset", "reset_after", "unavailable", "busy", "truncated", "slow", "silent"):
            left -= getattr(self, kind)
            if left < 0:
                return kind
        return None


@dataclass(slots=True)
class Book:
    """What the three vendors have stored, each by its own rule."""

    orq: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    # By project, reference and id: what collapses at Weave.
    weave: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    ids: dict[str, set[str]] = field(default_factory=lambda: {"orq": set(), "braintrust": set(), "weave": set()})
    repeats: Counter[str] = field(default_factory=Counter)

    def take(self, path: str, body: Any) -> Answer:
        """Apply one request."""
        for suffix, rule in RULES.items():
            if path.endswith(suffix):
                return rule(self, body)
        return 404, b"{}"

    def note(self, vendor: str, identity: str) -> None:
        """Count an id that the vendor has stored already."""
        if identity in self.ids[vendor]:
            self.repeats[vendor] += 1
        self.ids[vendor].add(identity)

    def add_property(self, body: Any) -> Answer:
        """Keep a property of a trace under its id; the same id replaces."""
        self.note("orq", body["id"])
        self.orq[body["id"]] = body
        return FINE

    def remove_property(self, body: Any) -> Answer:
        """Remove what has this id and trace; what is not there is as good as removed."""
        if self.orq.get(body["id"], {}).get("trace_id") == body["trace_id"]:
            del self.orq[body["id"]]
        return FINE

    def add_items(self, body: Any) -> Answer:
        """Merge scores by name, add every comment."""
        for item in body["feedback"]:
            row = self.rows.setdefault(item["id"], {"scores": {}, "comments": []})
            row["scores"] |= item.get("scores", {})
            kind = "comment" if "comment" in item else "value"
            self.note("braintrust", f"{kind} {item['id']} {item['metadata']['feedback_id']} {item.get('scores')}")
            row["comments"] += [item["comment"]] if "comment" in item else []
        return FINE

    def create_row(self, body: Any) -> Answer:
        """Keep a row; one with the same reference and id collapses into it."""
        self.note("weave", f"{body['id']} {json.dumps(body['payload'], sort_keys=True)}")
        self.weave[body["project_id"], body["weave_ref"], body["id"]] = body
        return FINE

    def create_rows(self, body: Any) -> Answer:
        """Keep several rows."""
        for item in body["batch"]:
            self.create_row(item)
        return FINE

    def replace_row(self, body: Any) -> Answer:
        """Put a row in another's place."""
        self.purge(body["project_id"], body["feedback_id"])
        return self.create_row({name: value for name, value in body.items() if name != "feedback_id"})

    def purge_rows(self, body: Any) -> Answer:
        """Remove the one id that is compared."""
        self.purge(body["project_id"], body["query"]["$expr"]["$eq"][1]["$literal"])
        return FINE

    def purge(self, project: str, identity: str) -> None:
        """Remove an id, whatever it refers to."""
        for key in [key for key in self.weave if key[0] == project and key[2] == identity]:
            del self.weave[key]

    def effective(self) -> dict[str, Any]:
        """Answer what a person would see, as the sandbox does."""
        return {
            "orq": list(self.orq.values()),
            "braintrust": {"rows": self.rows},
            "weave": list(self.weave.values()),
        }


RULES: Mapping[str, Callable[[Book, Any], Answer]] = {
    "/v2/feedback": Book.add_property,
    "/v2/feedback/remove": Book.remove_property,
    f"/v1/project_logs/{PROJECT_ID}/feedback": Book.add_items,
    "/feedback/create": Book.create_row,
    "/feedback/batch/create": Book.create_rows,
    "/feedback/replace": Book.replace_row,
    "/feedback/purge": Book.purge_rows,
}


class Vendors:
    """The book, the chance and the counts of one program."""

    def __init__(self, seed: int, rates: FaultRates) -> None:
        self.book = Book()
        self.rates = rates
        # One for each vendor: what happens at one does not depend on how the others' requests fall between.
        self.rngs = {vendor: random.Random(f"{seed} {vendor}") for vendor in ("orq", "braintrust", "weave")}
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    def meet(self, path: str, body: bytes) -> tuple[str | None, Answer]:
        """Decide on one request: its fault and its answer."""
        if path == "/report":
            return None, (200, json.dumps(self.report()).encode())
        vendor = path.split("/", 2)[1]
        self.requests[vendor] += 1
        fault = self.rates.draw(self.rngs[vendor])
        if fault is not None:
            self.faults[f"{vendor} {fault}"] += 1
        stores = fault is None or fault in STORING
        return fault, self.book.take(path, json.loads(body)) if stores else (503, b"{}")

    def report(self) -> dict[str, Any]:
        """Answer everything at once."""
        return {
            "effective": self.book.effective(),
            "repeats": self.book.repeats,
            "requests": self.requests,
            "faults": self.faults,
        }


class Wire(asyncio.Protocol):
    """HTTP/1.1 as far as one client speaks it: requests with a length, one after the other."""

    def __init__(self, vendors: Vendors) -> None:
        self.vendors = vendors
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        size = int(length[1]) if length else 0
        if found and len(rest) >= size:
            self.buffer = rest[size:]
            self.answer(*self.vendors.meet(head.split(b" ", 2)[1].decode(), rest[:size]))

    def answer(self, fault: str | None, answer: Answer) -> None:
        """Send an answer, spoiled where a fault says so."""
        if fault in ("reset", "reset_after"):
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self.transport.abort()
        elif fault == "busy":
            self.transport.write(written(429, b"{}", b"retry-after: 1\r\n"))
        elif fault == "truncated":
            self.transport.write(written(*answer)[: -len(answer[1]) // 2])
            self.transport.close()
        elif fault == "slow":
            delay = self.vendors.rates.slow_millis / 1_000
            asyncio.get_running_loop().call_later(delay, self.transport.write, written(*answer))
        elif fault != "silent":
            self.transport.write(written(*answer))


def written(status: int, body: bytes, headers: bytes = b"") -> bytes:
    """Write an answer."""
    return b"HTTP/1.1 %d Said\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n%s" % (
        status,
        headers,
        len(body),
        body,
    )


async def serve(vendors: Vendors) -> None:
    """Listen until standard input ends, which it does when the parent does."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Wire(vendors), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    stopped = asyncio.Event()

    def wait() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(stopped.set)

    threading.Thread(target=wait, daemon=True).start()
    await stopped.wait()


class FastVendors:
    """The program as a context manager.

    Args:
        seed: what chance begins with.

        rates: how often requests fail.
    """

    def __init__(self, seed: int = 0, rates: FaultRates | None = None) -> None:
        self._arguments = json.dumps([seed, asdict(rates or FaultRates())])

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def environment(self) -> dict[str, str]:
        """Answer the variables that point exporters here, as the sandbox does."""
        return {
            "ORQ_BASE_URL": f"{self.url}/orq",
            "ORQ_API_KEY": "key",
            "BRAINTRUST_API_URL": f"{self.url}/braintrust",
            "BRAINTRUST_API_KEY": "key",
            "BRAINTRUST_PARENT": f"project_id:{PROJECT_ID}",
            "WF_TRACE_SERVER_URL": f"{self.url}/weave",
            "WANDB_API_KEY": "key",
            "WANDB_ENTITY": "sandbox",
            "WANDB_PROJECT": "sandbox",
        }

    def report(self) -> dict[str, Any]:
        """Ask for everything."""
        with urllib.request.urlopen(f"{self.url}/report", timeout=120) as answer:
            report: dict[str, Any] = json.load(answer)
        return report


if __name__ == "__main__":
    _seed, _rates = json.loads(sys.argv[1])
    asyncio.run(serve(Vendors(_seed, FaultRates(**_rates))))
