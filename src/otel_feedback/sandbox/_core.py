"""The sandbox without a network: takes a request, asks the vendor's rules, keeps what they decided.

This is the one room with a lock: requests come on the server's thread, `state()` and `inject()` on any.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import _braintrust, _orq, _weave, _weave_client
from ._call import Call
from ._faults import STORING_KINDS, Fault, FaultPlan
from ._ledger import Ledger
from ._model import Answer, Flag, Outcome, ReceivedRequest, State, Vendor
from ._state import state_of

if TYPE_CHECKING:
    import random

    from ._limits import Limits
    from ._switches import Switches

CREDENTIALS = frozenset({"authorization", "wandb-api-key", "cookie", "proxy-authorization"})
"""Headers that are never kept."""

Handler = Callable[[Call], Outcome]

HANDLERS: Mapping[tuple[Vendor, str, str], Handler] = {
    ("orq", "POST", _orq.FEEDBACK): _orq.create,
    ("orq", "POST", _orq.REMOVE): _orq.remove,
    ("orq", "POST", _orq.ANNOTATION): _orq.annotate,
    ("orq", "DELETE", _orq.ANNOTATION): _orq.unannotate,
    ("orq", "POST", "/v2/otel/v1/traces"): _orq.export,
    ("braintrust", "POST", _braintrust.EXPERIMENT_FEEDBACK): _braintrust.feedback,
    ("braintrust", "POST", _braintrust.PROJECT_FEEDBACK): _braintrust.feedback,
    ("braintrust", "POST", _braintrust.EXPERIMENT_INSERT): _braintrust.insert,
    ("braintrust", "POST", _braintrust.PROJECT_INSERT): _braintrust.insert,
    ("braintrust", "POST", _braintrust.EXPERIMENT_FETCH): _braintrust.fetch,
    ("braintrust", "GET", _braintrust.EXPERIMENT_FETCH): _braintrust.fetch,
    ("braintrust", "POST", _braintrust.PROJECT_FETCH): _braintrust.fetch,
    ("braintrust", "GET", _braintrust.PROJECT_FETCH): _braintrust.fetch,
    ("braintrust", "GET", _braintrust.PROJECTS): _braintrust.list_projects,
    ("braintrust", "POST", _braintrust.PROJECTS): _braintrust.create_project,
    ("braintrust", "GET", _braintrust.PROJECT): _braintrust.read_project,
    ("braintrust", "POST", _braintrust.BTQL): _braintrust.btql,
    ("braintrust", "POST", "/otel/v1/traces"): _braintrust.export,
    ("weave", "POST", _weave.CREATE): _weave.create,
    ("weave", "POST", _weave.BATCH): _weave.create_batch,
    ("weave", "POST", _weave.REPLACE): _weave.replace_feedback,
    ("weave", "POST", _weave.PURGE): _weave.purge_feedback,
    ("weave", "POST", _weave.QUERY): _weave.query,
    ("weave", "POST", _weave.TRACES): _weave.export_traces,
    ("weave", "POST", _weave.AGENTS): _weave.export_agents,
    ("weave", "GET", _weave_client.SERVER_INFO): _weave_client.server_info,
    ("weave", "POST", _weave_client.GRAPHQL): _weave_client.graphql,
    ("weave", "POST", _weave_client.OBJECT): _weave_client.acknowledge,
    ("weave", "POST", _weave_client.FILE): _weave_client.acknowledge,
    ("weave", "POST", _weave_client.UPSERT_BATCH): _weave_client.upsert_batch,
    ("weave", "POST", _weave_client.COMPLETE): _weave_client.complete,
    ("weave", "POST", _weave_client.START): _weave_client.start,
    ("weave", "POST", _weave_client.END): _weave_client.end,
}
"""Every address that the sandbox answers: the one table of routes."""

_AUTHORIZED = {
    "orq": _orq.is_authorized,
    "braintrust": _braintrust.is_authorized,
    "weave": _weave.is_authorized,
}
_REFUSE = {"orq": _orq.refuse, "braintrust": _braintrust.refuse, "weave": _weave.refuse}


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as the network gave it."""

    vendor: Vendor
    template: str | None
    """The address's entry in `HANDLERS`; None where there is none."""

    method: str
    whole_path: str
    path: str
    path_params: Mapping[str, str]
    query: Mapping[str, str]
    query_text: str
    headers: Mapping[str, str]
    raw_body: bytes
    """As it came."""

    body: bytes | None
    """Decompressed; None where it could not be, or is too large."""

    refusal: tuple[int, str, str] | None = None
    """Why there is no body: status, flag, words."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the network is to do: an answer, and the fault that spoils it."""

    answer: Answer
    fault: Fault | None


