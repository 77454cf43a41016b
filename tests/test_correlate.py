"""The correlator: keys are bound behind the caller's back, and found again whatever happens to the store meanwhile."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from opentelemetry import context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext

from otel_feedback import _correlate
from otel_feedback._correlate import (
    MAX_WAITING_BINDINGS,
    Call,
    CollectedHandles,
    Correlator,
    LiveSpan,
    Promise,
    call_in,
    collections_in,
    note_end,
    root_of,
    with_call,
    with_collection,
)
from otel_feedback._handle import FeedbackHandle
from otel_feedback.exceptions import StoreError
from otel_feedback.stores import APP, CONVERSATION, RESPONSE, Binding
from otel_feedback.stores.memory import MemoryStore

LONG_MILLIS = 60_000


def handle(span_id: int = 1, *, trace_id: int = 1, ended_at: int | None = None) -> FeedbackHandle:
    return FeedbackHandle(SpanContext(trace_id, span_id, is_remote=True), started_at=1, ended_at=ended_at)


def binding(key: str = "m-1", kind: str = APP, of: FeedbackHandle | None = None) -> Binding:
    return Binding(kind, key, of or handle())


def nobody(bindings: Sequence[Binding]) -> None:
    """Wait for no binding."""


class FaultyStore(MemoryStore):
    """A memory store that fails on demand, keeps what it was asked to bind, and says when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.is_broken = False
        self.poison: str | None = None
        self.groups: list[list[Binding]] = []
        self.on_bind: Callable[[], object] = list
        self.on_find: Callable[[], object] = list

    def bind(self, bindings: Sequence[Binding]) -> None:
        self.on_bind()
        if self.is_broken:
            raise StoreError("the disk is full", store=self.url)
        if any(each.key == self.poison for each in bindings):
            raise UnicodeEncodeError("utf-8", "secret", 0, 1, "surrogates not allowed")
        self.groups.append(list(bindings))
        super().bind(bindings)

    def find(self, kind: str, key: str) -> Sequence[FeedbackHandle]:
        self.on_find()
        return super().find(kind, key)


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore()


@pytest.fixture
def bound() -> list[Binding]:
    """What the correlator has reported as bound."""
    return []


@pytest.fixture
def correlator(store: FaultyStore, bound: list[Binding]) -> Iterator[Correlator]:
    """A correlator whose thread is not started: what is written is written by whoever asks."""
    correlator = Correlator(store, key_wait_millis=0, on_bound=bound.extend, open_store=store.open)
    yield correlator
    store.is_broken = False
    correlator.shutdown()


# --- binding -----------------------------------------------------------------------------------------------------


def test_a_binding_is_not_written_by_the_caller(correlator: Correlator, store: FaultyStore) -> None:
    """
    A captured call that binds a key does not wait for the store.
    """
    correlator.bind(binding())

    assert [] == store.groups


def test_a_flush_writes_what_was_bound_as_one_group(
    correlator: Correlator, store: FaultyStore, bound: list[Binding]
) -> None:
    """
    Everything that waits goes to the store at once, in order, and is reported once it is visible.
    """
    bindings = [binding("m-1"), binding("m-2", RESPONSE), binding("m-1", CONVERSATION)]
    for each in bindings:
        correlator.bind(each)

    assert (True, True) == (correlator.flush(), correlator.flush())
    assert ([bindings], bindings) == (store.groups, bound)


def test_of_a_call_that_is_bound_twice_the_latest_is_written(correlator: Correlator, store: FaultyStore) -> None:
    """
    Bound at its start and again at its end, a call is written once, with what is known at the end.
    """
    correlator.bind(binding(of=handle()))
    correlator.bind(binding(of=handle(2)))
    correlator.bind(binding(of=handle(ended_at=9)))
    correlator.flush()

    assert [[binding(of=handle(ended_at=9)), binding(of=handle(2))]] == store.groups


@pytest.mark.parametrize(
    "other", [binding("m-2"), binding(kind=RESPONSE), binding(of=handle(2)), binding(of=handle(trace_id=2))]
)
def test_bindings_of_different_calls_or_keys_are_all_written(
    correlator: Correlator, store: FaultyStore, other: Binding
) -> None:
    """
    Another key, kind, span or trace is another binding.
    """
    correlator.bind(binding())
    correlator.bind(other)
    correlator.flush()

    assert [[binding(), other]] == store.groups


