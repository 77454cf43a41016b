"""`FeedbackProvider`: the whole pipeline as an object, from a judgement's acceptance to the end of the process."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing.util
import os
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider, SpanContext, TraceFlags

from otel_feedback import (
    BraintrustExporter,
    ConfigurationError,
    Feedback,
    FeedbackHandle,
    FeedbackProvider,
    FeedbackRecord,
    Flag,
    InvalidFeedbackError,
    Labels,
    MemoryStore,
    OrqExporter,
    OutboxFullError,
    Part,
    PauseDestination,
    PermanentFailure,
    Rating,
    Receipt,
    Result,
    RetryableFailure,
    Settings,
    SQLiteStore,
    StoreError,
    Text,
    Thumb,
    UnknownTargetError,
    _capture,
)
from otel_feedback._correlate import Correlator
from otel_feedback.exporters import FeedbackExporter
from otel_feedback.provider import ANY_KIND, MAX_TOLD_NAMES, start_from_environment
from otel_feedback.stores import PARKED, UNROUTED, Binding, DestinationStats, Entry, Parked
from otel_feedback.stores._sqlite_file import BUSY_TIMEOUT_MILLIS
from otel_feedback.testing import FakeClock, InMemoryFeedbackExporter

Make = Callable[..., FeedbackProvider]
# What `make` hands to the provider itself; the rest are its settings.
CONSTRUCTOR = ("store", "feedback", "redact", "filters", "clock", "tracer_provider")


def a_handle(number: int = 1, *, is_sampled: bool = True, started_at: int | None = None) -> FeedbackHandle:
    context = SpanContext(0xABC, number, is_remote=True, trace_flags=TraceFlags(int(is_sampled)))
    return FeedbackHandle(context, started_at=started_at)


HANDLE = a_handle()


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes providers that record only, in memory, unless told otherwise; all are shut down."""
    made: list[FeedbackProvider] = []

    def make(*exporters: FeedbackExporter, **given: Any) -> FeedbackProvider:
        arguments = {name: given.pop(name) for name in CONSTRUCTOR if name in given}
        settings = Settings(**{"key_wait_millis": 0, "delivery": "none", **given})
        made.append(
            FeedbackProvider(
                exporters=exporters,
                settings=settings,
                **{"store": "memory:", "tracer_provider": NoOpTracerProvider(), **arguments},
            )
        )
        return made[-1]

    yield make
    for provider in made:
        provider.shutdown()


def states(receipt: Receipt) -> dict[str, str]:
    return {name: delivery.state for name, delivery in receipt.deliveries.items()}


def our_threads() -> list[str]:
    return sorted(
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith(("otel-feedback-correlate", "otel-feedback-deliver"))
    )


# --- recording ---------------------------------------------------------------------------------------------------


class CountingStore(MemoryStore):
    """Counts how often it is asked what became of a judgement."""

    asked = 0

    def status(self, record_id: str) -> Any:
        self.asked += 1
        return super().status(record_id)


class TestRecord:
    def test_a_receipt_says_where_a_judgement_goes_and_what_will_be_missing(self, make: Make) -> None:
        """
        The receipt has the id, what it survives, each destination's state, and what none of them carries.
        """

        class Mute(InMemoryFeedbackExporter):
            def parts(self, record: FeedbackRecord) -> Sequence[Part]:
                return []

        provider = make(InMemoryFeedbackExporter("a"), Mute("mute"))
        receipt = provider.record(HANDLE, "rating", True, comment="Spot on")

        assert ("memory", {"a": "pending", "mute": "pending"}) == (receipt.durability, states(receipt))
        assert {"mute": ("value", "comment")} == receipt.not_carried
        assert receipt == provider.status(receipt.id)

    def test_a_receipt_speaks_of_the_destinations_that_were_asked_for(self, make: Make) -> None:
        """
        With `to`, the others are neither delivered to nor named.
        """
        provider = make(InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b"))

        assert {"b": "pending"} == states(provider.record(HANDLE, "rating", True, to=["b"]))

    @pytest.mark.parametrize(
        ("store", "settings", "durability"),
        [
            ("memory:", {}, "memory"),
            ("memory://", {}, "memory"),
            ("sqlite:///feedback.db", {}, "disk"),
            ("sqlite:///feedback.db", {"durability": "process"}, "process"),
        ],
    )
    def test_a_receipt_says_what_it_survives(
        self, make: Make, store: str, settings: dict[str, Any], durability: str
    ) -> None:
        """
        A power cut, a killed process or nothing, as the store and its setting have it.
        """
        assert durability == make(store=store, **settings).record(HANDLE, "rating", True).durability

    def test_the_same_person_replaces_a_judgement_and_others_do_not(self, make: Make) -> None:
        """
        With a user the id is the same on the same span, name and source; without one it is always new.
        """
        provider = make()
        ids = [provider.record(HANDLE, "rating", value, user_id="u-1").id for value in (True, False)]
        ids += [provider.record(HANDLE, "rating", True, user_id="u-2").id, provider.record(HANDLE, "rating", True).id]

        assert [ids[0], ids[0]] == ids[:2]
        assert 3 == len(set(ids))
        assert 1 == provider.stats()[UNROUTED].superseded

    @pytest.mark.parametrize("target", [0, False, [], {}, 5, object()])
    def test_what_is_no_handle_is_refused(self, make: Make, target: Any) -> None:
        """
        A wrong target is invalid, also one that is false in Python: it never means "no target".
        """
        provider = make()
        provider.bind_key(HANDLE, "None")

        with pytest.raises(InvalidFeedbackError):
            provider.record(target, "rating", True)

    @pytest.mark.parametrize("native", [5, "weave", ["a"], {"a": 5}])
    def test_native_fields_of_another_form_are_refused(self, make: Make, native: Any) -> None:
        """
        Whatever is given for `native`, the error is ours and names the field.
        """
        with pytest.raises(InvalidFeedbackError) as caught:
            make(InMemoryFeedbackExporter("a")).record(HANDLE, "rating", True, native=native)

        assert caught.value.field.startswith("native")

    def test_an_invalid_judgement_leaves_nothing(self, make: Make) -> None:
        """
        What is refused was never stored.
        """
        provider = make()
        with pytest.raises(InvalidFeedbackError):
            provider.record(HANDLE, "rating", 5)

        assert {} == provider.stats()

    def test_recording_asynchronously_is_recording(self, make: Make) -> None:
        """
        `arecord` accepts by handle and by key, and raises what `record` raises.
        """
        provider = make()
        provider.bind_key(HANDLE, "m-1")

        async def main() -> tuple[Receipt, Receipt]:
            with pytest.raises(UnknownTargetError):
                await provider.arecord(key="nobody", name="rating", value=True)
            by_handle = await provider.arecord(HANDLE, "rating", True, user_id="u-1")
            return by_handle, await provider.arecord(key="m-1", name="rating", value=True, user_id="u-1")

        by_handle, by_key = asyncio.run(main())

        assert by_handle.id == by_key.id

    def test_unsampled_feedback_is_skipped_and_says_so(self, make: Make) -> None:
        """
        No vendor has the span, so the delivery ends at once, with its reason, and is counted.
        """
        provider = make(InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("log", exports_unsampled=True))
        receipt = provider.record(a_handle(is_sampled=False), "rating", True)

        assert {"a": ("skipped", "unsampled"), "log": ("pending", None)} == {
            name: (each.state, each.reason) for name, each in receipt.deliveries.items()
        }
        assert receipt == provider.status(receipt.id)
        assert {"unsampled": 1} == provider.stats()["a"].skipped

    def test_unsampled_feedback_goes_out_where_that_is_set(self, make: Make) -> None:
        """
        With `on_unsampled="export"` it is delivered like any other.
        """
        provider = make(InMemoryFeedbackExporter("a"), on_unsampled="export")

        assert {"a": "pending"} == states(provider.record(a_handle(is_sampled=False), "rating", True))

    def test_what_is_redacted_is_what_is_kept(self, make: Make) -> None:
        """
        The application's `redact` sees a judgement first: what it takes out is never stored, what it breaks refused.
        """
        provider = make(InMemoryFeedbackExporter("a"), redact=lambda given: replace(given, comment=None))
        receipt = provider.record(HANDLE, "rating", True, comment="my number is 555")

        assert provider._store.latest(receipt.id).comment is None  # type: ignore[union-attr]  # it is there
        with pytest.raises(InvalidFeedbackError, match="nothing was said"):
            provider.record(HANDLE, "note", comment="my number is 555")

    def test_a_redaction_that_fails_keeps_nothing(self, make: Make) -> None:
        """
        What `redact` raises refuses the judgement: nothing is stored that it has not seen through.
        """

        def fail(given: Feedback) -> Feedback:
            raise LookupError("no rules")

        provider = make(redact=fail)
        with pytest.raises(LookupError, match="no rules"):
            provider.record(HANDLE, "rating", True)

        assert {} == provider.stats()


class TestRecordMany:
    def test_one_receipt_for_each_in_order(self, make: Make) -> None:
        """
        Judgements of all kinds of targets are accepted together, from any iterable.
        """
        provider = make()
        provider.bind_key(HANDLE, "m-1")
        given = (Feedback(key="m-1", name=name, value=True, user_id="u-1") for name in ("a", "b"))
        receipts = provider.record_many(given)

        assert [provider.record(HANDLE, name, True, user_id="u-1").id for name in ("a", "b")] == [
            receipt.id for receipt in receipts
        ]

    def test_nothing_is_nothing(self, make: Make) -> None:
        """
        No judgements, no receipts.
        """
        assert [] == make().record_many([])

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            (Feedback(target=HANDLE, name="rating", value=5), InvalidFeedbackError),
            (Feedback(key="nobody", name="rating", value=True), UnknownTargetError),
        ],
    )
    def test_one_wrong_judgement_refuses_all(self, make: Make, wrong: Feedback, error: type[Exception]) -> None:
        """
        All or none: a batch with one that cannot be accepted stores nothing.
        """
        provider = make()
        with pytest.raises(error):
            provider.record_many([Feedback(target=HANDLE, name="rating", value=True), wrong])

        assert {} == provider.stats()

    @pytest.mark.parametrize("wrong", [None, {"name": "rating", "value": True}, ("rating", True)])
    def test_what_is_no_feedback_object_is_named(self, make: Make, wrong: Any) -> None:
        """
        The error says what was given, and that a judgement in a batch is a `Feedback`.
        """
        with pytest.raises(InvalidFeedbackError, match=f"not {type(wrong).__name__}") as caught:
            make().record_many([wrong])

        assert ("feedback", wrong) == (caught.value.field, caught.value.value)

    def test_a_judgement_is_checked_before_its_key_is_looked_up(self, make: Make) -> None:
        """
        Of two errors the one that costs no waiting is told: the value is wrong, and the key is unknown.
        """

        class Unread(MemoryStore):
            def find(self, kind: str, key: str) -> Sequence[FeedbackHandle]:
                raise AssertionError("the key was looked up")

        with pytest.raises(InvalidFeedbackError) as caught:
            make(store=Unread()).record(key="nobody", name="rating", value=5)

        assert "value" == caught.value.field

    def test_a_full_store_refuses_all(self, make: Make) -> None:
        """
        The store takes a batch in one transaction or not at all, and its error reaches the caller.
        """

        class Full(MemoryStore):
            def put_many(self, entries: Sequence[Entry]) -> None:
                raise OutboxFullError("full", store=self.url, limit=0)

        provider = make(store=Full(), on_unknown_key="park")
        with pytest.raises(OutboxFullError):
            provider.record_many(
                [Feedback(target=HANDLE, name="a", value=True), Feedback(key="later", name="a", value=True)]
            )

        assert () == tuple(provider._store.parked("any", "later"))

    def test_receipts_cost_no_further_question(self, make: Make) -> None:
        """
        What a receipt says of a thousand judgements that were just stored is known without asking the store.
        """
        store = CountingStore()
        receipts = make(store=store).record_many(
            Feedback(target=a_handle(number), name="rating", value=True) for number in range(1, 1_001)
        )

        assert (1_000, 0) == (len(receipts), store.asked)


# --- keys --------------------------------------------------------------------------------------------------------


class SignallingStore(MemoryStore):
    """Says when somebody has looked for a key."""

    def __init__(self) -> None:
        super().__init__()
        self.looked = threading.Event()

    def find(self, kind: str, key: str) -> Sequence[FeedbackHandle]:
        found = super().find(kind, key)
        self.looked.set()
        return found


