"""Correlate: from a call to its keys, and from a key back to the call.

The calls that we are inside travel in OpenTelemetry's own context; bindings are written behind, in groups, by one
thread, so that a captured call never waits for the store.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from opentelemetry import context

from otel_feedback.exceptions import StoreError
from otel_feedback.stores import APP, RESPONSE, Binding

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from otel_feedback._handle import FeedbackHandle
    from otel_feedback.stores import CorrelationStore

logger = logging.getLogger(__name__)

# A key must be visible to other processes within 100 ms of the call's start; a group is written this often.
GROUP_MILLIS = 20
# How often a look-up asks again for a key that is not there yet.
POLL_MILLIS = 20
# How long the thread leaves a store alone that could not be written.
STORE_RETRY_MILLIS = 1_000
# About 20 MB: what is kept while the store cannot be written; beyond it the oldest bindings are given up, loudly.
MAX_WAITING_BINDINGS = 100_000
# Spans that nobody ends must not fill the memory; more than this are never open at once.
MAX_LIVE_SPANS = 100_000

# The kinds in which a key is looked for when none is named.
DEFAULT_KINDS = (APP, RESPONSE)


# --- the calls that we are inside --------------------------------------------------------------------------------


@dataclass(slots=True)
class Call:
    """A captured call while it runs, and what is learned inside of it."""

    handle: FeedbackHandle
    parent: Call | None = None
    # Everything that names it: what was bound to it inside of it means it, and none of the calls within.
    keys: set[str] = field(default_factory=set)
    last_llm: FeedbackHandle | None = None
    # When the newest call inside of it began, or it itself.
    newest_start: int | None = None
    has_ended: bool = False

    def enclosing(self) -> Iterator[Call]:
        """Go outwards, from this call on, over the calls that have not ended."""
        call: Call | None = self
        while call is not None:
            if not call.has_ended:
                yield call
            call = call.parent


class CollectedHandles(Sequence["FeedbackHandle"]):
    """The handles that `collect_handles()` gathers, in the order in which they came."""

    def __init__(self) -> None:
        self._handles: list[FeedbackHandle] = []

    def __getitem__(self, index: int) -> FeedbackHandle:  # type: ignore[override]  # slices have no use here
        """Answer one handle."""
        return self._handles[index]

    def __len__(self) -> int:
        """Count the handles."""
        return len(self._handles)

    def __repr__(self) -> str:
        """Show the handles."""
        return f"<CollectedHandles {self._handles!r}>"

    @property
    def last(self) -> FeedbackHandle | None:
        """The newest handle, if there is one."""
        return self._handles[-1] if self._handles else None

    def add(self, handle: FeedbackHandle) -> None:
        """Take a handle."""
        self._handles.append(handle)


_CALL = context.create_key("otel_feedback.call")
_COLLECTIONS = context.create_key("otel_feedback.collections")


def call_in(where: Context | None = None) -> Call | None:
    """Answer the innermost captured call of a context that is still running."""
    call = cast("Call | None", context.get_value(_CALL, where))
    return None if call is None else next(call.enclosing(), None)


def note_key(handle: FeedbackHandle, key: str) -> None:
    """Note that a key was bound to a call that the current context is inside of; no call within rebinds it."""
    call = call_in()
    for enclosing in call.enclosing() if call is not None else ():
        if enclosing.handle.span_id == handle.span_id and enclosing.handle.trace_id == handle.trace_id:
            enclosing.keys.add(key)


def with_call(call: Call, where: Context) -> Context:
    """Put a call into a context."""
    return context.set_value(_CALL, call, where)


def collections_in(where: Context | None = None) -> tuple[CollectedHandles, ...]:
    """Answer everything that gathers handles in a context."""
    return cast("tuple[CollectedHandles, ...]", context.get_value(_COLLECTIONS, where) or ())


def with_collection(collection: CollectedHandles) -> Context:
    """Put a collection into the current context, inside of the ones that are there."""
    return context.set_value(_COLLECTIONS, (*collections_in(), collection))


@dataclass(frozen=True, slots=True)
class LiveSpan:
    """What is known of a span from its start: its local root, and the context it was started in."""

    root: int
    call: Call | None
    collections: tuple[CollectedHandles, ...]


# Every recording span that has started and not ended, by span id; filled by the processor.
LIVE: dict[int, LiveSpan] = {}


# Captured calls and LLM spans that have ended, oldest first: what a flush of the tracer provider is known to release.
ENDED: dict[int, None] = {}


def note_end(span_id: int) -> None:
    """Note that a span has ended in this process."""
    if len(ENDED) >= MAX_LIVE_SPANS:
        ENDED.pop(next(iter(ENDED)), None)
    ENDED[span_id] = None


def root_of(span_id: int) -> int:
    """Answer the local root of a live span; one that no processor saw is its own."""
    live = LIVE.get(span_id)
    return span_id if live is None else live.root


# --- keys --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Waiting:
    """The bindings that are not in the store yet."""

    bindings: list[Binding] = field(default_factory=list)
    lost: int = 0


class Correlator:
    """Binds keys behind the caller's back, and looks them up.

    Args:
        store: the index.

        key_wait_millis: how long a look-up waits for a key that is not there.

        on_bound: called with the bindings that have just become visible, and again after a `StoreError`.
    """

    def __init__(
        self,
        store: CorrelationStore,
        *,
        key_wait_millis: int,
        on_bound: Callable[[Sequence[Binding]], None],
    ) -> None:
        self._store = store
        self._key_wait_millis = key_wait_millis
        self._on_bound = on_bound
        # A SimpleQueue, because a binding may come from a finaliser: in any thread, under any lock.
        self._queue: queue.SimpleQueue[Binding] = queue.SimpleQueue()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting = _Waiting()
        self._lock = threading.Lock()
        self._has_store = True
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start writing behind."""
        self._thread = threading.Thread(target=self._run, name="otel-feedback-correlate", daemon=True)
        self._thread.start()

    def bind(self, binding: Binding) -> None:
        """Take a binding; it is in the store a moment later."""
        self._queue.put(binding)
        if self._stopped.is_set():
            self._write_late()
        else:
            self._ring()

    def flush(self) -> bool:
        """Write everything that was bound until now; say whether it went."""
        with self._lock:
            is_written = self._write()
        self._write_late()
        return is_written

    def find(self, key: str, kind: str | None = None, *, waits: bool = True) -> Sequence[FeedbackHandle]:
        """Answer the calls that a key names, newest first, waiting a little for a key that is not there yet."""
        self.flush()
        kinds = DEFAULT_KINDS if kind is None else (kind,)
        polls = self._key_wait_millis // POLL_MILLIS if waits else 0
        for poll in range(polls + 1):
            for each in kinds:
                if found := self._store.find(each, key):
                    return found
            # Once stopped, nothing more comes from here.
            if poll < polls and self._stopped.wait(POLL_MILLIS / 1_000):
                break
        return ()

    def shutdown(self, timeout_millis: int | None = None) -> bool:
        """Write what is left and stop the thread; what is bound later is written at once.

        It waits no longer than the timeout for a store that another process has locked, and says whether all went.
        """
        self._stopped.set()
        self._ring()
        if self._thread is not None:
            self._thread.join(None if timeout_millis is None else timeout_millis / 1_000)
            if self._thread.is_alive():
                logger.warning("keys were still waiting for the store at the end, and may be lost")
                return False
        return self.flush()

    def _ring(self) -> None:
        """Wake the thread, once for many bindings."""
        if self._bell.empty():
            self._bell.put(None)

    def _run(self) -> None:
        """Write in groups until stopped."""
        while not self._stopped.is_set():
            self._bell.get()
            # A moment for others to join the group; a stop cuts it short.
            self._stopped.wait(GROUP_MILLIS / 1_000)
            if not self.flush():
                self._stopped.wait(STORE_RETRY_MILLIS / 1_000)
                self._ring()

    def _write_late(self) -> None:
        """After the stop, write what is in the queue, waiting for nobody.

        It may come from a finaliser that interrupts a flush in the very same thread; the flush then takes it along.
        """
        while self._stopped.is_set() and not self._queue.empty() and self._lock.acquire(blocking=False):
            try:
                self._write()
            finally:
                self._lock.release()

    def _write(self) -> bool:
        """Write what waits, under the lock; say whether it went."""
        self._drain()
        # Of a call that was bound at its start and again at its end, the end knows more.
        latest = {
            (b.kind, b.key, b.handle.context.trace_id, b.handle.context.span_id): b for b in self._waiting.bindings
        }
        if not latest:
            return True
        try:
            self._bind(list(latest.values()))
        except StoreError as error:
            if self._has_store:
                logger.warning("%d keys wait for the store: %s", len(latest), error)
            self._has_store = False
            return False
        self._has_store = True
        self._waiting.bindings.clear()
        return True

    def _bind(self, group: Sequence[Binding]) -> None:
        """Bind a group, and join what waited for it; where that goes wrong, one by one."""
        try:
            self._store.bind(group)
            self._on_bound(group)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 (the boundary to the application's own texts)
            # One key that cannot be written must not cost the others theirs.
            if len(group) == 1:
                logger.error("a key, or what waited for it, could not be written: %s", type(error).__name__)  # noqa: TRY400 (the text may quote the key)
                return
            for binding in group:
                self._bind([binding])

    def _drain(self) -> None:
        """Take what is in the queue, giving up the oldest beyond the limit."""
        bindings = self._waiting.bindings
        # What is there now: a thread that binds without end must not keep this one here.
        for _ in range(self._queue.qsize()):
            bindings.append(self._queue.get())
        if (surplus := len(bindings) - MAX_WAITING_BINDINGS) > 0:
            del bindings[:surplus]
            self._waiting.lost += surplus
            logger.error("%d keys were lost: the store cannot be written", self._waiting.lost)