class Core:
    """All that the sandbox knows, behind one lock."""

    def __init__(self, switches: Switches, clock: Callable[[], int], rng: random.Random, *, limits: Limits) -> None:
        self.limits = limits
        self._switches = switches
        self._clock = clock
        self._lock = threading.RLock()
        self._ledger = Ledger(limits)
        self._faults = FaultPlan(rng)
        self._requests: dict[int, ReceivedRequest] = {}
        self._logged_bytes = 0
        self._received = 0
        self._sequence = 0

    def receive(self, incoming: Incoming) -> Reply:
        """Handle one request from a vendor's client."""
        with self._lock:
            self._sequence += 1
            sequence, now = self._sequence, self._clock()
            fault = self._faults.take(incoming.vendor, incoming.path)
            if fault is not None and fault.kind not in STORING_KINDS:
                answer = _fault_answer(fault)
            else:
                answer = self._handle(incoming, now, sequence)
            answer = _signed(answer, incoming.vendor, sequence)
            has_status = fault is None or fault.kind not in {"reset", "reset_after"}
            self._log(incoming, sequence, now, answer.status if has_status else None, fault)
            return Reply(answer, fault)

    def state(self) -> State:
        """Answer all of it as the documented JSON."""
        with self._lock:
            return state_of(
                self._ledger,
                self._switches,
                self._clock(),
                requests=self._received,
                faults=self._faults.state(),
            )

    def requests(self) -> list[ReceivedRequest]:
        """Answer the requests in the order in which they came."""
        with self._lock:
            return list(self._requests.values())

    def inject(self, fault: Fault) -> None:
        """Plan a fault."""
        with self._lock:
            self._faults.add(fault)

    def clear_faults(self) -> None:
        """Forget the planned faults."""
        with self._lock:
            self._faults.clear()

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._ledger.forget()
            self._faults.clear()
            self._requests.clear()
            self._received = self._logged_bytes = 0

    def _handle(self, incoming: Incoming, now: int, sequence: int) -> Answer:
        outcome = self._decide(incoming, now, sequence)
        if not self._ledger.has_room_for(outcome):
            self._ledger.remark([Flag(incoming.vendor, "storage_full", incoming.path)])
            return _REFUSE[incoming.vendor](507, "The sandbox is full: reset it")
        self._ledger.apply(outcome, sequence)
        return outcome.answer

    def _decide(self, incoming: Incoming, now: int, sequence: int) -> Outcome:
        """Ask the vendor's rules, unless the request does not come so far."""
        vendor = incoming.vendor
        if incoming.template is None:
            return _refused(vendor, 404, "unknown_path", f"{incoming.method} {incoming.path}")
        if not _AUTHORIZED[vendor](incoming.headers, self._switches):
            return _refused(vendor, 401, "unauthorized", incoming.path)
        if incoming.body is None:
            return _refused(vendor, *(incoming.refusal or (400, "unreadable_body", incoming.path)))
        call = Call(
            vendor=vendor,
            path=incoming.path,
            path_params=incoming.path_params,
            query=incoming.query,
            headers=incoming.headers,
            body=incoming.body,
            received_at_unix_nano=now,
            sequence=sequence,
            ledger=self._ledger,
            switches=self._switches,
        )
        return HANDLERS[vendor, incoming.method, incoming.template](call)

    def _log(self, incoming: Incoming, sequence: int, now: int, status: int | None, fault: Fault | None) -> None:
        request = ReceivedRequest(
            method=incoming.method,
            path=incoming.whole_path,
            query=incoming.query_text,
            headers={name: value for name, value in incoming.headers.items() if name not in CREDENTIALS},
            body=incoming.raw_body[: self.limits.logged_body_bytes],
            received_at_unix_nano=now,
            status=status,
            fault=fault.kind if fault is not None else None,
        )
        self._requests[sequence] = request
        self._received += 1
        self._logged_bytes += len(request.body)
        while self._logged_bytes > self.limits.logged_bytes or len(self._requests) > self.limits.logged_requests:
            oldest = self._requests.pop(next(iter(self._requests)))
            self._logged_bytes -= len(oldest.body)


def _refused(vendor: Vendor, status: int, flag: str, detail: str) -> Outcome:
    words = {401: "Unauthorized", 404: "Not Found"}.get(status, detail)
    return Outcome(_REFUSE[vendor](status, words), flags=(Flag(vendor, flag, detail),))


def _signed(answer: Answer, vendor: Vendor, sequence: int) -> Answer:
    """Put a vendor's own request id on the answer, where it has one (VENDORS, Braintrust, answers)."""
    if vendor != "braintrust":
        return answer
    return replace(answer, headers={"x-bt-internal-trace-id": f"{sequence:032x}", **answer.headers})


def _fault_answer(fault: Fault) -> Answer:
    """Answer in the vendor's place; of a reset nothing will be seen."""
    if fault.kind == "redirect":
        return Answer(307, headers={**fault.headers, "location": fault.location}, media_type="text/plain")
    return Answer(fault.status, fault.body.encode(), media_type="text/plain", headers=dict(fault.headers))