class TestAsync:
    def test_made_up_keys_keep_nobody_waiting(self, make: Make) -> None:
        """
        While two hundred judgements wait for keys that never come, one with a handle is accepted at once.
        """
        provider = make(key_wait_millis=60_000)

        async def judge() -> Receipt:
            waiting = [
                asyncio.ensure_future(provider.arecord(key=f"no-{n}", name="rating", value=True)) for n in range(200)
            ]
            await asyncio.sleep(0)
            receipt = await asyncio.wait_for(provider.arecord(HANDLE, "rating", True), timeout=30)
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            return receipt

        assert {"unrouted": "pending"} == states(asyncio.run(judge()))

    def test_a_key_that_comes_late_is_waited_for(self, make: Make) -> None:
        """
        A judgement in an event loop is joined to a call whose key is bound while it waits.
        """
        provider = make(key_wait_millis=60_000)

        async def judge() -> Receipt:
            waiting = asyncio.ensure_future(provider.arecord(key="m-1", name="rating", value=True))
            await asyncio.sleep(0)
            provider.bind_key(HANDLE, "m-1")
            return await asyncio.wait_for(waiting, timeout=30)

        assert HANDLE.span_id == provider._store.latest(asyncio.run(judge()).id).handle.span_id  # type: ignore[union-attr]  # it is there

    @pytest.mark.parametrize("wait_millis", [0, 100])
    def test_a_key_that_never_comes_is_unknown(self, make: Make, wait_millis: int) -> None:
        """
        After its time the judgement is refused as it is without an event loop.
        """
        with pytest.raises(UnknownTargetError, match="'nobody'"):
            asyncio.run(make(key_wait_millis=wait_millis).arecord(key="nobody", name="rating", value=True))

    @pytest.mark.parametrize("key", [1.5, b"m-1", ["m-1"]])
    def test_a_key_that_is_none_is_refused_without_waiting(self, make: Make, key: Any) -> None:
        """
        What can be nobody's key is an error at once.
        """
        with pytest.raises(InvalidFeedbackError):
            asyncio.run(make(key_wait_millis=60_000).arecord(key=key, name="rating", value=True))

    @pytest.mark.parametrize(
        ("said", "field"),
        [
            ({"value": 5}, "value"),
            ({"key": "\ud800"}, "key"),
            ({"key": 10**5_000}, "key"),
            ({"key_kind": "x"}, "key_kind"),
        ],
    )
    def test_a_judgement_is_checked_before_it_waits(self, make: Make, said: Mapping[str, Any], field: str) -> None:
        """
        What is wrong with it, or with its key, is said at once and by its name, as without an event loop.
        """
        given = {"key": "nobody", "name": "rating", "value": True, **said}
        with pytest.raises(InvalidFeedbackError) as caught:
            asyncio.run(make(key_wait_millis=60_000).arecord(**given))

        assert field == caught.value.field

    def test_where_everything_is_off_nobody_waits(self) -> None:
        """
        A disabled provider answers at once, whatever the key.
        """
        provider = FeedbackProvider(settings=Settings(disabled=True, key_wait_millis=60_000))

        assert "disabled" == asyncio.run(provider.arecord(key="nobody", name="rating", value=True)).durability


class TestKeys:
    @pytest.mark.parametrize("key", ["m-1", 17])
    def test_a_key_leads_to_its_call(self, make: Make, key: Any) -> None:
        """
        What was bound is found at once, numbers as their text.
        """
        provider = make()
        provider.bind_key(HANDLE, key)

        assert HANDLE == provider.handle_for_key(key) == provider.handle_for_key(str(key))

    def test_the_newest_call_wins(self, make: Make) -> None:
        """
        A key that is bound again means the call that started last, in whatever order they were bound.
        """
        provider = make()
        for number, started_at in ((1, 10), (3, 30), (2, 20)):
            provider.bind_key(a_handle(number, started_at=started_at), "m-1")

        assert a_handle(3).span_id == provider.handle_for_key("m-1").span_id

    def test_app_keys_come_before_response_ids_and_conversations_need_their_kind(self, make: Make) -> None:
        """
        Without a kind a key is looked for among the app's own, then among response ids, and nowhere else.
        """
        provider = make()
        for number, kind in ((1, "conversation"), (2, "response"), (3, "app")):
            provider.bind_key(a_handle(number), "both", kind)
        provider.bind_key(a_handle(4), "r-1", "response")
        kinds = (None, "app", "response", "conversation")

        assert [3, 3, 2, 1] == [provider.handle_for_key("both", key_kind=kind).context.span_id for kind in kinds]
        assert 4 == provider.handle_for_key("r-1").context.span_id

    def test_an_unknown_key_says_what_to_check(self, make: Make) -> None:
        """
        The error has the key, its kind and the store as attributes, and names what may be wrong.
        """
        with pytest.raises(UnknownTargetError, match="was the call captured") as caught:
            make().handle_for_key("nobody", key_kind="app")

        assert ("nobody", "app", "memory:") == (caught.value.key, caught.value.key_kind, caught.value.store)

    def test_an_invalid_handle_is_not_bound(self, make: Make) -> None:
        """
        Without an SDK a call has no ids, and its key leads nowhere.
        """
        provider = make()
        provider.bind_key(_capture.INVALID, "m-1")

        with pytest.raises(UnknownTargetError):
            provider.handle_for_key("m-1")

    @pytest.mark.parametrize(
        ("key", "kind"), [("", "app"), ("\ud800", "app"), (1.5, "app"), ("m-1", "other"), (None, "app")]
    )
    def test_what_nobody_could_look_up_is_not_bound(self, make: Make, key: Any, kind: str) -> None:
        """
        A key that `record_feedback` would refuse is refused when it is bound.
        """
        with pytest.raises(InvalidFeedbackError):
            make().bind_key(HANDLE, key, kind)

    def test_a_key_that_comes_while_somebody_waits_is_found(self, make: Make) -> None:
        """
        Recording waits for a key that another process is just about to bind in the same store.
        """
        store = SignallingStore()
        provider, other = make(store=store, key_wait_millis=30_000), make(store=store)

        def bind() -> None:
            store.looked.wait()
            other.bind_key(HANDLE, "m-1")

        binding = threading.Thread(target=bind)
        binding.start()
        receipt = provider.record(key="m-1", name="rating", value=True, user_id="u-1")
        binding.join()

        assert provider.record(HANDLE, "rating", True, user_id="u-1").id == receipt.id


# --- judgements that come before their key -----------------------------------------------------------------------


class BoundMeanwhile(MemoryStore):
    """Another process binds the key after it was looked for and before the judgement is parked."""

    def put_many(self, entries: Sequence[Entry | Parked]) -> None:
        self.bind([Binding("app", each.key, HANDLE) for each in entries if isinstance(each, Parked)])
        super().put_many(entries)


@pytest.mark.parametrize("key", ["", "\ud800", pytest.param(10**5_000, id="huge"), 1.5])
def test_a_look_up_refuses_what_can_be_nobodys_key(make: Make, key: Any) -> None:
    """
    The error is the one that a judgement with such a key gets, before anything is looked up.
    """
    with pytest.raises(InvalidFeedbackError) as caught:
        make().handle_for_key(key)

    assert "key" == caught.value.field