def test_the_thread_writes_what_is_bound(store: FaultyStore) -> None:
    """
    Once started, a binding is in the store a moment later, without anybody asking for it.
    """
    is_bound = threading.Event()
    correlator = Correlator(store, key_wait_millis=0, on_bound=lambda _: is_bound.set(), open_store=store.open)
    correlator.start()
    correlator.bind(binding())

    assert is_bound.wait(10)
    assert [[binding()]] == store.groups
    correlator.shutdown()


# --- a store that fails ------------------------------------------------------------------------------------------


def test_bindings_wait_for_a_store_that_fails(
    correlator: Correlator, store: FaultyStore, bound: list[Binding], caplog: pytest.LogCaptureFixture
) -> None:
    """
    While the store fails nothing is lost, what is bound later waits as well, and the log says so once.
    """
    store.is_broken = True
    correlator.bind(binding("m-1"))
    first = correlator.flush()
    correlator.bind(binding("m-2"))
    second = correlator.flush()
    store.is_broken = False

    assert ([False, False], []) == ([first, second], bound)
    assert ["1 keys wait for the store: the disk is full"] == caplog.messages
    assert correlator.flush()
    assert ([[binding("m-1"), binding("m-2")]], [binding("m-1"), binding("m-2")]) == (store.groups, bound)


