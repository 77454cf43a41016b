"""Correlate: from a call to its keys, and from a key back to the call.

The calls that we are inside travel in OpenTelemetry's own context; bindings are written behind, in groups, by one
thread, so that a captured call never waits for the store.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast, overload

from opentelemetry import context

from otel_feedback._handle import FeedbackHandle
from otel_feedback.exceptions import StoreError
from otel_feedback.stores import APP, RESPONSE, Binding

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span  # noqa: F401 (LiveSpan's base names it, in quotes)
    from opentelemetry.trace import Span as AnySpan
    from opentelemetry.trace import SpanContext

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


@dataclass(slots=True, eq=False)
class Call:
    """A captured call while it runs, and what is learned inside of it.

    While its span runs, its handle is made when somebody asks: most calls are over before anybody does.
    """

    known: FeedbackHandle | None = None
    parent: Call | None = None
    span: AnySpan | None = None
    root: int = 0
    started_at: int | None = None
    # Everything that names it: what was bound to it inside of it means it, and none of the calls within.
    keys: set[str] = field(default_factory=set)
    last_llm: FeedbackHandle | None = None
    # When the newest call inside of it began, or it itself.
    newest_start: int | None = None
    has_ended: bool = False

    @property
    def handle(self) -> FeedbackHandle:
        """The handle, as far as the span has come."""
        known, span = self.known, self.span
        if known is not None or span is None:
            return cast("FeedbackHandle", known or self.known)  # it became known before it let go of its span
        found = FeedbackHandle.from_span(span)
        handle = FeedbackHandle(found.context, self.root, self.started_at, found.ended_at, found.attributes)
        if self.has_ended and found.ended_at is not None:
            self.known = handle
            self.span = None
        return handle

    def is_of(self, span: SpanContext) -> bool:
        """Tell whether this is the call of a span."""
        open_span = self.span
        own = self.handle.context if open_span is None else open_span.get_span_context()
        return own.span_id == span.span_id and own.trace_id == span.trace_id

    def forget_ended(self) -> None:
        """Let go of the calls around that have ended: calls that start one another go on for ever, and are a chain."""
        parent = self.parent
        while parent is not None and parent.has_ended:
            parent = parent.parent
        self.parent = parent

    def enclosing(self) -> Iterator[Call]:
        """Go outwards, from this call on, over the calls that have not ended."""
        call: Call | None = self
        while call is not None:
            if not call.has_ended:
                yield call
            call = call.parent


class CollectedHandles(Sequence["FeedbackHandle"]):
    """The handles that `collect_handles()` gathers: one for each span, in the order in which the spans began.

    Threads and tasks may add while others read. There is no lock, because a span may end in a finaliser, in the middle
    of anything: each method touches the dictionary by one call that CPython does in one piece.
    """

    def __init__(self) -> None:
        # The span's name stands beside its handle, which has none.
        self._entries: dict[tuple[int, int], tuple[FeedbackHandle, str]] = {}

    @overload
    def __getitem__(self, index: int) -> FeedbackHandle: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[FeedbackHandle]: ...

    def __getitem__(self, index: int | slice) -> FeedbackHandle | Sequence[FeedbackHandle]:
        """Answer one handle, or several."""
        return tuple(self)[index]

    def __iter__(self) -> Iterator[FeedbackHandle]:
        """Go over the handles that are there now."""
        return (handle for handle, _ in self._in_order())

    def __len__(self) -> int:
        """Count the handles."""
        return len(self._entries)

    def __repr__(self) -> str:
        """Show the handles."""
        return f"<CollectedHandles {list(self)!r}>"

    @property
    def last(self) -> FeedbackHandle | None:
        """The handle of the span that began last, if there is one; it may still be running."""
        in_order = self._in_order()
        return in_order[-1][0] if in_order else None

    def by_operation(self, operation: str) -> tuple[FeedbackHandle, ...]:
        """Answer the LLM spans of one operation: `chat`, `text_completion` or `generate_content`."""
        return tuple(handle for handle in self if handle.attributes.get("gen_ai.operation.name") == operation)

    def by_name(self, name: str) -> tuple[FeedbackHandle, ...]:
        """Answer the spans of one name, as of a captured function."""
        return tuple(handle for handle, own in self._in_order() if own == name)

    def add(self, handle: FeedbackHandle, name: str = "") -> None:
        """Take a handle, in the place of an earlier one of the same span, whose name it keeps if it has none."""
        span = _span(handle.context)
        known = self._entries.get(span)
        self._entries[span] = (handle, name or (known[1] if known is not None else ""))

    def discard(self, handle: FeedbackHandle) -> None:
        """Take this very handle out again; another one that was added for its span since then stays."""
        span = _span(handle.context)
        known = self._entries.get(span)
        if known is not None and known[0] is handle:
            self._entries.pop(span, None)

    def _in_order(self) -> list[tuple[FeedbackHandle, str]]:
        """Answer what is there now; of spans that began at the same time the one that was added later comes later."""
        return sorted(self._entries.values(), key=lambda entry: entry[0].started_at or 0)


_CALL = context.create_key("otel_feedback.call")
# The processor looks for it at the start of every span.
COLLECTIONS = context.create_key("otel_feedback.collections")


def call_in(where: Context | None = None) -> Call | None:
    """Answer the innermost captured call of a context that is still running."""
    call = cast("Call | None", context.get_value(_CALL, where))
    return None if call is None else next(call.enclosing(), None)


def note_key(handle: FeedbackHandle, key: str) -> None:
    """Note that a key was bound to a call that the current context is inside of; no call within rebinds it."""
    call = call_in()
    for enclosing in call.enclosing() if call is not None else ():
        if enclosing.is_of(handle.context):
            enclosing.keys.add(key)


def with_call(call: Call, where: Context) -> Context:
    """Put a call into a context."""
    return context.set_value(_CALL, call, where)


def collections_in(where: Context | None = None) -> tuple[CollectedHandles, ...]:
    """Answer everything that gathers handles in a context."""
    return cast("tuple[CollectedHandles, ...]", context.get_value(COLLECTIONS, where) or ())


def with_collection(collection: CollectedHandles) -> Context:
    """Put a collection into the current context, inside of the ones that are there."""
    return context.set_value(COLLECTIONS, (*collections_in(), collection))


@dataclass(slots=True, eq=False)
class LLMSpan:
    """An LLM span that has ended, as it was captured."""

    handle: FeedbackHandle
    name: str
    collections: tuple[CollectedHandles, ...]
    # Whether a span within, of the same call, has taken its place.
    is_replaced: bool = False


class LiveSpan(weakref.ref["Span"]):
    """What is known of a span from its start; called, it answers the span, as long as somebody else holds that.

    It is a weak reference itself and not an object that has one, because every span of the application pays for it. A
    span that is thrown away without having been ended takes its place in `LIVE` along.
    """

    __slots__ = ("above", "early", "inner", "kept", "root", "span_id", "where")

    span_id: int
    # The local root's span id.
    root: int
    # The local parent, if the processor saw it. It may have ended meanwhile.
    above: LiveSpan | None
    # The context that it was started in: calls, collections and ids are read from there, for LLM spans only.
    where: Context
    # The handle that was collected at its start.
    early: FeedbackHandle | None
    # What was captured of it at its end.
    kept: LLMSpan | None
    # The last LLM span that ended inside of it.
    inner: LLMSpan | None

    def parents(self) -> Iterator[LiveSpan]:
        """Go outwards over the local parents, nearest first."""
        above = self.above
        while above is not None:
            yield above
            above = above.above


# Every recording span that has started and not ended, by span id; filled by the processor.
LIVE: dict[int, LiveSpan] = {}


def forget(live: LiveSpan, spans: dict[int, LiveSpan] = LIVE) -> None:
    """Take away the place of a span that nobody has ended; it runs as a finaliser, even while Python shuts down."""
    live.above = None
    spans.pop(live.span_id, None)


# Captured calls and LLM spans that have ended, oldest first, and when in the order of ends: what a flush of the tracer
# provider is known to release. A plain dictionary looks for its oldest entry ever longer.
ENDED: OrderedDict[int, int] = OrderedDict()
ENDS = itertools.count()


def note_end(span_id: int) -> None:
    """Note that a span has ended in this process."""
    ENDED[span_id] = next(ENDS)
    if len(ENDED) > MAX_LIVE_SPANS:
        ENDED.popitem(last=False)


def root_of(span_id: int) -> int:
    """Answer the local root of a live span; one that no processor saw is its own."""
    live = LIVE.get(span_id)
    return span_id if live is None else live.root


# --- keys --------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Promise:
    """A key of the app's for a captured call, which is asked for its handle when the key is written.

    A call that has ended by then needs no second binding; who binds asks `is_taken` after the end, and the writer sets
    it before it asks for the handle.
    """

    key: str
    call: Call
    is_taken: bool = False


@dataclass(slots=True)
class _Waiting:
    """The bindings that are not in the store yet."""

    bindings: list[Binding] = field(default_factory=list)
    lost: int = 0
    # How many of these the log has told of; it tells again at twice as many.
    told: int = 0


class Correlator:
    """Binds keys behind the caller's back, and looks them up.

    Args:
        store: the index.

        key_wait_millis: how long a look-up waits for a key that is not there.

        on_bound: called with the bindings that have just become visible, and again after a `StoreError`.

        open_store: makes the store ready, before anything is written.
    """

    def __init__(
        self,
        store: CorrelationStore,
        *,
        key_wait_millis: int,
        on_bound: Callable[[Sequence[Binding]], None],
        open_store: Callable[[], None],
    ) -> None:
        self._store = store
        self._key_wait_millis = key_wait_millis
        self._on_bound = on_bound
        self._open_store = open_store
        self._is_open = False
        # A SimpleQueue, because a binding may come from a finaliser: in any thread, under any lock.
        self._queue: queue.SimpleQueue[Binding | Promise] = queue.SimpleQueue()
        self._actions: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting = _Waiting()
        self._lock = threading.Lock()
        self._writer: int | None = None
        self._has_store = True
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start writing behind."""
        self._thread = threading.Thread(target=self._run, name="otel-feedback-correlate", daemon=True)
        self._thread.start()

    def bind(self, binding: Binding | Promise) -> None:
        """Take a binding; it is in the store a moment later."""
        self._queue.put(binding)
        if self._stopped.is_set():
            self._write_late()
        else:
            self._ring()

    def later(self, action: Callable[[], None]) -> bool:
        """Take something to do, soon, by the thread, if there is one; nothing but put into a queue."""
        if self._thread is None or self._stopped.is_set():
            return False
        self._actions.put(action)
        self._ring()
        return True

    def flush(self) -> bool:
        """Do what waits, and write everything that was bound until now; say whether it went."""
        self._act()
        if self._writer == threading.get_ident():
            return False  # a finaliser or a signal's handler has come in the middle of this very flush
        with self._writing():
            self._drain()
            has_nothing = not self._waiting.bindings
        if has_nothing:
            return True  # for which no store need be opened
        can_write = self._can_write()
        with self._writing():
            self._drain()
            is_written = can_write and self._write()
        self._write_late()
        return is_written

    def _act(self) -> None:
        """Do what was to be done later."""
        while True:
            # Another thread may take the last one at the same moment, so nobody asks first whether there is one.
            try:
                action = self._actions.get_nowait()
            except queue.Empty:
                return
            action()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the one that writes."""
        with self._lock:
            self._writer = threading.get_ident()
            try:
                yield
            finally:
                self._writer = None

    def find(self, key: str, kind: str | None = None, *, waits: bool = True) -> Sequence[FeedbackHandle]:
        """Answer the calls that a key names, newest first, waiting a little for a key that is not there yet."""
        self.flush()
        kinds = DEFAULT_KINDS if kind is None else (kind,)
        polls = self._key_wait_millis // POLL_MILLIS if waits else 0
        for poll in range(polls + 1):
            for each in kinds:
                # What waits is read first and what is in the store last, so that nothing is missed that goes from one
                # to the other; what is found twice is one call.
                found = {
                    _span(each.context): each for each in (*self._find_waiting(each, key), *self._store.find(each, key))
                }
                if found:
                    return list(found.values())
            # Once stopped, nothing more comes from here.
            if poll < polls and self._stopped.wait(POLL_MILLIS / 1_000):
                break
        return ()

    def _find_waiting(self, kind: str, key: str) -> Sequence[FeedbackHandle]:
        """Answer the calls of a key that could not be written yet: they are newer than what is in the store."""
        waiting = list(self._waiting.bindings)
        return [each.handle for each in reversed(waiting) if (each.kind, each.key) == (kind, key)]

    def shutdown(self, timeout_millis: int | None = None) -> bool:
        """Write what is left and stop the thread; what is bound later is written at once.

        It waits no longer than the timeout for a store that another process has locked, and says whether all went.
        """
        self._stopped.set()
        self._ring()
        if self._thread is not None:
            self._thread.join(None if timeout_millis is None else timeout_millis / 1_000)
            if self._thread.is_alive():
                if self._actions.empty() and self._queue.empty() and not self._waiting.bindings:
                    return True
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
            if not self._try_to_flush():
                self._stopped.wait(STORE_RETRY_MILLIS / 1_000)
                self._ring()

    def _try_to_flush(self) -> bool:
        """Flush in the thread, which outlives whatever goes wrong with a store or an exporter of somebody's own."""
        try:
            return self.flush()
        except Exception as error:  # noqa: BLE001 (the boundary to foreign stores)
            logger.error("keys could not be written: %s", type(error).__name__)  # noqa: TRY400 (the text may quote a key)
            return False

    def _write_late(self) -> None:
        """After the stop, write what is in the queue, waiting for nobody.

        It may come from a finaliser that interrupts a flush in the very same thread; the flush then takes it along.
        """
        while (
            self._stopped.is_set()
            and not self._queue.empty()
            and self._can_write()
            and self._lock.acquire(blocking=False)
        ):
            try:
                self._drain()
                self._write()
            finally:
                self._lock.release()

    def _write(self) -> bool:
        """Write what waits, under the lock; say whether it went."""
        # Of a call that was bound at its start and again at its end, the end knows more.
        latest = {(b.kind, b.key, *_span(b.handle.context)): b for b in self._waiting.bindings}
        if not latest:
            return True
        try:
            self._bind(list(latest.values()))
        except StoreError as error:
            self._miss_store(error)
            return False
        self._has_store = True
        self._waiting.bindings.clear()
        return True

    def _can_write(self) -> bool:
        """Make the store ready, once, holding no lock; say whether it is."""
        if not self._is_open:
            try:
                self._open_store()
            except StoreError as error:
                self._miss_store(error)
                return False
            self._is_open = True
        return True

    def _miss_store(self, error: StoreError) -> None:
        """Say that keys wait, at the first time in a row."""
        if self._has_store:
            logger.warning("%d keys wait for the store: %s", self._queue.qsize() + len(self._waiting.bindings), error)
        self._has_store = False

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
        """Take what is in the queue, giving up the oldest beyond the limit while there is no store to write them to.

        A store that is only slow gets them all: among busy threads the writer has a small share of the time.
        """
        bindings = self._waiting.bindings
        # What is there now: a thread that binds without end must not keep this one here.
        for _ in range(self._queue.qsize()):
            bindings += _binding_of(self._queue.get())
        surplus = 0 if self._has_store else len(bindings) - MAX_WAITING_BINDINGS
        if surplus > 0:
            del bindings[:surplus]
            self._waiting.lost += surplus
            if self._waiting.lost >= 2 * self._waiting.told:
                self._waiting.told = self._waiting.lost
                logger.error("%d keys were lost: the store cannot be written", self._waiting.lost)


def _span(context: SpanContext) -> tuple[int, int]:
    """Name a span in its trace."""
    return context.trace_id, context.span_id


def _binding_of(taken: Binding | Promise) -> Sequence[Binding]:
    """Answer what is to be written, if it can be told."""
    if isinstance(taken, Binding):
        return (taken,)
    taken.is_taken = True
    try:
        return (Binding(APP, taken.key, taken.call.handle),)
    except Exception as error:  # noqa: BLE001 (the boundary to foreign spans)
        logger.error("a key was lost, since its call cannot be told: %s", type(error).__name__)  # noqa: TRY400 (the text may quote anything)
        return ()