class TestParking:
    def test_a_parked_judgement_is_joined_when_its_key_comes(self, make: Make) -> None:
        """
        It is accepted without a call, found by its id, and goes to its destinations once the call is known.
        """
        provider = make(InMemoryFeedbackExporter("a"), on_unknown_key="park")
        receipt = provider.record(key="m-1", name="rating", value=True, user_id="u-1")
        before = provider.status(receipt.id)
        provider.bind_key(HANDLE, "m-1")
        assert provider.handle_for_key("m-1") == HANDLE
        after = provider.status(receipt.id)

        assert ({"a": "parked"}, {"a": "parked"}, {"a": "pending"}) == (states(receipt), states(before), states(after))
        assert receipt.id == before.id == after.id

    @pytest.mark.parametrize("kind", ["app", "response"])
    def test_without_a_kind_a_response_id_joins_as_well(self, make: Make, kind: str) -> None:
        """
        What would have been found by either kind of key is joined by either.
        """
        provider = make(on_unknown_key="park")
        receipt = provider.record(key="r-1", name="rating", value=True)
        provider.bind_key(HANDLE, "r-1", "conversation")
        provider._here().correlator.flush()
        waiting = states(provider.status(receipt.id))
        provider.bind_key(HANDLE, "r-1", kind)
        provider._here().correlator.flush()

        assert ({UNROUTED: "parked"}, {UNROUTED: "pending"}) == (waiting, states(provider.status(receipt.id)))

    def test_with_a_kind_only_that_one_joins(self, make: Make) -> None:
        """
        Kinds never mix: a conversation's judgement does not go to a message of the same id.
        """
        provider = make(on_unknown_key="park")
        receipt = provider.record(key="c-1", key_kind="conversation", name="rating", value=True)
        provider.bind_key(a_handle(2), "c-1")
        provider._here().correlator.flush()
        waiting = states(provider.status(receipt.id))
        provider.bind_key(HANDLE, "c-1", "conversation")
        provider._here().correlator.flush()

        assert ({UNROUTED: "parked"}, {UNROUTED: "pending"}) == (waiting, states(provider.status(receipt.id)))

    def test_after_joining_the_id_is_what_recording_directly_would_give(self, make: Make) -> None:
        """
        A later change of mind supersedes the parked judgement, and the parked id follows.
        """
        provider = make(on_unknown_key="park")
        parked = provider.record(key="m-1", name="rating", value=True, user_id="u-1")
        provider.bind_key(HANDLE, "m-1")
        changed = provider.record(key="m-1", name="rating", value=False, user_id="u-1")

        latest = provider._store.latest(parked.id)
        assert latest is not None
        assert (changed.id, False) == (latest.id, latest.value)
        assert (1, 1) == (provider.stats()[UNROUTED].superseded, provider.stats()[UNROUTED].pending)

    def test_a_change_of_mind_before_the_key_replaces_the_first(self, make: Make) -> None:
        """
        The same person's second judgement of the same unknown key is the one that is joined.
        """
        provider = make(on_unknown_key="park")
        first, second = (
            provider.record(key="m-1", name="rating", value=value, user_id="u-1") for value in (True, False)
        )
        provider.bind_key(HANDLE, "m-1")
        provider._here().correlator.flush()

        assert first.id == second.id
        assert False is provider._store.latest(first.id).value  # type: ignore[union-attr]  # it is there
        assert 1 == provider.stats()[UNROUTED].recorded

    @pytest.mark.parametrize("options", [{}, {"id": "8f1d9f4e-6d0c-4d56-9b6c-2f8f3f8b6f10", "user_id": "u-1"}])
    def test_an_id_that_is_nobodys_stays(self, make: Make, options: dict[str, Any]) -> None:
        """
        Without a user, or with an id of the application's own, joining keeps the id.
        """
        provider = make(on_unknown_key="park")
        receipt = provider.record(key="m-1", name="rating", value=True, **options)
        provider.bind_key(HANDLE, "m-1")
        provider._here().correlator.flush()

        latest = provider._store.latest(receipt.id)
        assert latest is not None
        assert (receipt.id, HANDLE) == (latest.id, latest.handle)

    def test_a_key_that_comes_meanwhile_is_not_missed(self, make: Make) -> None:
        """
        Bound between the look-up and the parking, a key still joins the judgement, and the receipt has its deliveries.
        """
        provider = make(store=BoundMeanwhile(), on_unknown_key="park")

        assert {UNROUTED: "pending"} == states(provider.record(key="m-1", name="rating", value=True))

    def test_an_earlier_word_comes_first_though_nobody_has_joined_it(self, make: Make) -> None:
        """
        Where the process that bound the key ended before it joined what waited, the next judgement does, and wins.
        """
        store = MemoryStore()
        provider = make(store=store, on_unknown_key="park")
        parked = provider.record(key="m-1", name="rating", value=True, user_id="u-1")
        store.bind([Binding("app", "m-1", HANDLE)])
        changed = provider.record(key="m-1", name="rating", value=False, user_id="u-1")

        latest = store.latest(parked.id)
        assert latest is not None
        assert (changed.id, False) == (latest.id, latest.value)

    def test_it_goes_where_the_recording_process_meant_it_to_go(self, make: Make) -> None:
        """
        The process that binds the key may have no exporters: the judgement goes where its recorder would send it.
        """
        store = MemoryStore()
        recorder = make(InMemoryFeedbackExporter("a"), store=store, on_unknown_key="park")
        caller = make(store=store)
        receipt = recorder.record(key="m-1", name="rating", value=True)
        caller.bind_key(HANDLE, "m-1")
        caller._here().correlator.flush()

        assert {"a": "pending"} == states(recorder.status(receipt.id))

    @pytest.mark.parametrize("kind", [None, "app", "response"])
    def test_what_waited_when_the_process_that_bound_the_key_was_killed_is_joined(
        self, make: Make, kind: str | None
    ) -> None:
        """
        Whoever keeps the store in order finds it, in another process as well.
        """
        store = MemoryStore()
        recorder = make(InMemoryFeedbackExporter("a"), store=store, on_unknown_key="park")
        parked = recorder.record(key="m-1", key_kind=kind, name="rating", value=True)
        store.bind([Binding(kind or "app", "m-1", HANDLE)])
        keeper = make(InMemoryFeedbackExporter("a"), store=store)
        keeper.deliver()

        assert {"a": "delivered"} == states(recorder.status(parked.id))

    def test_it_is_redacted_once(self, make: Make) -> None:
        """
        Before it is kept, with what each destination may not see; joining it changes nothing more.
        """

        def hashed(feedback: Feedback) -> Feedback:
            return replace(feedback, user_id=f"#{feedback.user_id}")

        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, on_unknown_key="park", redact={"a": hashed})
        provider.record(key="m-1", name="rating", value=True, user_id="ann")
        provider._store.bind([Binding("app", "m-1", HANDLE)])
        provider.deliver()

        assert ["#ann"] == [part.record.user_id for part in exporter.exported]

    @pytest.mark.parametrize("user_id", [None, "#ann"])
    def test_a_change_of_mind_replaces_what_waited_under_a_redacted_name(self, make: Make, user_id: str | None) -> None:
        """
        Although nothing that is kept says who it was: the key does.
        """
        exporter = InMemoryFeedbackExporter("a")
        redact = {"a": lambda feedback: replace(feedback, user_id=user_id)}
        provider = make(exporter, on_unknown_key="park", redact=redact)
        first = provider.record(key="m-1", name="rating", value=False, user_id="ann")
        other = provider.record(key="m-1", name="rating", value=True, user_id="ben")
        provider._store.bind([Binding("app", "m-1", HANDLE)])
        provider.deliver()
        second = provider.record(key="m-1", name="rating", value=True, user_id="ann")
        provider.deliver()

        assert first.id == second.id != other.id
        assert [("create", False), ("create", True), ("replace", True)] == [
            (part.action, part.record.value) for part in exporter.exported
        ]

    def test_an_earlier_word_of_the_same_id_on_another_call_is_not_replaced(self, make: Make) -> None:
        """
        A key that now means another call has nothing to do with the one that it meant.
        """
        redact = {"a": lambda feedback: replace(feedback, user_id=None)}
        provider = make(InMemoryFeedbackExporter("a"), on_unknown_key="park", redact=redact)
        first = provider.record(key="m-1", name="rating", value=True, user_id="ann")
        provider._store.bind([Binding("app", "m-1", HANDLE)])
        provider.deliver()
        provider._store.bind([Binding("app", "m-1", a_handle(7, started_at=2))])
        second = provider.record(key="m-1", name="rating", value=True, user_id="ann")

        assert first.id != second.id

    def test_one_that_is_taken_back_again_and_again_goes_nowhere(self, make: Make) -> None:
        """
        The same person's word for the same key has the same id each time.
        """
        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, on_unknown_key="park")
        for _ in range(3):
            receipt = provider.record(key="m-1", name="rating", value=True, user_id="ann")
            provider.retract(receipt.id)
        provider._store.bind([Binding("app", "m-1", HANDLE)])
        provider.deliver()

        assert () == exporter.exported
        assert PARKED not in provider.stats()

    def test_one_that_is_pruned_while_it_is_taken_back_is_unknown(self, make: Make) -> None:
        """
        Between two looks at it nothing may be left to take back.
        """

        class Pruning(MemoryStore):
            def unpark(self, parked_id: str, entry: Entry) -> bool:
                self.forget("ann")
                return super().unpark(parked_id, entry)

        provider = make(InMemoryFeedbackExporter("a"), store=Pruning())
        receipt = provider.record(HANDLE, "rating", True, user_id="ann")

        with pytest.raises(UnknownTargetError, match=receipt.id):
            provider.retract(receipt.id)

    def test_what_was_accepted_is_accepted_whatever_fails_after_it(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        A key that cannot be looked for once more is looked for later; nothing is raised.
        """

        class Failing(MemoryStore):
            looks = 0

            def find(self, kind: str, key: str) -> Sequence[FeedbackHandle]:
                self.looks += 1
                if self.looks > looks:
                    raise StoreError("locked", store="memory:")
                return super().find(kind, key)

        store, looks = Failing(), 2  # both kinds of key, before it is accepted
        provider = make(store=store, on_unknown_key="park")
        receipt = provider.record(key="m-1", name="rating", value=True)

        assert {"unrouted": "parked"} == states(receipt)
        assert "a judgement waits for its key, which could not be looked up: locked" in caplog.messages

    def test_the_keeper_passes_on_what_the_store_cannot_do(self, make: Make) -> None:
        """
        A store that fails there fails the pass.
        """

        class Broken(MemoryStore):
            def unpark(self, parked_id: str, entry: Entry) -> bool:
                raise StoreError("no such disk", store="memory:")

        store = Broken()
        make(store=store, on_unknown_key="park").record(key="m-1", name="rating", value=True)
        store.bind([Binding("app", "m-1", HANDLE)])

        with pytest.raises(StoreError, match="no such disk"):
            make(InMemoryFeedbackExporter("a"), store=store).deliver()

    def test_an_exporter_refuses_before_it_is_parked(self, make: Make) -> None:
        """
        What a destination calls invalid is refused when it is recorded, not when its key turns up.
        """

        class Refusing(InMemoryFeedbackExporter):
            def parts(self, record: FeedbackRecord) -> Sequence[Part]:
                raise InvalidFeedbackError("no", field="native")

        with pytest.raises(InvalidFeedbackError):
            make(Refusing("a"), on_unknown_key="park").record(key="m-1", name="rating", value=True)

    def test_one_that_waits_can_be_taken_back(self, make: Make) -> None:
        """
        A parked judgement that is retracted goes nowhere, whatever key turns up.
        """
        provider = make(on_unknown_key="park")
        receipt = provider.record(key="m-1", name="rating", value=True)
        retracted = provider.retract(receipt.id)
        provider.bind_key(HANDLE, "m-1")
        provider._here().correlator.flush()

        assert ({}, {}) == (states(retracted), states(provider.status(receipt.id)))
        assert {} == provider.stats()

    def test_one_that_is_joined_while_it_is_taken_back_is_taken_back(self, make: Make) -> None:
        """
        Where the key turns up at the same moment, the judgement that was joined is retracted.
        """

        class JoinedMeanwhile(MemoryStore):
            def unpark(self, parked_id: str, entry: Entry) -> bool:
                if entry.record.retracts:
                    self.bind([Binding("app", "m-1", HANDLE)])
                    provider._join_parked([Binding("app", "m-1", HANDLE)])
                return super().unpark(parked_id, entry)

        provider = make(store=JoinedMeanwhile(), on_unknown_key="park")
        receipt = provider.record(key="m-1", name="rating", value=True)

        assert {UNROUTED: "pending"} == states(provider.retract(receipt.id))
        assert 1 == provider.stats()[UNROUTED].retracted


# --- looking, planning, taking back ------------------------------------------------------------------------------


class TestLater:
    @pytest.mark.parametrize("ask", ["status", "retract"])
    def test_an_id_that_nobody_knows_is_an_error(self, make: Make, ask: str) -> None:
        """
        The error names the id and the store.
        """
        with pytest.raises(UnknownTargetError, match="'nobody' in memory:"):
            getattr(make(), ask)("nobody")

    @pytest.mark.parametrize("store", ["memory:", "sqlite:///half.db"])
    @pytest.mark.parametrize("ask", ["status", "retract"])
    def test_an_id_that_no_store_can_have_is_unknown(self, ask: str, store: str) -> None:
        """
        As one with half of a surrogate pair, which a browser can send.
        """
        with (
            FeedbackProvider(exporters=[], store=store) as provider,
            pytest.raises(UnknownTargetError, match="no feedback is known"),
        ):
            getattr(provider, ask)("\ud800")

    def test_an_id_is_known_in_any_spelling(self, make: Make) -> None:
        """
        A UUID in capitals, or as an object, is the same judgement; the receipts have the one spelling.
        """
        provider = make(InMemoryFeedbackExporter("a"))
        receipt = provider.record(HANDLE, "rating", True)

        assert [receipt] * 2 == [provider.status(receipt.id.upper()), provider.status(UUID(receipt.id))]  # type: ignore[arg-type]  # str() of it is an id
        assert receipt.id == provider.retract(receipt.id.upper()).id

    def test_a_retraction_goes_wherever_the_judgement_ever_went(self, make: Make) -> None:
        """
        A change of mind that went to one destination only leaves the first word at the other; both are taken back.
        """
        first, second = InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b")
        provider = make(first, second, delivery="thread")
        provider.record(HANDLE, "rating", True, user_id="u-1")
        assert provider.force_flush(10_000)
        receipt = provider.record(HANDLE, "rating", False, user_id="u-1", to=["a"])
        assert provider.force_flush(10_000)
        provider.retract(receipt.id)

        assert provider.force_flush(10_000)
        assert ["retract", "retract"] == [exporter.exported[-1].action for exporter in (first, second)]
        assert {"a": "retracted", "b": "retracted"} == states(provider.status(receipt.id))

    @pytest.mark.parametrize("other", [{"target": a_handle(2)}, {"name": "other"}])
    def test_an_id_stays_on_its_call(self, make: Make, other: Mapping[str, Any]) -> None:
        """
        An id of one's own under which another call, or another name, was judged is refused; the same one replaces.
        """
        provider = make(InMemoryFeedbackExporter("a"))
        said = {"target": HANDLE, "name": "rating", "id": "00000000-0000-4000-8000-000000000001"}
        provider.record(value=True, **said)
        again = provider.record(value=False, **said)
        with pytest.raises(InvalidFeedbackError, match="another call or name") as caught:
            provider.record(value=True, **{**said, **other})

        assert ("id", said["id"]) == (caught.value.field, again.id)

    def test_what_is_pending_is_never_sent_after_it_was_taken_back(self, make: Make) -> None:
        """
        A retraction supersedes the pending delivery and, with nothing to take back, ends as retracted.
        """
        exporter = InMemoryFeedbackExporter("a")
        recorder = make(exporter, store="sqlite:///feedback.db")
        receipt = recorder.record(HANDLE, "rating", True)
        retraction = recorder.retract(receipt.id)
        worker = make(exporter, store="sqlite:///feedback.db", delivery="thread")

        assert worker.force_flush(10_000)
        assert (receipt.id, {"a": "pending"}) == (retraction.id, states(retraction))
        assert {"a": "retracted"} == states(recorder.status(receipt.id))
        assert () == exporter.exported

    def test_what_was_delivered_is_taken_back_at_the_vendor(self, make: Make) -> None:
        """
        The destination is asked to retract the part, and told the newest judgement of somebody else that stands.
        """
        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, delivery="thread")
        provider.record(HANDLE, "rating", False, user_id="u-2")
        receipt = provider.record(HANDLE, "rating", True, user_id="u-1")
        provider.force_flush(10_000)
        provider.retract(receipt.id)

        assert provider.force_flush(10_000)
        last = exporter.exported[-1]
        assert ("retract", receipt.id) == (last.action, last.id)
        assert last.record.stands is not None
        assert ("u-2", False) == (last.record.stands.user_id, last.record.stands.value)

    def test_a_plan_records_nothing(self, make: Make) -> None:
        """
        What each destination would get of a judgement, or of a record, is said without any trace in the store.
        """
        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, InMemoryFeedbackExporter("b"))
        plans = provider.plan(Feedback(target=HANDLE, name="rating", value=True, to=["a"]))
        (part,) = plans["a"].parts

        assert ["a"] == list(plans)
        assert ["a", "b"] == list(provider.plan(part.record))
        assert {} == provider.stats()

    def test_what_waited_unrouted_goes_to_the_first_exporters(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        Records of a process without exporters wait, visibly, and go out when one is configured.
        """
        caplog.set_level(logging.INFO)
        exporter = InMemoryFeedbackExporter("a")
        without = make(store="sqlite:///feedback.db")
        receipt = without.record(HANDLE, "rating", True)
        waiting, was_flushed = states(receipt), without.force_flush(0)
        provider = make(exporter, store="sqlite:///feedback.db", delivery="thread")

        assert provider.force_flush(10_000)
        assert ({UNROUTED: "pending"}, False) == (waiting, was_flushed)
        assert {"a": "delivered"} == states(provider.status(receipt.id))
        assert 1 == caplog.text.count("set OTEL_FEEDBACK_EXPORTERS")
        assert 1 == caplog.text.count("1 judgements that had waited unrouted go to ['a']")

    def test_the_account_is_conserved(self, make: Make) -> None:
        """
        Delivered, superseded, retracted, skipped, dead and pending add up to what was recorded, at every destination.
        """
        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, InMemoryFeedbackExporter("b"), delivery="thread")
        exporter.fail_next(PermanentFailure("no"))
        ids = [provider.record(a_handle(number), "rating", True).id for number in range(1, 6)]
        provider.record(a_handle(7, is_sampled=False), "rating", True)
        provider.retract(ids[0])

        assert provider.force_flush(10_000)
        assert all(account.is_conserved and account.pending == 0 for account in provider.stats().values())
        assert 1 == provider.stats()["a"].dead


class TestDisabled:
    def test_everything_is_a_no_op(self, tmp_path: Path) -> None:
        """
        Nothing is opened, started or raised, though the configuration could not even be used.
        """
        with FeedbackProvider(
            settings=Settings(disabled=True, exporters=("nobody",), store_url="nonsense")
        ) as provider:
            receipt = provider.record("no token", "rating", 5)
            receipts = provider.record_many([Feedback(name="rating")])
            provider.bind_key(HANDLE, "m-1")

            assert [receipt] * 4 == [*receipts, provider.status(receipt.id), provider.retract(receipt.id), receipts[0]]
            assert ("disabled", {}) == (receipt.durability, receipt.deliveries)
            assert not provider.handle_for_key("m-1").is_valid
            assert ({}, {}, True) == (provider.stats(), provider.plan(Feedback(name="rating")), provider.force_flush())
        assert [] == our_threads()
        assert [] == list(tmp_path.iterdir())


# --- flushing ----------------------------------------------------------------------------------------------------


class HoldingExporter(InMemoryFeedbackExporter):
    """Holds its parts back for a minute, as Braintrust's does."""

    def parts(self, record: FeedbackRecord) -> Sequence[Part]:
        due = record.recorded_at_unix_nano + 60_000_000_000
        return [replace(part, not_before_unix_nano=due) for part in super().parts(record)]