def test_a_store_that_fails_again_is_said_again(
    correlator: Correlator, store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The log has one line for each time that the store begins to fail.
    """
    for is_broken in (True, True, False, True):
        store.is_broken = is_broken
        correlator.bind(binding())
        correlator.flush()

    assert 2 == len(caplog.messages)


def test_the_thread_outlives_a_store_that_fails(store: FaultyStore) -> None:
    """
    The thread tries again by itself until the store takes what waits.
    """
    is_bound, has_failed = threading.Event(), threading.Event()
    store.is_broken, store.on_bind = True, has_failed.set
    correlator = Correlator(store, key_wait_millis=0, on_bound=lambda _: is_bound.set(), open_store=store.open)
    correlator.start()
    correlator.bind(binding())
    has_failed.wait(10)
    store.is_broken = False

    assert is_bound.wait(10)
    correlator.shutdown()


def test_a_store_that_cannot_be_opened_is_tried_again(
    store: FaultyStore, bound: list[Binding], caplog: pytest.LogCaptureFixture
) -> None:
    """
    Until the store can be opened the bindings wait, which the log says once; then it is opened once and has them all.
    """
    opened = []

    def open_store() -> None:
        opened.append(store.is_broken)
        if store.is_broken:
            raise StoreError("no such disk", store=store.url)

    store.is_broken = True
    correlator = Correlator(store, key_wait_millis=0, on_bound=bound.extend, open_store=open_store)
    correlator.bind(binding("m-1"))
    first = [correlator.flush(), correlator.flush()]
    correlator.bind(binding("m-2"))
    store.is_broken = False
    then = [correlator.flush(), correlator.flush()]
    correlator.shutdown()

    assert ([False, False], [True, True], [True, True, False]) == (first, then, opened)
    assert ["1 keys wait for the store: no such disk"] == caplog.messages
    assert [binding("m-1"), binding("m-2")] == bound


def test_the_thread_outlives_whatever_a_store_of_somebodys_own_raises(
    store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """
    An error that is no `StoreError` is told by its type alone, and the keys are written when it is over.
    """
    is_bound, has_failed = threading.Event(), threading.Event()

    def open_store() -> None:
        if not has_failed.is_set():
            has_failed.set()
            raise OSError("secret")

    correlator = Correlator(store, key_wait_millis=0, on_bound=lambda _: is_bound.set(), open_store=open_store)
    correlator.start()
    correlator.bind(binding())

    assert is_bound.wait(10)
    assert ["keys could not be written: OSError"] == caplog.messages
    correlator.shutdown()


def test_a_flush_in_the_middle_of_a_flush_does_not_wait_for_itself(store: FaultyStore) -> None:
    """
    A finaliser, or the handler of a signal, that looks a key up while its own thread writes it finds it all the same.
    """
    found: list[object] = []
    correlator = Correlator(store, key_wait_millis=0, on_bound=lambda _: None, open_store=store.open)
    store.on_bind = lambda: found.extend([correlator.flush(), correlator.find("m-1")])
    correlator.bind(binding("m-1"))

    assert correlator.flush()
    assert [False, [binding("m-1").handle]] == found


def test_with_nothing_to_write_the_store_is_not_opened(store: FaultyStore) -> None:
    """
    A process that binds no key opens no store, not at its end either.
    """
    opened: list[None] = []
    correlator = Correlator(store, key_wait_millis=0, on_bound=lambda _: None, open_store=lambda: opened.append(None))
    correlator.start()

    assert correlator.shutdown()
    assert [] == opened


# --- what is done later ------------------------------------------------------------------------------------------


def test_the_thread_does_what_is_to_be_done_later(store: FaultyStore) -> None:
    """
    What a finaliser asks for is done a moment later, by the thread, though no key waits.
    """
    names: list[str] = []
    is_done = threading.Event()
    correlator = Correlator(store, key_wait_millis=0, on_bound=lambda _: None, open_store=store.open)
    correlator.start()
    correlator.later(lambda: names.append(threading.current_thread().name))
    correlator.later(is_done.set)

    assert is_done.wait(10)
    assert ["otel-feedback-correlate"] == names
    correlator.shutdown()


def test_what_is_to_be_done_later_is_done_by_a_flush_at_the_latest(store: FaultyStore) -> None:
    """
    A flush does what waits, unless the thread was quicker, and so does the end.
    """
    done: list[int] = []
    correlator = Correlator(store, key_wait_millis=0, on_bound=lambda _: None, open_store=store.open)
    correlator.start()
    are_taken = [correlator.later(lambda: done.append(1)), correlator.later(lambda: done.append(2))]
    correlator.flush()
    first = list(done)
    are_taken.append(correlator.later(lambda: done.append(3)))
    correlator.shutdown()

    assert [True, True, True] == are_taken
    assert {1, 2} == set(first)
    assert {1, 2, 3} == set(done)


def test_without_a_thread_nothing_is_taken_to_be_done_later(correlator: Correlator) -> None:
    """
    Before the thread was started and after it was stopped whoever asks is told to do it otherwise.
    """
    done: list[None] = []
    before = correlator.later(lambda: done.append(None))
    correlator.start()
    correlator.shutdown()
    after = correlator.later(lambda: done.append(None))

    assert (False, False, []) == (before, after, done)


# --- keys of calls that have just begun --------------------------------------------------------------------------


class ForeignSpan(NonRecordingSpan):
    """Somebody's span, which may be broken."""

    is_broken = False

    def get_span_context(self) -> SpanContext:
        if self.is_broken:
            raise RuntimeError("secret")
        return super().get_span_context()


def a_call(span_id: int = 1) -> Call:
    return Call(span=ForeignSpan(SpanContext(1, span_id, is_remote=True)), root=span_id, started_at=1)


def test_the_key_of_a_call_means_its_handle_when_it_is_written(correlator: Correlator, store: FaultyStore) -> None:
    """
    A key that is bound at the start of a call is asked for what it means by who writes it, and then known as written.
    """
    promise = Promise("m-1", a_call())
    correlator.bind(promise)
    before = promise.is_taken
    correlator.flush()

    assert (False, True) == (before, promise.is_taken)
    assert [[binding("m-1", of=replace(handle(), root=1))]] == store.groups


def test_a_call_that_cannot_be_told_costs_no_other_its_key(
    correlator: Correlator, store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A foreign span that fails to say what it is costs its own key, which the log says without its text.
    """
    call = a_call()
    ForeignSpan.is_broken = True
    correlator.bind(Promise("m-1", call))
    alone = correlator.flush()
    correlator.bind(Promise("m-2", call))
    correlator.bind(binding("m-3"))
    together = correlator.flush()
    ForeignSpan.is_broken = False

    assert (True, True) == (alone, together)
    assert [["m-3"]] == [[each.key for each in group] for group in store.groups]
    assert ["a key was lost, since its call cannot be told: RuntimeError"] * 2 == caplog.messages


def test_a_call_that_cannot_be_told_after_the_end_costs_nothing_but_its_key(
    correlator: Correlator, store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """
    What is bound late is written at once, and what cannot be told is said at once.
    """
    correlator.shutdown()
    ForeignSpan.is_broken = True
    correlator.bind(Promise("m-1", a_call()))
    ForeignSpan.is_broken = False
    correlator.bind(Promise("m-2", a_call()))

    assert [["m-2"]] == [[each.key for each in group] for group in store.groups]
    assert ["a key was lost, since its call cannot be told: RuntimeError"] == caplog.messages


# --- too many ----------------------------------------------------------------------------------------------------


def test_too_many_waiting_bindings_lose_the_oldest(
    correlator: Correlator, store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Beyond the limit the oldest bindings are given up, told in the log whenever there are twice as many.
    """
    store.is_broken = True
    for number in range(MAX_WAITING_BINDINGS):
        correlator.bind(binding(f"m-{number}"))
    correlator.flush()
    for number in (1, 2, 3):
        correlator.bind(binding(f"late-{number}"))
        correlator.flush()
    store.is_broken = False
    correlator.flush()

    lost = [message for message in caplog.messages if "lost" in message]
    assert [f"{count} keys were lost: the store cannot be written" for count in (1, 2)] == lost
    assert ["m-3", "late-3", MAX_WAITING_BINDINGS] == [
        store.groups[0][0].key,
        store.groups[0][-1].key,
        len(store.groups[0]),
    ]


def test_a_store_that_is_only_slow_gets_every_key(
    correlator: Correlator, store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """
    However many keys have come since the last write, none is given up while the store takes them.
    """
    for number in range(MAX_WAITING_BINDINGS + 1):
        correlator.bind(binding(f"m-{number}"))

    assert correlator.flush()
    assert [MAX_WAITING_BINDINGS + 1] == [len(group) for group in store.groups]
    assert [] == caplog.messages


def test_one_key_that_cannot_be_written_costs_no_other(
    correlator: Correlator, store: FaultyStore, bound: list[Binding], caplog: pytest.LogCaptureFixture
) -> None:
    """
    A key that the store cannot read is given up with a line that does not quote it; the others of its group are bound.
    """
    store.poison = "m-2"
    for key in ("m-1", "m-2", "m-3"):
        correlator.bind(binding(key))

    assert correlator.flush()
    assert (["m-1", "m-3"], ["m-1", "m-3"]) == (
        [group[0].key for group in store.groups],
        [each.key for each in bound],
    )
    assert ["a key, or what waited for it, could not be written: UnicodeEncodeError"] == caplog.messages
    assert "secret" not in caplog.text


def test_what_cannot_be_joined_costs_no_key(store: FaultyStore, caplog: pytest.LogCaptureFixture) -> None:
    """
    When joining what waited for one key fails, the other keys of the group are reported and all are bound.
    """
    reported: list[str] = []

    def join(bindings: Sequence[Binding]) -> None:
        for each in bindings:
            if each.key == "m-1":
                raise ValueError("secret")
            reported.append(each.key)

    correlator = Correlator(store, key_wait_millis=0, on_bound=join, open_store=store.open)
    for key in ("m-1", "m-2"):
        correlator.bind(binding(key))

    assert correlator.flush()
    assert ([1, 1], ["m-2"]) == ([len(store.find(APP, key)) for key in ("m-1", "m-2")], reported)
    assert ["a key, or what waited for it, could not be written: ValueError"] == caplog.messages


def test_what_could_not_be_joined_for_the_store_is_joined_later(store: FaultyStore) -> None:
    """
    A store that fails while joining makes the bindings wait, so that they are reported again.
    """
    reported: list[list[Binding]] = []

    def join(bindings: Sequence[Binding]) -> None:
        reported.append(list(bindings))
        if len(reported) == 1:
            raise StoreError("the disk is full", store=store.url)

    correlator = Correlator(store, key_wait_millis=0, on_bound=join, open_store=store.open)
    correlator.bind(binding())

    assert [False, True] == [correlator.flush(), correlator.flush()]
    assert [[binding()]] * 2 == reported


# --- looking up --------------------------------------------------------------------------------------------------


def test_a_look_up_writes_first_what_waits(correlator: Correlator) -> None:
    """
    A key that was bound in this process is found at once, whether the thread has written it or not.
    """
    correlator.bind(binding())

    assert [handle()] == list(correlator.find("m-1"))


def test_an_app_key_is_found_before_a_response_id(correlator: Correlator) -> None:
    """
    Where no kind is named, the app's keys come first, then response ids; a conversation must be named.
    """
    for number, kind in enumerate((CONVERSATION, RESPONSE, APP), start=1):
        correlator.bind(binding("m-1", kind, handle(number)))
        correlator.bind(binding(f"only-{kind}", kind, handle(number)))

    found = [correlator.find(key) for key in ("m-1", "only-app", "only-response", "only-conversation")]
    assert [[3], [3], [2], []] == [[each.context.span_id for each in handles] for handles in found]
    assert [[3], [2], [1]] == [
        [each.context.span_id for each in correlator.find("m-1", kind)] for kind in (APP, RESPONSE, CONVERSATION)
    ]


def test_a_miss_without_waiting_asks_once(correlator: Correlator, store: FaultyStore) -> None:
    """
    With a wait of 0 a key that is not there is asked for once in each kind.
    """
    asked: list[None] = []
    store.on_find = lambda: asked.append(None)

    assert ((), 2) == (correlator.find("m-1"), len(asked))


def test_a_look_up_waits_for_a_key_of_another_process(store: FaultyStore) -> None:
    """
    A key that turns up in the store while it is looked for is found.
    """
    correlator = Correlator(store, key_wait_millis=LONG_MILLIS, on_bound=nobody, open_store=store.open)
    asked: list[None] = []

    def bind_elsewhere() -> None:
        asked.append(None)
        if len(asked) == 3:
            MemoryStore.bind(store, [binding()])

    store.on_find = bind_elsewhere

    assert [handle()] == list(correlator.find("m-1", APP))
    assert 3 == len(asked)


def test_a_look_up_waits_for_a_key_that_another_thread_binds(store: FaultyStore) -> None:
    """
    A key that is bound here while it is looked for is written by the thread, and found.
    """
    correlator = Correlator(store, key_wait_millis=LONG_MILLIS, on_bound=nobody, open_store=store.open)
    correlator.start()
    is_looking = threading.Event()
    store.on_find = is_looking.set

    def bind() -> None:
        is_looking.wait()
        correlator.bind(binding())

    binder = threading.Thread(target=bind)
    binder.start()

    assert [handle()] == list(correlator.find("m-1"))
    binder.join()
    correlator.shutdown()


def test_a_miss_ends_after_its_time(store: FaultyStore) -> None:
    """
    A key that does not turn up is asked for as often as the time allows, and answered with nothing.
    """
    correlator = Correlator(store, key_wait_millis=45, on_bound=nobody, open_store=store.open)
    asked: list[None] = []
    store.on_find = lambda: asked.append(None)

    assert ((), 3) == (correlator.find("m-1", APP), len(asked))


def test_a_look_up_in_a_store_that_fails_is_an_error(correlator: Correlator, store: FaultyStore) -> None:
    """
    That the store cannot be read is no answer, and reaches whoever asked.
    """

    def fail() -> None:
        raise StoreError("gone", store=store.url)

    store.on_find = fail
    with pytest.raises(StoreError, match="gone"):
        correlator.find("m-1")


# --- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_started", [False, True])
def test_a_shutdown_writes_the_rest_and_is_idempotent(store: FaultyStore, is_started: bool) -> None:
    """
    What waits at the end is written, whether the thread ever ran; a second shutdown does nothing.
    """
    correlator = Correlator(store, key_wait_millis=0, on_bound=nobody, open_store=store.open)
    if is_started:
        correlator.start()
    for number in range(3):
        correlator.bind(binding(f"m-{number}"))
    correlator.shutdown()
    correlator.shutdown()

    assert ["m-0", "m-1", "m-2"] == [each.key for group in store.groups for each in group]
    assert [] == [thread for thread in threading.enumerate() if thread.name == "otel-feedback-correlate"]


def test_an_end_that_may_not_wait_says_nothing_of_keys_that_there_are_not(
    store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Whether the thread has ended by then is nobody's affair.
    """
    is_let_go, is_held = threading.Event(), threading.Event()

    def hold() -> None:
        is_held.set()
        is_let_go.wait(10)

    correlator = Correlator(store, key_wait_millis=0, on_bound=nobody, open_store=store.open)
    correlator.start()
    correlator.later(hold)
    assert is_held.wait(10)
    went = correlator.shutdown(timeout_millis=0)
    is_let_go.set()

    assert went
    assert [] == caplog.messages


def test_an_end_does_not_wait_longer_than_it_may(store: FaultyStore, caplog: pytest.LogCaptureFixture) -> None:
    """
    While another process holds the store the end comes in time all the same, and says what is at stake.
    """
    is_let_go, is_asked = threading.Event(), threading.Event()
    store.on_bind = lambda: (is_asked.set(), is_let_go.wait(10))
    correlator = Correlator(store, key_wait_millis=0, on_bound=nobody, open_store=store.open)
    correlator.start()
    correlator.bind(binding())
    assert is_asked.wait(10)
    went = correlator.shutdown(timeout_millis=1)
    is_let_go.set()

    assert not went
    assert ["keys were still waiting for the store at the end, and may be lost"] == caplog.messages
    assert correlator.shutdown()


def test_what_is_bound_after_the_end_is_written_at_once(correlator: Correlator, store: FaultyStore) -> None:
    """
    With no thread left, the caller writes.
    """
    correlator.shutdown()
    correlator.bind(binding())

    assert [[binding()]] == store.groups


def test_the_end_cuts_a_look_up_short(store: FaultyStore) -> None:
    """
    Whoever waits for a key when everything is shut down is answered at once.
    """
    correlator = Correlator(store, key_wait_millis=LONG_MILLIS, on_bound=nobody, open_store=store.open)
    correlator.start()
    is_looking = threading.Event()
    found: list[object] = []
    store.on_find = is_looking.set
    looker = threading.Thread(target=lambda: found.append(correlator.find("m-1")))
    looker.start()
    is_looking.wait()
    correlator.shutdown()
    looker.join(10)

    assert [()] == found


def test_a_finaliser_may_bind_in_the_middle_of_a_late_flush(correlator: Correlator, store: FaultyStore) -> None:
    """
    A binding that interrupts the writing of another one, in the same thread, waits for no lock and is not lost.
    """
    correlator.shutdown()
    late = [binding("m-2")]
    store.on_bind = lambda: correlator.bind(late.pop()) if late else None
    correlator.bind(binding("m-1"))

    assert [[binding("m-1")], [binding("m-2")]] == store.groups


def test_a_finaliser_may_bind_in_the_middle_of_the_last_flush(store: FaultyStore) -> None:
    """
    What interrupts the flush of the shutdown itself is written by that flush.
    """
    correlator = Correlator(store, key_wait_millis=0, on_bound=nobody, open_store=store.open)
    late = [binding("m-2")]
    store.on_bind = lambda: correlator.bind(late.pop()) if late else None
    correlator.bind(binding("m-1"))
    correlator.shutdown()

    assert [[binding("m-1")], [binding("m-2")]] == store.groups


def test_what_a_failing_store_refuses_after_the_end_waits_for_a_flush(
    correlator: Correlator, store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A late binding raises nothing into the application, and is written when somebody flushes.
    """
    correlator.shutdown()
    store.is_broken = True
    correlator.bind(binding())
    store.is_broken = False

    assert [] == store.groups
    assert correlator.flush()
    assert [[binding()]] == store.groups


# --- the calls that we are inside --------------------------------------------------------------------------------


def test_a_context_knows_its_innermost_running_call() -> None:
    """
    Of nested calls the innermost counts, until it has ended; a context without one has none.
    """
    outer = Call(handle(1))
    inner = Call(handle(2), parent=outer)
    where = with_call(inner, with_call(outer, context.Context()))

    assert [None, inner] == [call_in(context.Context()), call_in(where)]
    inner.has_ended = True
    assert outer is call_in(where)
    outer.has_ended = True
    assert call_in(where) is None


def test_collections_lie_within_each_other() -> None:
    """
    A context gathers for every collection that it is inside of, the outermost first.
    """
    outer, inner = CollectedHandles(), CollectedHandles()
    token = context.attach(with_collection(outer))
    where = with_collection(inner)
    context.detach(token)

    assert ((outer, inner), ()) == (collections_in(where), collections_in())


def test_collected_handles_are_a_sequence() -> None:
    """
    What was gathered can be counted, read, sliced and shown; without any there is no last one.
    """
    collected = CollectedHandles()
    before = collected.last
    collected.add(handle(1))
    collected.add(handle(2))

    assert (None, handle(2)) == (before, collected.last)
    assert ([handle(1), handle(2)], 2, handle(1)) == (list(collected), len(collected), collected[0])
    assert ((handle(2),), True, [handle(2), handle(1)]) == (
        collected[1:],
        handle(2) in collected,
        list(reversed(collected)),
    )
    assert f"<CollectedHandles {[handle(1), handle(2)]!r}>" == repr(collected)


def test_collected_handles_stand_in_the_order_of_their_start() -> None:
    """
    A span that began earlier and was added later comes before; the last is the one that began last.
    """
    collected = CollectedHandles()
    early, late, unknown = (replace(handle(number), started_at=at) for number, at in ((1, 10), (2, 20), (3, None)))
    for each in (late, early, unknown):
        collected.add(each)

    assert ([unknown, early, late], late) == (list(collected), collected.last)


def test_a_span_is_collected_once() -> None:
    """
    What is known of a span later takes the place of what was known before, and keeps its name.
    """
    collected = CollectedHandles()
    collected.add(handle(1), "chat")
    collected.add(handle(1, trace_id=2), "another trace")
    collected.add(handle(1, ended_at=9))

    assert [handle(1, ended_at=9), handle(1, trace_id=2)] == list(collected)
    assert ((handle(1, ended_at=9),), ()) == (collected.by_name("chat"), collected.by_name("answer"))


def test_collected_handles_are_found_by_operation() -> None:
    """
    Each LLM span is found by what it did; a captured call has no operation.
    """
    collected = CollectedHandles()
    chat = replace(handle(1), attributes={"gen_ai.operation.name": "chat"})
    for each in (chat, handle(2)):
        collected.add(each)

    assert ((chat,), ()) == (collected.by_operation("chat"), collected.by_operation("text_completion"))


def test_only_the_very_handle_is_taken_out_again() -> None:
    """
    Where another one was added for the same span, it stays; what is not there can be taken out.
    """
    collected = CollectedHandles()
    first, second = handle(1), handle(1)
    for each in (first, second):
        collected.add(each)
    collected.discard(first)
    collected.discard(handle(2))
    kept = list(collected)
    collected.discard(second)

    assert ([second], []) == (kept, list(collected))


def test_many_threads_may_add_and_read_at_once() -> None:
    """
    Nothing is lost and nothing raised while some add and another one reads.
    """
    collected = CollectedHandles()
    barrier = threading.Barrier(5)
    errors: list[BaseException] = []

    def add(of: int) -> None:
        barrier.wait()
        for number in range(1, 501):
            collected.add(handle(number, trace_id=of), str(of))

    def read() -> None:
        barrier.wait()
        try:
            while len(collected) < 2_000:
                assert len(list(collected)) <= len(collected)
        except BaseException as error:  # noqa: BLE001 (shown by the test)
            errors.append(error)

    threads = [threading.Thread(target=add, args=(of,)) for of in range(1, 5)] + [threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert ([], 2_000, 500) == (errors, len(collected), len(collected.by_name("3")))


def test_a_span_that_nobody_saw_is_its_own_root() -> None:
    """
    The local root of a live span is known from its start.
    """
    live = LiveSpan(cast("Any", TracerProvider(shutdown_on_exit=False).get_tracer("app").start_span("answer")))
    live.root = 1
    _correlate.LIVE[2] = live

    assert [1, 3] == [root_of(2), root_of(3)]


def test_only_so_many_ended_spans_are_kept() -> None:
    """
    Beyond the limit the one that ended first is forgotten.
    """
    for span_id in range(_correlate.MAX_LIVE_SPANS + 2):
        note_end(span_id)

    ended: list[Any] = list(_correlate.ENDED)
    assert (_correlate.MAX_LIVE_SPANS, 2) == (len(ended), ended[0])


def test_nothing_is_logged_of_keys(
    correlator: Correlator, store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Neither success nor failure writes a key into the log.
    """
    caplog.set_level(logging.DEBUG)
    for is_broken in (False, True):
        store.is_broken = is_broken
        correlator.bind(binding("user-4711"))
        correlator.flush()

    assert "user-4711" not in caplog.text
