"""The warm parent of processes that are to be killed: it has imported everything, and opened and started nothing.

Each line of its standard input orders one victim, which is forked and does what it is told until it is killed. It
writes, in whole lines: `pid N`, what the victim has been told to be accepted, and `end N <exit code>`, negative for a
signal.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import secrets
import sys
import threading

import otel_feedback as of
from otel_feedback._time import SystemClock

# Everything is loaded now, and not by each victim again.
EXPORTERS = (of.OrqExporter, of.BraintrustExporter, of.WeaveExporter)
PROVIDER, FEEDBACK, HANDLE, SUCCESS = of.FeedbackProvider, of.Feedback, of.FeedbackHandle, of.Success
SETTINGS = of.Settings

MANY = 3

# That another worker has taken something over is what happens here all the time.
logging.getLogger("otel_feedback").setLevel(logging.ERROR)


def say(*words):
    """Write a line in one piece."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class ClockAhead(SystemClock):
    """The leases of the victims before have run out."""

    def __init__(self, millis):
        self._nanos = millis * 1_000_000

    def time_unix_nano(self):
        return super().time_unix_nano() + self._nanos


# --- seeded bugs -------------------------------------------------------------------------------------------------


class AcknowledgesBeforeCommit(of.SQLiteStore):
    """The bug: records are written behind, a moment after they were acknowledged."""

    def put_many(self, entries):
        threading.Timer(0.05, super().put_many, [entries]).start()


class SettlesBeforeItSends:
    """The bug: what is sent a moment later is called delivered, as by a client with a queue of its own."""

    def __init__(self, exporter):
        self._exporter = exporter
        self.name = exporter.name
        self.parts = exporter.parts
        self.force_flush = exporter.force_flush
        self.shutdown = exporter.shutdown
        self.exports_unsampled = exporter.exports_unsampled

    def start(self):
        self._exporter.start()

    def export(self, parts):
        threading.Timer(0.05, self._exporter.export, [parts]).start()
        return [SUCCESS()] * len(parts)


STORES = {None: of.SQLiteStore, "acknowledges before commit": AcknowledgesBeforeCommit}


# --- victims -----------------------------------------------------------------------------------------------------


def provider_of(order):
    """Make the pipeline that an order asks for."""
    exporters = [kind() for kind in EXPORTERS]
    if order["bug"] == "settles before it sends":
        exporters = [SettlesBeforeItSends(each) for each in exporters]
    clock = ClockAhead(order["ahead_millis"])
    return PROVIDER(
        exporters=exporters,
        store=STORES.get(order["bug"], of.SQLiteStore)(order["store"], clock=clock),
        settings=SETTINGS(delivery=order["delivery"]),
        clock=clock,
    )


def judgement():
    """Make up a call, and what is said of it."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    handle = HANDLE.from_traceparent(f"00-{trace_id}-{span_id}-01")
    return FEEDBACK(target=handle, name="rating", value=True, correction=f"{os.getpid()} {trace_id} {span_id}")


def acknowledge(judged, receipts):
    """Say what was accepted."""
    for feedback, receipt in zip(judged, receipts, strict=True):
        say("record", receipt.id, *feedback.correction.split(" "))


def record(provider, order):
    """Record one by one, several at once, and keys, until killed or done."""
    for _ in itertools.count() if order["rounds"] is None else range(order["rounds"]):
        one, *several = [judgement() for _ in range(1 + MANY)]
        receipt = provider.record(one.target, one.name, one.value, correction=one.correction)
        acknowledge([one], [receipt])
        acknowledge(several, provider.record_many(several))
        key = f"key-{one.target.span_id}"
        provider.bind_key(one.target, key)
        provider.handle_for_key(key)  # nothing is looked up before all that was bound is written
        say("key", key, one.target.trace_id, one.target.span_id)


def deliver(provider, order):
    """Deliver all there is."""
    provider.force_flush(60_000)
    say("delivered")


ROLES = {"record": record, "deliver": deliver}


def victim(order):
    """Do what was ordered; without an end of its own it waits to be killed."""
    with provider_of(order) as provider:
        say("started")
        ROLES[order["role"]](provider, order)
        if order["rounds"] is None:
            threading.Event().wait()


def main():
    """Have one victim after the other."""
    for line in sys.stdin.buffer:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                say("pid", os.getpid())
                victim(order)
                code = 0
            finally:
                os._exit(code)
        say("end", pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


main()