class BrokenExporter(InMemoryFeedbackExporter):
    """Raises wherever it can."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        raise RuntimeError("no flush")

    def shutdown(self) -> None:
        raise RuntimeError("no shutdown")


class BrokenTracing(NoOpTracerProvider):
    """A tracer provider that cannot be flushed."""

    def force_flush(self, timeout_millis: int) -> bool:
        raise RuntimeError("no flush")


def test_an_interrupt_of_a_flush_comes_through(make: Make) -> None:
    """
    What an exporter does wrong stays its own; Ctrl-C in it is the user's.
    """

    class Interrupted(InMemoryFeedbackExporter):
        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(Interrupted("a")).force_flush()


@pytest.mark.parametrize("wrong", [3, object(), "sqlite:///a\0b", "mysql:///a", "sqlite:///", ""])
def test_what_is_no_store_is_refused(wrong: Any) -> None:
    """
    Anything but a store or the URL of one is an error that says what a URL looks like.
    """
    with pytest.raises(ConfigurationError, match="sqlite:///path"):
        FeedbackProvider(exporters=[], store=wrong)


@pytest.mark.parametrize("wrong", ["orq", InMemoryFeedbackExporter(), 3])
def test_exporters_are_a_list(wrong: Any) -> None:
    """
    One exporter, or a name, instead of a list is an error that shows the list.
    """
    with pytest.raises(ConfigurationError, match="list of exporters"):
        FeedbackProvider(exporters=wrong, store="memory:")


def test_a_store_in_memory_has_a_name_of_its_own() -> None:
    """
    SQLite's name for memory would make a file of that name; the error says what to write instead.
    """
    with pytest.raises(ConfigurationError, match="memory:"):
        FeedbackProvider(exporters=[], store="sqlite:///:memory:")


class TestForceFlush:
    def test_it_is_true_when_everything_went(self, make: Make) -> None:
        """
        With one destination or several, after a flush that says true nothing waits.
        """
        exporters = [InMemoryFeedbackExporter(name) for name in "abc"]
        provider = make(*exporters, delivery="thread")
        provider.record(HANDLE, "rating", True)

        assert provider.force_flush(10_000)
        assert [1, 1, 1] == [len(exporter.exported) for exporter in exporters]

    def test_it_is_false_while_something_is_tried_again(self, make: Make) -> None:
        """
        A failing destination that is due again in an hour is not waited for.
        """
        exporter = InMemoryFeedbackExporter("a")
        exporter.fail_next(RetryableFailure("down", retry_after_millis=3_600_000))
        provider = make(exporter, delivery="thread")
        provider.record(HANDLE, "rating", True)

        assert not provider.force_flush(10_000)

    def test_it_waits_for_what_is_due_in_time(self, make: Make) -> None:
        """
        A failure that is tried again soon is delivered within the flush.
        """
        exporter = InMemoryFeedbackExporter("a")
        exporter.fail_next(RetryableFailure("busy", retry_after_millis=50))
        provider = make(exporter, delivery="thread")
        provider.record(HANDLE, "rating", True)

        assert provider.force_flush(30_000)
        assert 1 == len(exporter.exported)

    def test_where_another_process_delivers_it_waits_for_that_one(self, make: Make) -> None:
        """
        A process that only records sends nothing, though it has exporters: it says what still waits.
        """
        mine, theirs = InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("a")
        recorder = make(mine, store="sqlite:///feedback.db")
        recorder.record(HANDLE, "rating", True)
        before = recorder.force_flush(30)
        worker = make(theirs, store="sqlite:///feedback.db", delivery="thread")
        worker.start()

        assert recorder.force_flush(30_000)
        assert (False, 0, 1) == (before, len(mine.exported), len(theirs.exported))

    def test_what_is_held_is_released_once_the_span_was_exported(self, make: Make) -> None:
        """
        After the shutdown nobody has looked at the record yet: a flush exports the span's end first, then the record.
        """
        tracer_provider = TracerProvider(shutdown_on_exit=False)
        exporter = HoldingExporter("a")
        provider = make(exporter, tracer_provider=tracer_provider, delivery="thread")
        tracer_provider.add_span_processor(provider.span_processor)
        provider.shutdown()
        attributes = {"gen_ai.operation.name": "chat"}
        with tracer_provider.get_tracer("app").start_as_current_span("chat", attributes=attributes) as span:
            handle = FeedbackHandle.from_span(span)
            provider.record(handle, "rating", True)
            is_flushed_early = provider.force_flush(0)

        assert provider.force_flush(10_000)
        assert (False, [handle.span_id]) == (is_flushed_early, [record.handle.span_id for record in exporter.records])

    def test_what_was_found_held_before_is_released_too(self, make: Make) -> None:
        """
        Also a record that a delivery thread has already put back until its hold is over goes out with the flush.
        """
        tracer_provider = TracerProvider(shutdown_on_exit=False)
        exporter = HoldingExporter("a")
        provider = make(exporter, tracer_provider=tracer_provider, delivery="thread").start()
        tracer_provider.add_span_processor(provider.span_processor)
        attributes = {"gen_ai.operation.name": "chat"}
        with tracer_provider.get_tracer("app").start_as_current_span("chat", attributes=attributes) as span:
            provider.record(FeedbackHandle.from_span(span), "rating", True)
            provider.force_flush(1_000)

        assert provider.force_flush(10_000)

    @pytest.mark.parametrize("tracer_provider", [TracerProvider(shutdown_on_exit=False), BrokenTracing()])
    def test_what_is_held_for_a_span_of_another_process_stays(self, make: Make, tracer_provider: Any) -> None:
        """
        Flushing this process's spans says nothing of a span that ended elsewhere, nor does a flush that fails.
        """
        exporter = HoldingExporter("a")
        provider = make(exporter, tracer_provider=tracer_provider, delivery="thread")
        provider.record(HANDLE, "rating", True)

        assert not provider.force_flush(10_000)
        assert () == exporter.exported

    def test_what_waits_for_an_exporter_that_is_gone_makes_it_false(
        self, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        A destination that was renamed, or left out, is named when the next process starts.
        """
        url = f"sqlite:///{tmp_path / 'feedback.db'}"
        with make(InMemoryFeedbackExporter(name="old"), store=url) as first:
            first.record(HANDLE, "rating", True)
        with make(InMemoryFeedbackExporter(name="new"), store=url, delivery="thread") as second:
            second.start()
            is_flushed = second.force_flush()

        assert not is_flushed
        assert any("1 judgements wait for old" in message for message in caplog.messages)

    def test_who_leaves_delivery_to_others_is_told_of_none_that_is_gone(
        self, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        A process that only records knows nothing of the exporters of the one that delivers.
        """
        url = f"sqlite:///{tmp_path / 'feedback.db'}"
        with make(InMemoryFeedbackExporter(name="theirs"), store=url) as worker:
            worker.record(HANDLE, "rating", True)
        with make(InMemoryFeedbackExporter(name="mine"), store=url) as web:
            web.record(HANDLE, "rating", True)

        assert not any("wait for" in message for message in caplog.messages)

    def test_an_exporter_that_cannot_flush_makes_it_false(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        """
        What an exporter raises is said in the log and in the answer, and not raised.
        """
        exporter = BrokenExporter("a")
        provider = make(exporter, delivery="thread")
        provider.record(HANDLE, "rating", True)

        assert not provider.force_flush(10_000)
        assert 1 == len(exporter.exported)
        assert "force_flush of BrokenExporter failed: RuntimeError" in caplog.text

    def test_keys_that_cannot_be_written_make_it_false(self, make: Make) -> None:
        """
        A binding that the store does not take still waits.
        """

        class Unwritable(MemoryStore):
            def bind(self, bindings: Sequence[Binding]) -> None:
                raise StoreError("read-only", store=self.url)

        provider = make(store=Unwritable())
        provider.bind_key(HANDLE, "m-1")

        assert not provider.force_flush(0)


# --- the end -----------------------------------------------------------------------------------------------------


class HangingExporter(InMemoryFeedbackExporter):
    """Does not come back until it is let go."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.is_called = threading.Event()
        self.is_let_go = threading.Event()
        self.was_shut_down = False

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        self.is_called.set()
        self.is_let_go.wait()
        return super().export(parts)

    def shutdown(self) -> None:
        self.was_shut_down = True


class TestShutdown:
    @pytest.mark.parametrize(
        ("store", "fate"), [("memory:", "is lost with this process"), ("sqlite:///f.db", "waits for the next process")]
    )
    def test_what_could_not_be_delivered_is_said(
        self, make: Make, caplog: pytest.LogCaptureFixture, store: str, fate: str
    ) -> None:
        """
        A process that ends with something undelivered says for whom it was, and what becomes of it; once.
        """
        exporter = InMemoryFeedbackExporter("a")
        exporter.fail_next(*[RetryableFailure("busy", retry_after_millis=60_000)] * 2)
        provider = make(exporter, InMemoryFeedbackExporter("b"), store=store, delivery="thread")
        provider.record(HANDLE, "rating", True)
        provider.shutdown()
        provider.shutdown()

        assert [f"feedback for a {fate}, in {provider._store.url}"] == [
            message for message in caplog.messages if message.startswith("feedback for")
        ]

    def test_a_store_that_is_gone_at_the_end_changes_nothing(self, make: Make) -> None:
        """
        Asking what is left must not make the end of a process fail.
        """

        class Gone(MemoryStore):
            is_gone = False

            def next_due(self, destination: str, *, by_call: bool = False) -> int | None:
                if self.is_gone:
                    raise StoreError("gone", store=self.url)
                return super().next_due(destination, by_call=by_call)

        store = Gone()
        provider = make(InMemoryFeedbackExporter("a"), store=store, delivery="thread").start()
        store.is_gone = True
        provider.shutdown()

        assert [] == our_threads()

    def test_a_hanging_exporter_does_not_hold_it_up(self, make: Make) -> None:
        """
        After `exit_timeout_millis` the thread is left behind; the record stays in the store.
        """
        exporter = HangingExporter("a")
        store = MemoryStore()
        provider = make(exporter, store=store, delivery="thread", exit_timeout_millis=20)
        receipt = provider.record(HANDLE, "rating", True)
        exporter.is_called.wait()
        provider.shutdown()

        assert {"a": "leased"} == states(provider.status(receipt.id))
        assert not exporter.was_shut_down
        exporter.is_let_go.set()
        for thread in threading.enumerate():
            if thread.name == "otel-feedback-deliver-a":
                thread.join()

    def test_it_is_idempotent_and_leaves_nothing_running(self, make: Make) -> None:
        """
        Once or several times, started or not: no thread, no open store, and everything due was delivered.
        """
        store, exporter = SQLiteStore("feedback.db"), InMemoryFeedbackExporter("a")
        make(store=store).shutdown()
        provider = make(exporter, store=store, delivery="thread")
        provider.record(HANDLE, "rating", True)
        for _ in range(2):
            provider.shutdown()

        assert [] == our_threads()
        assert repr(store).endswith("closed>")
        assert 1 == len(exporter.exported)

    def test_a_store_that_another_process_has_locked_does_not_hold_it_up(self, make: Make, tmp_path: Path) -> None:
        """
        The end comes in time though the keys cannot be written, and they are when the lock is gone in time.
        """
        provider = make(store="sqlite:///feedback.db")
        with closing(sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            provider.bind_key(HANDLE, "m-1")
            wait_until(lambda: threads_in("_open") == 1)
            began = time.monotonic()
            provider.shutdown(timeout_millis=20)
            took_millis = (time.monotonic() - began) * 1_000
            other.execute("ROLLBACK")
        following = make(store="sqlite:///feedback.db", key_wait_millis=10_000)

        assert took_millis < BUSY_TIMEOUT_MILLIS / 2
        assert HANDLE.span_id == following.handle_for_key("m-1").span_id

    def test_nobody_keeps_what_was_shut_down(self) -> None:
        """
        What would have ended a provider with the process, or with a child of multiprocessing, is taken back.
        """
        assert multiprocessing.util.Finalize
        provider = FeedbackProvider(exporters=[], store="memory:", tracer_provider=NoOpTracerProvider()).start()
        is_there = weakref.ref(provider)
        provider.shutdown()
        del provider
        gc.collect()

        assert is_there() is None

    def test_an_exporter_that_fails_to_shut_down_is_logged(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        """
        The other exporters and the store are closed all the same.
        """
        store, other = SQLiteStore("feedback.db"), HangingExporter("other")
        provider = make(BrokenExporter("a"), other, store=store, delivery="thread").start()
        provider.shutdown()

        assert other.was_shut_down
        assert repr(store).endswith("closed>")
        assert "shutdown of BrokenExporter failed: RuntimeError" in caplog.text

    @pytest.mark.parametrize("was_started", [False, True])
    def test_what_is_recorded_later_waits_for_the_next_process(self, make: Make, was_started: bool) -> None:
        """
        After the shutdown a judgement, and a key, is accepted durably and delivered by whoever comes next.
        """
        exporter = InMemoryFeedbackExporter("a")
        ended = make(exporter, store="sqlite:///feedback.db", delivery="thread")
        if was_started:
            ended.start()
        ended.shutdown()
        ended.bind_key(HANDLE, "m-1")
        receipt = ended.record(HANDLE, "rating", True)
        threads = our_threads()
        ended.shutdown()
        following = make(exporter, store="sqlite:///feedback.db", delivery="thread")

        assert ([], "disk", ()) == (threads, receipt.durability, exporter.exported)
        assert following.force_flush(10_000)
        assert [receipt.id] == [record.id for record in exporter.records]
        assert HANDLE.span_id == following.handle_for_key("m-1").span_id

    def test_it_is_a_context_manager(self, make: Make) -> None:
        """
        `with` and `async with` start it and shut it down, also when the block fails.
        """
        exporter = InMemoryFeedbackExporter("a")

        async def main() -> None:
            async with make(exporter, delivery="thread") as provider:
                provider.record(HANDLE, "rating", True)

        def fail() -> None:
            with make(exporter, delivery="thread") as provider:
                assert [
                    "otel-feedback-correlate",
                    "otel-feedback-deliver-a",
                    "otel-feedback-deliver-keep",
                ] == our_threads()
                assert provider is provider.start()
                provider.record(HANDLE, "rating", True)
                raise LookupError

        asyncio.run(main())
        with pytest.raises(LookupError):
            fail()

        assert ([], 2) == (our_threads(), len(exporter.exported))


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0)


def threads_in(function: str) -> int:
    """Count the threads that are inside of a function, by its name."""
    frames = sys._current_frames().values()
    return sum(any(function == each.f_code.co_name for each, _ in traceback.walk_stack(frame)) for frame in frames)


def find(key: str) -> list[str]:
    """Look a key up in the file as another process does."""
    with closing(SQLiteStore("feedback.db")) as store:
        return [handle.span_id for handle in store.find("app", key)]


class TestCapture:
    def test_a_captured_call_does_not_wait_for_the_store(self, make: Make, tmp_path: Path) -> None:
        """
        While another process has the store locked keys are taken, and they are there when it is free again.
        """
        provider = make(store="sqlite:///feedback.db")
        with closing(sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            began = time.monotonic()
            for number in range(100):
                provider.bind_key(a_handle(number + 1), f"m-{number}")
                assert provider.tracer is not None
            took_millis = (time.monotonic() - began) * 1_000
            wait_until(lambda: threads_in("_open") == 1)
            provider.bind_key(a_handle(101), "m-100")
            other.execute("ROLLBACK")

        assert took_millis < BUSY_TIMEOUT_MILLIS / 2
        assert f"{101:016x}" == provider.handle_for_key("m-100").span_id

    def test_an_exporter_that_cannot_start_costs_no_key(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        """
        Whatever an exporter of somebody's own raises is told without its text, and the keys are kept.
        """

        class Unstartable(InMemoryFeedbackExporter):
            def start(self) -> None:
                raise ValueError(text)

        text = "secret"
        provider = make(Unstartable(), store="sqlite:///feedback.db", delivery="thread")
        provider.bind_key(HANDLE, "m-1")
        wait_until(lambda: find("m-1") == [HANDLE.span_id])

        (line,) = [message for message in caplog.messages if "nothing is delivered" in message]
        assert "ValueError" in line
        assert "secret" not in line

    def test_a_process_that_cannot_deliver_keeps_its_keys(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        """
        An exporter without its key costs no captured call its own: one line says that nothing goes out from here.
        """
        provider = make(OrqExporter(), store="sqlite:///feedback.db", delivery="thread")
        provider.bind_key(HANDLE, "m-1")
        wait_until(lambda: find("m-1") == [HANDLE.span_id])
        provider.bind_key(HANDLE, "m-2")
        wait_until(lambda: find("m-2") == [HANDLE.span_id])

        assert ["nothing is delivered from this process: "] == [
            record.getMessage()[:40] for record in caplog.records if record.levelno >= logging.ERROR
        ]
        assert "ORQ_API_KEY" in caplog.text

    def test_whoever_comes_first_makes_what_runs_for_all(self, make: Make) -> None:
        """
        Of threads that use a provider at the same time one starts what runs, and the others use that.
        """
        is_started, go_on = threading.Event(), threading.Event()

        class Slow(FeedbackProvider):
            def _make_correlator(self) -> Correlator:
                is_started.set()
                go_on.wait(10)
                return super()._make_correlator()

        provider = Slow(
            exporters=[], store="memory:", tracer_provider=NoOpTracerProvider(), settings=Settings(key_wait_millis=0)
        )
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(provider.bind_key, HANDLE, "m-1")
            assert is_started.wait(10)
            second = pool.submit(provider.bind_key, HANDLE, "m-2")
            wait_until(lambda: threads_in("_here") == 2)
            go_on.set()
            first.result(10)
            second.result(10)
        threads = our_threads()
        found = [provider.handle_for_key(key).span_id for key in ("m-1", "m-2")]
        provider.shutdown()

        assert ["otel-feedback-correlate"] == threads
        assert [HANDLE.span_id] * 2 == found

    def test_what_is_to_be_done_later_waits_for_a_flush(self, make: Make) -> None:
        """
        A finaliser's errand is done by the provider's thread, or at its end.
        """
        done: list[str] = []
        provider = make()
        provider.bind_key(HANDLE, "m-1")
        provider.later(lambda: done.append("errand"))
        provider.shutdown()

        assert ["errand"] == done

    def test_an_errand_starts_nothing(self, make: Make) -> None:
        """
        A finaliser may ask a provider that was never used, which starts no thread for it.
        """
        before = our_threads()
        make().later(list)

        assert before == our_threads() == []

    def test_options_of_exporters_reach_those_that_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """
        What the declarative configuration says of an exporter its constructor gets; the others are made without.
        """
        monkeypatch.setenv("OTEL_FEEDBACK_EXPORTERS", "braintrust,console")
        monkeypatch.setenv("OTEL_FEEDBACK_STORE_URL", "memory:")
        made = start_from_environment(
            exporter_options={"braintrust": {"hold_millis": 7}}, tracer_provider=NoOpTracerProvider()
        )

        assert ["braintrust", "console"] == list(made._exporters)
        assert 7 == made._exporters["braintrust"].hold_millis  # type: ignore[attr-defined]  # it is Braintrust's


WORKER = """
import os, sys
from otel_feedback import *
from otel_feedback.testing import InMemoryFeedbackExporter
from opentelemetry.trace import SpanContext, TraceFlags

class File(InMemoryFeedbackExporter):
    def export(self, parts):
        with open("delivered", "a") as out:
            for part in parts:
                out.write(f"{os.getpid()} {part.record.name}\\n")
        return super().export(parts)

def handle(number):
    return FeedbackHandle(SpanContext(1, number, is_remote=False, trace_flags=TraceFlags(1)))

exporter = File("file")
settings = Settings(key_wait_millis=0)
"""

AT_EXIT = """
exporter.fail_next(RetryableFailure("down", retry_after_millis=3_600_000))
provider = FeedbackProvider(exporters=[exporter], store="sqlite:///feedback.db", settings=settings)
provider.record(handle(1), "later", True)
provider.force_flush(1_000)
provider.bind_key(handle(2), "m-1")
provider.record_many(Feedback(target=handle(2), name=name, value=True) for name in ("first", "last"))
"""

FORK = """
import threading
provider = FeedbackProvider(exporters=[exporter], store="sqlite:///feedback.db", settings=settings).start()
provider.record(handle(1), "before", True)
provider.force_flush()
# A thread that does not exist in the child holds the lock at the moment of the fork.
held, go = threading.Event(), threading.Event()
def hold():
    with provider._lock:
        held.set()
        go.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if not child:
    provider.shutdown()
    provider.bind_key(handle(2), "m-1")
    provider.record(key="m-1", name="child", value=True)
    os._exit(0 if provider.force_flush(10_000) else 1)
go.set()
_, status = os.waitpid(child, 0)
provider.record(handle(3), "parent", True)
print(status, provider.force_flush(10_000), provider.handle_for_key("m-1").span_id, os.getpid(), child)
"""


MULTIPROCESSING = """
import multiprocessing

def capture():
    FeedbackProvider(exporters=[], store="sqlite:///feedback.db", settings=settings).bind_key(handle(7), "m-7")

if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=capture)
    child.start()
    child.join()
"""


def run(program: str) -> str:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", WORKER + program]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True, timeout=60).stdout


def delivered() -> list[list[str]]:
    return [line.split() for line in Path("delivered").read_text().splitlines()]


class TestProcesses:
    def test_at_its_exit_a_process_delivers_what_is_due_and_leaves_the_rest(self, make: Make) -> None:
        """
        Nobody shuts it down: what is due goes out, keys are written, what waits is there for the next process.
        """
        run(AT_EXIT)
        following = make(InMemoryFeedbackExporter("file"), store="sqlite:///feedback.db")
        account = following.stats()["file"]

        assert ["first", "last"] == [name for _, name in delivered() if name != "later"]
        assert (3, 2, 1) == (account.recorded, account.delivered, account.pending)
        assert 2 == following.handle_for_key("m-1").context.span_id

    def test_a_child_does_not_stop_what_runs_in_its_parent(self, make: Make) -> None:
        """
        A shutdown in a process that never used the provider closes nothing of the process that did.
        """
        exporter = HangingExporter("a")
        exporter.is_let_go.set()
        provider = make(exporter, delivery="thread").start()
        provider._here().pid = provider._pid = -1  # as if both were another process's
        provider.shutdown()
        running = our_threads()
        provider._process.pid = provider._pid = os.getpid()
        provider._is_shut_down = False

        assert ["otel-feedback-correlate", "otel-feedback-deliver-a", "otel-feedback-deliver-keep"] == running
        assert not exporter.was_shut_down

    def test_a_forked_child_has_a_pipeline_of_its_own(self) -> None:
        """
        A child records, binds and delivers with threads of its own, and the parent goes on as if nothing had been.
        """
        status, is_flushed, span_id, parent, child = run(FORK).split()

        assert ("0", "True", f"{2:016x}") == (status, is_flushed, span_id)
        assert [[parent, "before"], [parent, "parent"]] == [line for line in delivered() if line[1] != "child"]
        assert ["child"] == [name for pid, name in delivered() if name == "child" and pid in (parent, child)]

    def test_a_child_of_multiprocessing_leaves_its_keys(self, make: Make) -> None:
        """
        Such a child ends without atexit's functions; what it captured is found all the same.
        """
        run(MULTIPROCESSING)

        assert 7 == make(store="sqlite:///feedback.db").handle_for_key("m-7").context.span_id


# --- what is never said ------------------------------------------------------------------------------------------


SECRETS = ("secret-key", "secret-comment", "secret-label", "secret-correction", "secret-user", "secret-tag")


def test_no_log_line_has_what_people_said(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """
    Through acceptance, delivery, failure, death, parking and retraction, no key, comment, value or user is logged.
    """
    caplog.set_level(logging.DEBUG)

    class Quoting(InMemoryFeedbackExporter):
        """Quotes what it was given in what it raises."""

        has_failed = False

        def export(self, parts: Sequence[Part]) -> Sequence[Result]:
            if not self.has_failed:
                self.has_failed = True
                raise ValueError(f"cannot send {parts}")
            return super().export(parts)

    class Unspeakable(InMemoryFeedbackExporter):
        """Cannot say what to send, and quotes it."""

        def parts(self, record: FeedbackRecord) -> Sequence[Part]:
            raise ValueError(f"cannot read {record}")

    dying = InMemoryFeedbackExporter("dying")
    dying.fail_next(PermanentFailure("HTTP 400"))
    provider = make(Quoting("quoting"), Unspeakable("unspeakable"), dying, delivery="thread", on_unknown_key="park")
    said: Mapping[str, Any] = {
        "value": "secret-label",
        "comment": "secret-comment",
        "correction": "secret-correction",
        "tags": ["secret-tag"],
        "user_id": "secret-user",
    }
    parked = provider.record(key="secret-key", name="rating", **said)
    with pytest.raises(InvalidFeedbackError):
        provider.record(key="secret-key", name="rating", comment="secret-comment", tags="secret-tag")
    provider.bind_key(HANDLE, "secret-key")
    provider.capture_failed(KeyError("secret-key"))
    provider.force_flush(2_000)
    provider.retract(parked.id)
    provider.force_flush(2_000)
    provider.shutdown()

    assert len(caplog.records) > 5
    assert [] == [secret for secret in SECRETS if secret in caplog.text]


def test_the_clock_is_the_providers(make: Make) -> None:
    """
    Times come from the clock that was given, in the store as well.
    """
    clock = FakeClock()
    provider = make(clock=clock)
    receipt = provider.record(HANDLE, "rating", True)
    record = provider._store.latest(receipt.id)

    assert record is not None
    assert clock.time_unix_nano() == record.recorded_at_unix_nano == provider.stats()[UNROUTED].oldest_unix_nano
    assert clock is provider.clock


# --- delivering in one's own thread, erasing, redacting, measuring -----------------------------------------------


class TestDeliver:
    def test_one_pass_delivers_what_is_due(self, make: Make) -> None:
        """
        A program that drives delivery itself gets the account; what had waited unrouted goes along.
        """
        store, exporter = MemoryStore(), InMemoryFeedbackExporter("a")
        make(store=store).record(a_handle(1), "rating", True)
        provider = make(exporter, store=store)
        provider.record(a_handle(2), "rating", True)
        account = provider.deliver()

        assert 2 == len(exporter.exported)
        assert DestinationStats(recorded=2, delivered=2) == replace(account["a"], oldest_unix_nano=None)
        assert "otel-feedback-deliver-a" not in our_threads()

    def test_a_pass_ends_where_the_destination_fails(self, make: Make) -> None:
        """
        One failure ends the pass there, and the others are not held up by it.
        """
        down, up = InMemoryFeedbackExporter("down"), InMemoryFeedbackExporter("up")
        down.fail_next(RetryableFailure("down"))
        provider = make(down, up)
        provider.record(HANDLE, "rating", True)
        account = provider.deliver()

        assert (1, 1) == (account["down"].pending, account["up"].delivered)

    def test_only_the_first_pass_ends_a_pause(self, make: Make) -> None:
        """
        What has paused a destination may have been mended before the process began, and not since.
        """
        exporter, store = InMemoryFeedbackExporter("a"), MemoryStore()
        exporter.fail_next(PauseDestination("401"))
        provider = make(exporter, store=store)
        provider.record(HANDLE, "rating", True)

        assert [1, 1] == [provider.deliver()["a"].pending for _ in range(2)]
        assert 0 == make(exporter, store=store).deliver()["a"].pending

    def test_without_time_nothing_is_begun(self, make: Make) -> None:
        """
        A pass that has no time left delivers nothing.
        """
        provider = make(InMemoryFeedbackExporter("a"))
        provider.record(HANDLE, "rating", True)

        assert 1 == provider.deliver(0)["a"].pending

    def test_a_hanging_destination_holds_up_no_flush(self, make: Make) -> None:
        """
        A flush ends in time though a request does not, and says that something still waits.
        """

        class Hanging(InMemoryFeedbackExporter):
            may_go = threading.Event()

            def export(self, parts: Sequence[Part]) -> Sequence[Result]:
                self.may_go.wait(30)
                return super().export(parts)

        exporter = Hanging("a")
        provider = make(exporter, delivery="thread")
        provider.record(HANDLE, "rating", True)
        is_flushed = provider.force_flush(50)
        exporter.may_go.set()

        assert not is_flushed
        assert provider.force_flush(30_000)

    def test_much_to_do_is_done_by_several_threads(self, make: Make) -> None:
        """
        As many threads as there may be are in the exporter at once when there is a backlog, and no more.
        """

        class Meeting(InMemoryFeedbackExporter):
            barrier = threading.Barrier(3)

            def export(self, parts: Sequence[Part]) -> Sequence[Result]:
                self.barrier.wait(30)
                return super().export(parts)

        exporter = Meeting("a")
        provider = make(exporter, delivery="thread", concurrency=3, max_export_batch_size=1)
        provider.record_many([Feedback(target=a_handle(number), name="rating", value=True) for number in range(1, 4)])

        assert provider.force_flush(30_000)
        assert 3 == len(exporter.exported)
        assert 3 == our_threads().count("otel-feedback-deliver-a")


class TestForget:
    def test_a_person_is_forgotten_and_never_delivered(self, make: Make) -> None:
        """
        Of what they judged nothing is known any more, and what waited goes nowhere.
        """
        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter)
        theirs = provider.record(HANDLE, "rating", True, user_id="u-1")
        provider.record(HANDLE, "rating", False, user_id="u-2")

        assert 1 == provider.forget(user_id="u-1")
        provider.deliver()
        assert ["u-2"] == [record.user_id for record in exporter.records]
        with pytest.raises(UnknownTargetError):
            provider.status(theirs.id)
        assert DestinationStats(recorded=2, delivered=1, retracted=1) == provider.stats()["a"]

    def test_nothing_is_known_where_everything_is_switched_off(self, make: Make) -> None:
        """
        A disabled provider forgets nobody, delivers nothing and has no accounts.
        """
        provider = make(disabled=True)

        assert (0, {}, {}) == (provider.forget(user_id="u-1"), provider.deliver(), provider.stats())


def without_comment(feedback: Feedback) -> Feedback:
    return replace(feedback, comment=None)


class TestRedactByExporter:
    def test_one_exporter_gets_less(self, make: Make) -> None:
        """
        The hook of an exporter's name sees what goes there, and nothing else.
        """
        a, b = InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b")
        provider = make(a, b, redact={"a": without_comment})
        provider.record(HANDLE, "rating", True, comment="secret", user_id="u-1")
        provider.deliver()

        assert [[None], ["secret"]] == [[record.comment for record in each.records] for each in (a, b)]
        assert a.records[0].id == b.records[0].id

    @pytest.mark.parametrize("to", [["a"], None])
    def test_what_no_destination_gets_is_not_kept(self, make: Make, to: Sequence[str] | None) -> None:
        """
        Where every destination is given less, the store has no more than that.
        """
        exporters = [InMemoryFeedbackExporter("a")] if to is None else [InMemoryFeedbackExporter(each) for each in "ab"]
        store = MemoryStore()
        provider = make(*exporters, store=store, redact={"a": without_comment})
        receipt = provider.record(HANDLE, "rating", True, comment="secret", to=to)
        kept = store.latest(receipt.id)

        assert kept is not None
        assert kept.comment is None

    def test_what_waits_for_its_key_is_kept_without_what_anybody_may_not_see(self, make: Make) -> None:
        """
        It is not known yet where it goes.
        """
        store = MemoryStore()
        provider = make(
            *map(InMemoryFeedbackExporter, "ab"), store=store, redact={"a": without_comment}, on_unknown_key="park"
        )
        provider.record(key="m-1", name="rating", value=True, comment="secret")

        assert [None] == [each.record.comment for each in store.parked(ANY_KIND, "m-1")]

    def test_a_name_that_is_nobodys_is_refused(self, make: Make) -> None:
        """
        A misspelt exporter would otherwise see everything.
        """
        with pytest.raises(ConfigurationError, match="redact names no exporter of this process: 'wave'"):
            make(InMemoryFeedbackExporter("weave"), redact={"wave": without_comment})

    @pytest.mark.parametrize("redact", [5, {"weave": "comment"}])
    def test_what_is_no_function_is_refused(self, make: Make, redact: Any) -> None:
        """
        Before anything is recorded that it should have seen.
        """
        with pytest.raises(ConfigurationError, match="redact is a function"):
            make(InMemoryFeedbackExporter("weave"), redact=redact)


FEEDBACK = {
    "helpfulness": Rating(1, 5),
    "effort": Rating(0, 10, lower_is_better=True),
    "tone": Labels("warm", "cold"),
    "liked": Thumb(),
    "toxic": Flag(),
    "mood": Text(),
}


class TestDeclared:
    @pytest.mark.parametrize("value", [1, 3, 4.5, 5])
    def test_a_declared_rating_needs_no_scale(self, make: Make, value: float) -> None:
        """
        Both ends of its range are accepted, and each exporter is told the range.
        """
        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, feedback=FEEDBACK)
        provider.record(HANDLE, "helpfulness", value)
        provider.deliver()

        assert [(value, (1, 5))] == [(record.value, record.scale) for record in exporter.records]

    @pytest.mark.parametrize(
        ("name", "said", "field"),
        [
            ("helpfulness", {"value": 0}, "value"),
            ("helpfulness", {"value": 6}, "value"),
            ("helpfulness", {"value": 3, "scale": (1, 10)}, "scale"),
            ("helpfulness", {"comment": "c", "scale": (1, 5)}, "scale"),
            ("tone", {"value": "lukewarm"}, "value"),
            ("liked", {"value": 1}, "value"),
        ],
    )
    def test_what_was_declared_otherwise_is_refused_and_nothing_is_kept(
        self, make: Make, name: str, said: dict[str, Any], field: str
    ) -> None:
        """
        Not even what was given along with it: all are checked before one is accepted.
        """
        provider = make(InMemoryFeedbackExporter("a"), feedback=FEEDBACK)
        good = Feedback(target=HANDLE, name="liked", value=True)
        with pytest.raises(InvalidFeedbackError) as caught:
            provider.record_many([good, Feedback(target=HANDLE, name=name, **said)])

        assert field == caught.value.field
        assert {} == provider.stats()

    @pytest.mark.parametrize("said", [{"comment": "c"}, {"correction": "d"}, {"tags": ["t"]}])
    @pytest.mark.parametrize("name", FEEDBACK)
    def test_words_alone_are_fine_under_every_name(self, make: Make, name: str, said: dict[str, Any]) -> None:
        """
        A comment needs no stars.
        """
        receipt = make(InMemoryFeedbackExporter("a"), feedback=FEEDBACK).record(HANDLE, name, **said)

        assert {"a": "pending"} == states(receipt)

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("liked", True, (True, False, 1)),
            ("toxic", True, (False, False, 1)),
            ("helpfulness", 5, (False, False, 1)),
            ("effort", 10, (False, True, 0)),
            ("effort", 0, (False, True, 1)),
            ("tone", "warm", (False, False, None)),
            ("rating", True, (None, False, 1)),
        ],
    )
    def test_exporters_are_told_what_a_name_means(self, make: Make, name: str, value: Any, expected: Any) -> None:
        """
        A thumb or anything else, in which direction, and nothing of a name that was not declared.
        """
        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, feedback=FEEDBACK)
        provider.record(HANDLE, name, value)
        provider.deliver()

        assert [expected] == [(each.is_thumb, each.lower_is_better, each.fraction) for each in exporter.records]

    def test_vendors_own_fields_come_with_the_name(self, make: Make) -> None:
        """
        What is declared is set for every judgement, and what a call sets wins, field by field.
        """
        declared = {"a": {"x": 1, "y": 2}}
        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, feedback={"liked": Thumb(native=declared)})
        provider.record(HANDLE, "liked", True)
        provider.record(HANDLE, "liked", True, native={"a": {"y": 3}})
        provider.record(HANDLE, "other", True)
        provider.deliver()

        assert [declared, {"a": {"x": 1, "y": 3}}, {}] == [record.native for record in exporter.records]

    def test_vendors_own_fields_wait_with_what_waits_for_an_exporter(self, make: Make) -> None:
        """
        A process that only records may declare them for the one that delivers.
        """
        native = {"orq": {"property": "quality"}}
        provider = make(feedback={"liked": Thumb(native=native)})
        receipt = provider.record(HANDLE, "liked", True)
        kept = provider._store.latest(receipt.id)

        assert kept is not None
        assert native == kept.native

    def test_vendors_own_fields_are_checked_at_the_start(self, make: Make) -> None:
        """
        A field that the vendor does not have is no surprise at the first judgement.
        """
        with pytest.raises(ConfigurationError, match=r"feedback\['liked'\]: native\['orq'\] cannot set propery"):
            make(OrqExporter(), feedback={"liked": Thumb(native={"orq": {"propery": "quality"}})})

    @pytest.mark.parametrize("wrong", [5, "liked", {"liked": bool}, {"liked": Thumb}, [Thumb()]])
    def test_what_declares_nothing_is_refused(self, make: Make, wrong: Any) -> None:
        """
        Before anything is started.
        """
        with pytest.raises(ConfigurationError) as caught:
            make(feedback=wrong)

        assert "feedback" == caught.value.setting

    def test_a_retraction_is_not_checked(self, make: Make) -> None:
        """
        What was recorded before it was declared otherwise can be taken back.
        """
        store = MemoryStore()
        receipt = make(InMemoryFeedbackExporter("a"), store=store).record(HANDLE, "helpfulness", "nice")
        provider = make(InMemoryFeedbackExporter("a"), store=store, feedback=FEEDBACK, undeclared="refuse")
        provider.retract(receipt.id)
        provider.deliver()

        assert {"a": "retracted"} == states(provider.status(receipt.id))

    def test_what_waits_for_its_key_is_checked_at_once_and_keeps_what_was_declared(self, make: Make) -> None:
        """
        Nobody is there any more to be told when the key comes.
        """
        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, feedback=FEEDBACK, on_unknown_key="park")
        with pytest.raises(InvalidFeedbackError):
            provider.record(key="m-1", name="effort", value=11)
        provider.record(key="m-1", name="effort", value=10)
        provider._store.bind([Binding("app", "m-1", HANDLE)])
        provider.deliver()

        assert [((0, 10), False, True)] == [
            (each.scale, each.is_thumb, each.lower_is_better) for each in exporter.records
        ]

    def test_where_everything_is_off_nothing_is_checked(self) -> None:
        """
        A no-op refuses nothing.
        """
        settings = Settings(disabled=True, undeclared="refuse")
        provider = FeedbackProvider(feedback=FEEDBACK, filters={"orq": lambda _: False}, settings=settings)

        assert "disabled" == provider.record(HANDLE, "helpfulness", 99).durability


