"""A parent whose children are begun in one way and end in all ways; each judges, and is judged.

Arguments: how children begin, whether the pipeline is `configured-before` they do or `configured-after`, and whether
the parent is `quiet`, `busy` (two threads of it record all the while) or, by its vendors, `unanswered`. `no-pid-check`
seeds the bug.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
import time

import fork_says
from fork_says import acknowledge, answer, judge, judge_key, leave, say, words

import otel_feedback as of

EXTRA = 3
# What goes on for as long as anybody looks stays within what three vendors take in a second or two.
PACE_SECONDS = 0.02
MANY = 40


class WithoutPidCheck(of.FeedbackProvider):
    """The seeded bug: what the parent runs is taken to run in the child as well."""

    def _here(self):
        return self._process or super()._here()


# --- the ways to end ---------------------------------------------------------------------------------------------


def returns(_handle, label):
    """End as a program does whose last line is reached."""
    leave(label)


def os_exit(_handle, label):
    """End at once, without any of Python's own end."""
    leave(label)
    os._exit(0)


def sys_exit(_handle, label):
    """End by `SystemExit`."""
    leave(label)
    sys.exit(0)


def raises(_handle, label):
    """End by an exception that nobody catches."""
    leave(label)
    raise RuntimeError("as planned")


def shuts_down(handle, label):
    """Shut the pipeline down, and record once more."""
    of.get_feedback_provider().shutdown()
    judge(handle, f"{label}-later")
    leave(label)


def thread_to_the_end(handle, label):
    """Leave a thread that goes on recording when the main one is done."""

    def record():
        for number in range(EXTRA):
            judge(handle, f"{label}-{number}")
        threading.main_thread().join()
        for number in range(EXTRA):
            judge(handle, f"{label}-late-{number}")
        leave(label)

    threading.Thread(target=record).start()


def daemons_at_exit(handle, label):
    """Leave threads behind that go on recording, and that nobody waits for."""
    begun = [threading.Event() for _ in range(2)]

    def record(number):
        for count in range(MANY):
            judge(handle, f"{label}-{number}-{count}")
            begun[number].set()
            threading.Event().wait(PACE_SECONDS)

    for number in range(2):
        threading.Thread(target=record, args=(number,), daemon=True).start()
    for each in begun:
        each.wait()
    leave(label)


def closed_loop(handle, label):
    """Record in an event loop that is closed then, without one, and in another one."""

    async def record(what):
        said = words(what, handle)
        acknowledge(what, handle, await of.arecord_feedback(handle, "rating", True, correction=said))

    asyncio.run(record(f"{label}-first-loop"))
    judge(handle, f"{label}-no-loop")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(record(f"{label}-second-loop"))
    loop.close()
    leave(label)


def shutdown_in_the_middle(handle, label):
    """Shut the pipeline down while other threads record."""

    def record(number):
        for count in range(EXTRA):
            judge(handle, f"{label}-{number}-{count}")

    threads = [threading.Thread(target=record, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    of.get_feedback_provider().shutdown()
    leave(label)


ENDS = {
    "returns": returns,
    "os-exit": os_exit,
    "sys-exit": sys_exit,
    "raises": raises,
    "shuts-down": shuts_down,
    "thread-to-the-end": thread_to_the_end,
    "daemons-at-exit": daemons_at_exit,
    "closed-loop": closed_loop,
    "shutdown-in-the-middle": shutdown_in_the_middle,
}


# --- children ----------------------------------------------------------------------------------------------------


def child(label, configures):
    """Capture, judge own and the parent's calls, and end."""
    fork_says.set_up()
    if configures:
        of.configure()
    answer(f"quiet-{label}")
    fork_says.look_from_outside(f"quiet-{label}", label)
    handle = answer(f"child-{label}")
    judge(handle, f"{label}-handle")
    judge_key(f"child-{label}", f"{label}-key")
    judge_key("parent", f"{label}-of-parent")
    fork_says.tell_threads(label)
    ENDS[label](handle, label)


def begin(how, label, configures):
    """Begin a child; answer what waits for its end."""
    if how == "os.fork":
        pid = fork_says.fork(lambda: child(label, configures))
        return lambda: fork_says.reap(pid, label)
    process = multiprocessing.get_context(how).Process(target=child, args=(label, configures))
    process.start()

    def wait():
        process.join()
        say("ended", label, time.monotonic(), process.exitcode)

    return wait


def record_all_the_while(handle, stop, name):
    """Record until told to stop."""
    count = 0
    while not stop.wait(PACE_SECONDS):
        judge(handle, f"busy-{name}-{count}")
        count += 1


def configure(configured, bug):
    """Configure before the children begin, or leave it to them; answer whether they do."""
    if bug == "no-pid-check":
        of.set_feedback_provider(WithoutPidCheck().start())
    elif configured == "configured-before":
        of.configure()
    return configured == "configured-after"


def all_at_once(functions):
    """Call functions, each in a thread of its own; answer the threads."""
    threads = [threading.Thread(target=each) for each in functions]
    for thread in threads:
        thread.start()
    return threads


def go_on(activity):
    """Judge the children's calls, and see whether the parent still delivers."""
    for label in ENDS:
        judge_key(f"child-{label}", f"parent-of-{label}")
    mine = answer("parent-later")
    receipt = of.record_feedback(mine, "rating", True, correction=words("parent-later", mine))
    acknowledge("parent-later", mine, receipt)
    if activity != "unanswered":
        say("parent-delivers", "yes" if fork_says.wait_for(lambda: fork_says.is_delivered(receipt.id)) else "no")
    fork_says.tell_threads("parent")
    leave("parent")


def main(how, configured, activity, bug=None):
    """Begin all children at once, wait for their ends, and go on delivering."""
    fork_says.set_up()
    children_configure = configure(configured, bug)
    handle = None if children_configure else answer("parent")
    stop = threading.Event()
    busy = all_at_once(
        [lambda name=name: record_all_the_while(handle, stop, name) for name in "ab" if activity == "busy"]
    )
    waits = [begin(how, label, children_configure) for label in ENDS]
    if children_configure:
        of.configure()
        answer("parent")
    for thread in all_at_once(waits):
        thread.join()
    stop.set()
    for thread in busy:
        thread.join()
    go_on(activity)


if __name__ == "__main__":
    main(*sys.argv[1:])
