"""Forks where they are not expected, by the program's argument: in a fork, in a thread, beside a parent's shutdown."""

from __future__ import annotations

import os
import sys
import threading

import fork_says
from fork_says import answer, judge, judge_key

import otel_feedback as of

DEPTH = 3


def work(label):
    """Do in one process what an application does."""
    answer(f"quiet-{label}")
    fork_says.look_from_outside(f"quiet-{label}", label)
    judge(answer(f"call-{label}"), label)
    fork_says.tell_threads(label)


def nested(depth=DEPTH):
    """Fork in a fork in a fork; each works before and after."""
    label = f"depth-{depth}"
    work(label)
    if depth:
        fork_says.reap(fork_says.fork(lambda: nested(depth - 1)), f"depth-{depth - 1}")
        judge_key(f"call-depth-{depth - 1}", f"{label}-later")
    fork_says.leave(label)


def from_a_thread(end):
    """Fork in a thread, which is the child's main one then, and end in some way."""
    work("parent")

    def child():
        work("child")
        fork_says.leave("child")
        end()

    thread = threading.Thread(target=lambda: fork_says.reap(fork_says.fork(child), "child"))
    thread.start()
    thread.join()
    work("parent-later")


def parent_shuts_down():
    """Shut the parent's pipeline down while one child lives, and before another one is begun."""
    work("parent")
    reading, writing = os.pipe()

    def outliving():
        os.read(reading, 1)
        work("outliving")
        fork_says.leave("outliving")

    def late():
        judge(answer("call-late"), "late")
        fork_says.leave("late")

    pid = fork_says.fork(outliving)
    of.get_feedback_provider().shutdown()
    os.write(writing, b"x")
    late_pid = fork_says.fork(late)
    judge_key("call-parent", "parent-later")
    fork_says.reap(pid, "outliving")
    fork_says.reap(late_pid, "late")


PARTS = {
    "nested": nested,
    "thread-exits": lambda: from_a_thread(lambda: os._exit(0)),
    "parent-shuts-down": parent_shuts_down,
}

fork_says.set_up()
of.configure()
PARTS[sys.argv[1]]()