class TestDeclaredAndRedacted:
    """Redaction comes after the check, and what it answers is not held against what was declared."""

    @pytest.mark.parametrize(
        ("name", "value", "left"),
        [
            ("helpfulness", 4, None),
            ("helpfulness", 4, "…"),
            ("helpfulness", 4, True),
            ("tone", "warm", "…"),
            ("tone", "warm", ["a", "b"]),
            ("liked", True, "…"),
            ("mood", "calm", 0.5),
        ],
    )
    @pytest.mark.parametrize("where", ["everywhere", "a"])
    def test_a_redacted_value_is_no_reason_to_refuse(
        self, make: Make, name: str, value: Any, left: Any, where: str
    ) -> None:
        """
        Whatever a hook leaves of a value that fitted goes out.
        """

        def redact(feedback: Feedback) -> Feedback:
            return replace(feedback, value=left)

        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, feedback=FEEDBACK, redact=redact if where == "everywhere" else {where: redact})
        provider.record(HANDLE, name, value, comment="c")
        provider.deliver()

        kept = tuple(left) if isinstance(left, list) else left
        assert [(kept, None, "c")] == [(each.value, each.scale, each.comment) for each in exporter.records]

    def test_a_scale_that_was_given_goes_with_its_number(self, make: Make) -> None:
        """
        A hook that takes out the number need not know that it had a scale.
        """
        provider = make(InMemoryFeedbackExporter("a"), redact=lambda given: replace(given, value=None))
        receipt = provider.record(HANDLE, "stars", 4, scale=(1, 5), comment="c")
        kept = provider._store.latest(receipt.id)

        assert kept is not None
        assert (None, None, "c") == (kept.value, kept.scale, kept.comment)

    def test_no_hook_sees_what_is_refused(self, make: Make) -> None:
        """
        What was given is checked as it was given.
        """

        def redact(feedback: Feedback) -> Feedback:
            raise AssertionError

        provider = make(feedback=FEEDBACK, undeclared="refuse", redact=redact)
        for name, value in [("tone", "lukewarm"), ("other", True), ("", True)]:
            with pytest.raises(InvalidFeedbackError):
                provider.record(HANDLE, name, value)

    def test_a_name_that_a_hook_gives_means_what_was_declared_of_it(self, make: Make) -> None:
        """
        It is that name under which the judgement is kept.
        """
        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, feedback=FEEDBACK, redact=lambda given: replace(given, name="helpfulness"))
        provider.record(HANDLE, "stars of Ann", 4.0, scale=(1, 5))
        provider.deliver()

        assert [("helpfulness", False, (1, 5))] == [(each.name, each.is_thumb, each.scale) for each in exporter.records]

    def test_a_hook_that_answers_nothing_refuses(self, make: Make) -> None:
        """
        As it does where nothing is declared.
        """
        with pytest.raises(InvalidFeedbackError, match="not NoneType"):
            make(feedback=FEEDBACK, redact=lambda _: None).record(HANDLE, "liked", True)


