"""Many threads of a fresh child use the pipeline for the first time at the same moment."""

from __future__ import annotations

import threading

import fork_says
from fork_says import answer, judge

import otel_feedback as of

THREADS = 16


def child():
    """Let all threads begin at once, and see what they have started."""
    barrier = threading.Barrier(THREADS)

    def use(number):
        barrier.wait()
        judge(answer(f"call-{number}"), f"thread-{number}")

    threads = [threading.Thread(target=use, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fork_says.tell_threads("child")
    fork_says.leave("child")


fork_says.set_up()
of.configure()
judge(answer("parent"), "parent")
fork_says.reap(fork_says.fork(child), "child")