class TestUndeclared:
    def test_by_default_other_names_are_taken(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        """
        In silence, by the rules that hold without declarations.
        """
        receipt = make(InMemoryFeedbackExporter("a"), feedback=FEEDBACK).record(HANDLE, "other", True)

        assert ({"a": "pending"}, []) == (states(receipt), caplog.records)

    def test_a_warning_names_each_name_once_and_never_a_value(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        They are taken all the same; what is declared is not told of.
        """
        provider = make(InMemoryFeedbackExporter("a"), feedback=FEEDBACK, undeclared="warn")
        for name in ("tonne", "liked", "tonne", "mod"):
            provider.record(HANDLE, name, True, comment="secret", user_id="ann")

        assert ["'tonne'", "'mod'"] == [message.partition("under ")[2].partition(",")[0] for message in caplog.messages]
        assert not {word for word in ("secret", "ann", "True") if word in caplog.text}
        assert 4 == provider.stats()["a"].recorded

    def test_the_warnings_are_bounded(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        """
        Names that somebody makes up fill neither the log nor the memory.
        """
        provider = make(InMemoryFeedbackExporter("a"), feedback=FEEDBACK, undeclared="warn")
        provider.record_many(
            Feedback(target=HANDLE, name=f"n-{number}", value=True) for number in range(MAX_TOLD_NAMES + 1)
        )

        assert MAX_TOLD_NAMES == len(caplog.records) == len(provider._told_names)

    def test_another_name_is_refused_where_that_is_set(self, make: Make) -> None:
        """
        The message has the names that there are; nothing is kept.
        """
        provider = make(InMemoryFeedbackExporter("a"), feedback=FEEDBACK, undeclared="refuse")
        with pytest.raises(InvalidFeedbackError, match=r"'tonne' is not declared: .* helpfulness, effort, ") as caught:
            provider.record(HANDLE, "tonne", True)

        assert ("name", "tonne") == (caught.value.field, caught.value.value)
        assert {} == provider.stats()
        assert {"a": "pending"} == states(provider.record(HANDLE, "liked", True))

    @pytest.mark.parametrize("undeclared", ["warn", "refuse"])
    @pytest.mark.parametrize("name", [None, "", 5, ["liked"], "a\nb", "wandb.x", "x" * 5_000])
    def test_what_can_be_no_name_is_refused_as_such(self, make: Make, undeclared: str, name: Any) -> None:
        """
        It is neither told of nor looked for.
        """
        provider = make(InMemoryFeedbackExporter("a"), feedback=FEEDBACK, undeclared=undeclared)
        with pytest.raises(InvalidFeedbackError) as caught:
            provider.record(HANDLE, name, True)

        assert "name" == caught.value.field
        assert "declared" not in str(caught.value)

    def test_an_empty_declaration_is_one(self, make: Make) -> None:
        """
        Whoever declares that there is no feedback, and refuses any other, takes none.
        """
        provider = make(InMemoryFeedbackExporter("a"), feedback={}, undeclared="refuse")
        with pytest.raises(InvalidFeedbackError, match="or give one of none"):
            provider.record(HANDLE, "liked", True)

    @pytest.mark.parametrize("undeclared", ["warn", "refuse"])
    def test_where_nothing_is_declared_every_name_is_taken_and_that_is_said(
        self, make: Make, caplog: pytest.LogCaptureFixture, undeclared: str
    ) -> None:
        """
        The setting, which may be every process's, is of no use then; one line says so.
        """
        provider = make(InMemoryFeedbackExporter("a"), undeclared=undeclared)
        receipts = [provider.record(HANDLE, name, True) for name in ("liked", "rating")]

        assert [{"a": "pending"}] * 2 == list(map(states, receipts))
        assert ["nothing is declared in configure(feedback=...)"] == [
            message.partition(",")[0] for message in caplog.messages
        ]


def of_tenant_a(record: FeedbackRecord) -> bool:
    return record.handle.attributes["tenant"] == "a"


def of_tenant(tenant: str) -> FeedbackHandle:
    return replace(HANDLE, attributes={"tenant": tenant})


class TestFilters:
    def test_what_is_filtered_is_skipped_in_the_receipt_and_in_the_account(self, make: Make) -> None:
        """
        With its reason; the sum of the account holds, and the other destination gets it.
        """
        a, b = InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b")
        provider = make(a, b, filters={"a": of_tenant_a})
        receipts = [provider.record(of_tenant(tenant), "rating", True) for tenant in ("a", "b")]
        account = provider.deliver()

        assert [("pending", None), ("skipped", "filtered")] == [
            (receipt.deliveries["a"].state, receipt.deliveries["a"].reason) for receipt in receipts
        ]
        assert ("skipped", "filtered") == (
            provider.status(receipts[1].id).deliveries["a"].state,
            provider.status(receipts[1].id).deliveries["a"].reason,
        )
        assert ({"filtered": 1}, 1, 2) == (account["a"].skipped, account["a"].delivered, account["a"].recorded)
        assert account["a"].is_conserved
        assert [1, 2] == [len(each.records) for each in (a, b)]

    def test_a_filter_that_fails_refuses_all_of_it(self, make: Make) -> None:
        """
        Nothing is lost in silence and nothing shown to anybody: whoever records is told before anything is kept.
        """
        provider = make(InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b"), filters={"a": of_tenant_a})
        good, bad = (Feedback(target=handle, name="rating", value=True) for handle in (of_tenant("a"), HANDLE))
        with pytest.raises(ConfigurationError, match="the filter of 'a' raised KeyError") as caught:
            provider.record_many([good, bad])

        assert "filters" == caught.value.setting
        assert {} == provider.stats()

    @pytest.mark.parametrize("tenant", ["a", "b"])
    def test_what_waits_for_its_key_is_filtered_once_its_call_is_known(self, make: Make, tenant: str) -> None:
        """
        A stand-in for the call is asked nothing.
        """
        provider = make(InMemoryFeedbackExporter("a"), on_unknown_key="park", filters={"a": of_tenant_a})
        receipt = provider.record(key="m-1", name="rating", value=True)
        planned = provider.plan(Feedback(key="m-2", name="rating", value=True))
        provider.bind_key(of_tenant(tenant), "m-1")
        provider._here().correlator.flush()

        assert ({"a": "parked"}, None) == (states(receipt), planned["a"].skipped)
        assert {"a": "pending" if tenant == "a" else "skipped"} == states(provider.status(receipt.id))

    def test_what_waits_for_its_key_waits_on_while_a_filter_fails(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        It was accepted, so nobody is told but the log, and it goes out when the filter is mended.
        """
        store, exporter = MemoryStore(), InMemoryFeedbackExporter("a")
        provider = make(exporter, store=store, on_unknown_key="park", filters={"a": of_tenant_a})
        receipts = [provider.record(key="m-1", name=name, value=True) for name in ("rating", "tone")]
        provider.bind_key(HANDLE, "m-1")
        provider._here().correlator.flush()
        provider.deliver()
        waiting = [states(provider.status(receipt.id)) for receipt in receipts]
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        mended = make(exporter, store=store, filters={"a": lambda _: True})
        mended.deliver()

        assert [{"a": "parked"}] * 2 == waiting
        assert ["a judgement that waited for its key waits on (1 so far): the filter of 'a' raised KeyError"] == [
            each.partition(": whether")[0] for each in errors
        ]
        assert [{"a": "delivered"}] * 2 == [states(mended.status(receipt.id)) for receipt in receipts]

    def test_a_filter_that_fails_after_acceptance_raises_nothing(self, make: Make) -> None:
        """
        The key came while the judgement was stored; from then on the judgement is accepted.
        """
        provider = make(
            InMemoryFeedbackExporter("a"),
            store=BoundMeanwhile(),
            on_unknown_key="park",
            filters={"a": of_tenant_a},
        )
        receipt = provider.record(key="m-1", name="rating", value=True)

        assert {"a": "parked"} == states(receipt)

    def test_a_retraction_is_never_filtered(self, make: Make) -> None:
        """
        What went through before the filter was there is taken back.
        """
        store, exporter = MemoryStore(), InMemoryFeedbackExporter("a")
        before = make(exporter, store=store)
        receipt = before.record(HANDLE, "rating", True)
        before.deliver()
        after = make(exporter, store=store, filters={"a": lambda _: False})
        after.retract(receipt.id)
        after.deliver()

        assert {"a": "retracted"} == states(after.status(receipt.id))

    def test_a_status_asks_no_filter(self, make: Make) -> None:
        """
        What was decided is kept, and said as it is.
        """
        store = MemoryStore()
        receipt = make(InMemoryFeedbackExporter("a"), store=store).record(HANDLE, "rating", True)
        provider = make(InMemoryFeedbackExporter("a"), store=store, filters={"a": of_tenant_a})

        assert {"a": "pending"} == states(provider.status(receipt.id))

    @pytest.mark.parametrize("wrong", [5, "a", [of_tenant_a], {"a": "tenant"}, of_tenant_a])
    def test_what_is_no_filter_is_refused(self, make: Make, wrong: Any) -> None:
        """
        One function for all of them is none: each is of a destination.
        """
        with pytest.raises(ConfigurationError, match="filters are functions by exporter's name") as caught:
            make(InMemoryFeedbackExporter("a"), filters=wrong)

        assert "filters" == caught.value.setting

    def test_a_filter_of_nobody_is_refused(self, make: Make) -> None:
        """
        The names that there are stand in the message.
        """
        with pytest.raises(ConfigurationError, match=r"filters names no exporter .* 'wave' \(there are: weave\)"):
            make(InMemoryFeedbackExporter("weave"), filters={"wave": of_tenant_a})


BIND = """
import otel_feedback as of
from opentelemetry.trace import SpanContext, TraceFlags

context = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
with of.FeedbackProvider(exporters=[], store="sqlite:///feedback.db") as provider:
    provider.bind_key(of.FeedbackHandle(context, attributes={"braintrust.parent": "project_id:tenant-a"}), "m-1")
"""


class TestRoutes:
    def test_two_of_one_kind_are_told_apart_by_name(self, make: Make) -> None:
        """
        Two projects of one vendor: each judgement goes where it is sent, by default to both, and each says so itself.
        """
        eu = BraintrustExporter("project_name:eu", name="braintrust-eu")
        us = BraintrustExporter("project_name:us", name="braintrust-us")
        provider = make(eu, us)
        receipts = [provider.record(HANDLE, "rating", True, to=to) for to in (["braintrust-us"], None)]
        plans = provider.plan(Feedback(target=HANDLE, name="rating", value=True))

        assert [["braintrust-us"], ["braintrust-eu", "braintrust-us"]] == [list(each.deliveries) for each in receipts]
        assert {"braintrust-eu": {"project_name:eu"}, "braintrust-us": {"project_name:us"}} == {
            name: {part.route for part in plan.parts} for name, plan in plans.items()
        }
        with pytest.raises(InvalidFeedbackError, match=r"to names no .* \(braintrust-eu, braintrust-us\)"):
            provider.record(HANDLE, "rating", True, to=["braintrust"])

    @pytest.mark.parametrize(
        ("asked", "destinations"),
        [
            ("b", ["b"]),
            (" b , a ,, b", ["b", "a"]),
            ("elsewhere", ["elsewhere"]),
            ("unrouted", ["a", "b"]),
            ("parked,b", ["b"]),
            (" ", ["a", "b"]),
        ],
    )
    def test_a_call_says_itself_where_its_feedback_goes(self, make: Make, asked: str, destinations: list[str]) -> None:
        """
        A span's own attribute names the exporters, here or elsewhere; what is an account and no exporter is none.
        """
        provider = make(OrqExporter(name="a"), OrqExporter(name="b"))
        handle = replace(HANDLE, attributes={"otel_feedback.to": asked})
        provider.bind_key(handle, "m-1")
        assert handle == provider.handle_for_key("m-1")
        by_handle = provider.record(handle, "rating", True, comment="c")
        by_key = provider.record(key="m-1", name="rating", value=True)
        here = [name for name in destinations if name != "elsewhere"]

        assert [destinations] * 2 == [list(by_handle.deliveries), list(by_key.deliveries)]
        assert dict.fromkeys(here, ("comment",)) == by_handle.not_carried
        for judgement in (Feedback(target=handle, name="rating", value=True), provider._store.latest(by_key.id)):
            assert here == list(provider.plan(judgement))

    def test_a_name_that_is_not_here_is_told_once(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        """
        It may be misspelt: whoever delivers says so, of the first hundred; whoever only records has no say in it.
        """
        handles = [replace(HANDLE, attributes={"otel_feedback.to": f"acne-{number},a"}) for number in (0, *range(200))]
        for delivery in ("none", "thread"):
            provider = make(InMemoryFeedbackExporter("a"), delivery=delivery)
            provider.record_many([Feedback(target=handle, name="rating", value=True) for handle in handles])
        told = [record.getMessage() for record in caplog.records if "a span asks for" in record.getMessage()]

        assert [
            f"a span asks for the exporter 'acne-{number}' (otel_feedback.to), and there is none of that name here"
            for number in range(100)
        ] == told

    def test_without_any_exporter_it_waits_for_those_of_its_call(self, make: Make) -> None:
        """
        A process that names no exporter keeps one tenant's judgement from the other's all the same.
        """
        receipt = make().record(replace(HANDLE, attributes={"otel_feedback.to": "acme"}), "rating", True)

        assert {"acme": "pending"} == states(receipt)

    @pytest.mark.parametrize(("asked", "destinations"), [(None, ["b"]), (["a"], ["a"]), (["a", "b"], ["a", "b"])])
    def test_what_the_judgement_asks_for_wins_also_when_it_waits(
        self, make: Make, asked: list[str] | None, destinations: list[str]
    ) -> None:
        """
        `to=` at the call wins over the span's own attribute, on a call that is known, and on one that turns up later.
        """
        provider = make(InMemoryFeedbackExporter("a"), InMemoryFeedbackExporter("b"), on_unknown_key="park")
        handle = replace(HANDLE, attributes={"otel_feedback.to": "b"})
        known = provider.record(handle, "rating", True, to=asked)
        waiting = provider.record(key="m-1", name="rating", value=True, to=asked)
        provider.bind_key(handle, "m-1")
        provider.handle_for_key("m-1")

        assert dict.fromkeys(asked or ["a", "b"], "parked") == states(waiting)
        assert [destinations] * 2 == [list(known.deliveries), list(provider.status(waiting.id).deliveries)]

    def test_the_route_of_a_call_outlasts_its_process(self, make: Make) -> None:
        """
        What capture noted of a span in one process decides in another where its feedback goes, by its key alone.
        """
        subprocess.run([sys.executable, "-c", BIND], check=True, timeout=60)
        exporter = BraintrustExporter("project_name:chat")
        provider = make(exporter, store="sqlite:///feedback.db")
        plans = provider.plan(Feedback(key="m-1", name="rating", value=True))
        provider.record(key="m-1", name="rating", value=True)
        (lease,) = provider._store.lease("braintrust", limit=1, duration_millis=1_000)

        assert {"project_id:tenant-a"} == {part.route for part in plans["braintrust"].parts}
        assert {"project_id:tenant-a"} == {part.route for part in exporter.parts(lease.record)}


class TestMetrics:
    @pytest.fixture
    def reader(self) -> InMemoryMetricReader:
        return InMemoryMetricReader()

    @pytest.fixture
    def provider(self, reader: InMemoryMetricReader) -> Iterator[FeedbackProvider]:
        with FeedbackProvider(
            exporters=[InMemoryFeedbackExporter("a")],
            store="memory:",
            tracer_provider=NoOpTracerProvider(),
            settings=Settings(delivery="none", key_wait_millis=0, max_queue_size=1, on_unknown_key="park"),
            meter_provider=MeterProvider(metric_readers=[reader], shutdown_on_exit=False),
        ) as provider:
            yield provider

    def test_they_tell_of_what_was_accepted_refused_settled_and_waits(
        self, provider: FeedbackProvider, reader: InMemoryMetricReader
    ) -> None:
        """
        The numbers of the instruments are those of the account.
        """
        provider.record(a_handle(1), "rating", True)
        with pytest.raises(OutboxFullError):
            provider.record(a_handle(2), "rating", True)
        provider.record(a_handle(3, is_sampled=False), "rating", True)
        provider.record(key="m-1", name="rating", value=True)
        provider.deliver()
        provider.record(a_handle(4), "rating", True)

        assert {
            ("accepted", "a"): 3,
            ("accepted", PARKED): 1,
            ("refused", None): 1,
            ("settled", "a"): 2,
            ("queue.size", "a"): 1,
            ("queue.size", PARKED): 1,
            ("queue.capacity", "a"): 1,
            ("queue.capacity", PARKED): 1,
        } == numbers(reader)

    def test_after_the_end_nothing_is_observed(self, provider: FeedbackProvider, reader: InMemoryMetricReader) -> None:
        """
        A provider that was shut down is asked for nothing any more.
        """
        provider.record(a_handle(1), "rating", True)
        provider.shutdown()

        assert {("accepted", "a"): 1} == numbers(reader)


def numbers(reader: InMemoryMetricReader) -> dict[tuple[str, object], float]:
    """Add the counts of records up, by instrument and destination."""
    data = reader.get_metrics_data()
    found: dict[tuple[str, object], float] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
        name = metric.name.removeprefix("otel_feedback.outbox.record.")
        if name in ("accepted", "refused", "settled", "queue.size", "queue.capacity"):
            for point in metric.data.data_points:
                place = name, (point.attributes or {}).get("otel_feedback.destination")
                found[place] = found.get(place, 0) + point.value  # type: ignore[union-attr]  # sums and gauges only
    return found


# --- ids of the application's own ----------------------------------------------------------------------------------

ITS_ID = "0198f1f2-9c2b-7d3e-b5a1-8c9d2e4f6a7b"


class TestIdsOfTheApplication:
    """An id is one judgement, and stays on its call."""

    def test_two_calls_in_one_transaction_cannot_share_one(self, make: Make) -> None:
        """
        As one after the other cannot; nothing of it is accepted.
        """
        provider = make(InMemoryFeedbackExporter("a"))
        both = [Feedback(target=a_handle(number), name="rating", value=True, id=ITS_ID) for number in (1, 2)]
        with pytest.raises(InvalidFeedbackError, match="another call or name") as caught:
            provider.record_many(both)

        assert ("id", {}) == (caught.value.field, provider.stats())
        assert 2 == len(provider.record_many([both[0], both[0]]))

    @pytest.mark.parametrize(
        "other",
        [{"key": "m-2", "name": "rating"}, {"key": "m-1", "name": "tone"}, {"target": HANDLE, "name": "rating"}],
    )
    def test_one_that_waits_for_a_key_is_of_no_other_judgement(self, make: Make, other: dict[str, Any]) -> None:
        """
        Neither of another key's, nor of a call's.
        """
        provider = make(InMemoryFeedbackExporter("a"), on_unknown_key="park")
        provider.record(key="m-1", name="rating", value=True, id=ITS_ID)
        with pytest.raises(InvalidFeedbackError, match="another call or name"):
            provider.record(**other, value=False, id=ITS_ID)
        provider.record(key="m-1", name="rating", value=False, id=ITS_ID)
        provider._store.bind([Binding("app", "m-1", HANDLE)])
        provider.deliver()

        assert (1, 1) == (provider.stats()["a"].recorded, provider.stats()["a"].delivered)

    def test_one_of_a_call_waits_for_no_key(self, make: Make) -> None:
        """
        When the key turned up, the judgement would move to another call.
        """
        provider = make(InMemoryFeedbackExporter("a"), on_unknown_key="park")
        provider.record(HANDLE, "rating", True, id=ITS_ID)
        with pytest.raises(InvalidFeedbackError, match="another call or name"):
            provider.record(key="m-1", name="rating", value=True, id=ITS_ID)

        assert HANDLE == provider._store.latest(ITS_ID).handle  # type: ignore[union-attr]  # it is there

    def test_one_that_was_taken_back_before_its_key_turned_up_is_free_again(self, make: Make) -> None:
        """
        It was on no call yet.
        """
        exporter = InMemoryFeedbackExporter("a")
        provider = make(exporter, on_unknown_key="park")
        provider.retract(provider.record(key="m-1", name="rating", value=True, id=ITS_ID).id)
        provider.record(key="m-2", name="rating", value=True, id=ITS_ID)
        provider._store.bind([Binding("app", "m-2", HANDLE)])
        provider.deliver()

        assert [HANDLE.span_id] == [part.record.handle.span_id for part in exporter.exported]


# --- shutting down twice, and sharing exporters --------------------------------------------------------------------


class SlowExporter(InMemoryFeedbackExporter):
    """Exports when it is told to, and knows whether it was shut down meanwhile."""

    def __init__(self, name: str = "a") -> None:
        super().__init__(name)
        self.entered, self.go = threading.Event(), threading.Event()
        self.shutdowns = 0
        self.was_shut_down_within = False

    def export(self, parts: Sequence[Part]) -> Sequence[Result]:
        before = self.shutdowns
        self.entered.set()
        self.go.wait(20)
        self.was_shut_down_within |= self.shutdowns != before
        return super().export(parts)

    def shutdown(self) -> None:
        self.shutdowns += 1


class TestShuttingDownTwice:
    """Whoever comes second leaves the connections to the requests that are running."""

    def test_another_thread_waits_for_the_first(self, make: Make) -> None:
        """
        The exporter is shut down once, after its last request.
        """
        exporter = SlowExporter()
        provider = make(exporter, delivery="thread", exit_timeout_millis=20_000)
        provider.record(HANDLE, "rating", True)
        assert exporter.entered.wait(20)
        threads = [threading.Thread(target=provider.shutdown) for _ in range(3)]
        for thread in threads:
            thread.start()
        provider.shutdown(50)  # which gives up: another one is at it
        exporter.go.set()
        for thread in threads:
            thread.join(20)

        assert (False, "delivered") == (
            exporter.was_shut_down_within,
            "delivered" if provider.stats()["a"].delivered else "lost",
        )
        assert exporter.shutdowns > 0

    def test_a_second_one_does_not_close_what_the_first_has_left_behind(self, make: Make) -> None:
        """
        A request that took longer than the first shutdown has time is still running.
        """
        exporter = SlowExporter()
        provider = make(exporter, delivery="thread")
        provider.record(HANDLE, "rating", True)
        assert exporter.entered.wait(20)
        provider.shutdown(1)
        provider.shutdown(1)
        exporter.go.set()
        provider.shutdown(20_000)

        assert (False, 1) == (exporter.was_shut_down_within, exporter.shutdowns)

    def test_a_signal_s_handler_in_the_middle_of_it_leaves_it_to_go_on(self, make: Make) -> None:
        """
        It would wait for itself, or close what the rest of it needs.
        """
        within: list[int] = []

        class Signalled(SlowExporter):
            def shutdown(self) -> None:
                super().shutdown()
                if not within:
                    within.append(self.shutdowns)
                    provider.shutdown()

        exporter = Signalled()
        provider = make(exporter).start()
        provider.shutdown()

        assert ([1], 1) == (within, exporter.shutdowns)


class TestSharedExporters:
    """A notebook's cell that configures again gives the same exporter to a new provider."""

    def test_one_that_another_provider_has_is_left_to_that(self, make: Make) -> None:
        """
        The last one shuts it down.
        """
        exporter, alone = SlowExporter("a"), SlowExporter("b")
        first = make(exporter, alone).start()
        second = make(exporter).start()
        first.shutdown()

        assert (0, 1) == (exporter.shutdowns, alone.shutdowns)
        second.shutdown()
        assert 1 == exporter.shutdowns


@pytest.mark.parametrize("name", ["keep", "keeper", "deliver"])
def test_an_exporter_may_have_any_name_that_is_not_the_store_s_own(make: Make, name: str) -> None:
    """
    No thread of ours takes the place of its own.
    """
    exporter = InMemoryFeedbackExporter(name)
    provider = make(exporter, delivery="thread")
    provider.record(HANDLE, "rating", True)

    assert provider.force_flush(20_000)
    assert 1 == len(exporter.exported)


def test_what_a_redaction_changes_in_place_others_do_not_see(make: Make) -> None:
    """
    It is given a copy of what is nested.
    """

    def spoil(feedback: Feedback) -> Feedback:
        feedback.metadata["app"]["version"] = "gone"  # type: ignore[index]  # it is a dict
        feedback.correction.append("gone")
        return feedback

    spoilt, whole = InMemoryFeedbackExporter("spoilt"), InMemoryFeedbackExporter("whole")
    provider = make(spoilt, whole, redact={"spoilt": spoil})
    provider.record(HANDLE, "rating", True, metadata={"app": {"version": "1"}}, correction=["ok"])
    provider.deliver()

    assert [({"app": {"version": "gone"}}, ["ok", "gone"]), ({"app": {"version": "1"}}, ["ok"])] == [
        (part.record.metadata, part.record.correction) for each in (spoilt, whole) for part in each.exported
    ]


@pytest.mark.parametrize("settings", [{"delivery": "none"}, "none", 5])
def test_settings_are_settings(settings: Any) -> None:
    """
    A table of them would fail somewhere within.
    """
    with pytest.raises(ConfigurationError, match=r"settings is an otel_feedback\.Settings") as caught:
        FeedbackProvider(exporters=[], store="memory:", settings=settings)

    assert "settings" == caught.value.setting


@pytest.mark.parametrize("written", [ITS_ID, ITS_ID.upper(), ITS_ID.replace("-", "")])
def test_an_id_may_be_written_as_uuids_are(make: Make, written: str) -> None:
    """
    Whoever asks for it, or takes it back, need not write it as it was given.
    """
    provider = make(InMemoryFeedbackExporter("a"))
    receipt = provider.record(HANDLE, "rating", True, id=written)

    assert (ITS_ID, {"a": "pending"}) == (receipt.id, states(provider.status(written)))
    assert ITS_ID == provider.retract(written).id
