"""A pool as Celery's: the parent configures and forks workers, which are sent tasks, killed, replaced and stopped."""

from __future__ import annotations

import os
import signal

import fork_says
from fork_says import answer, judge, judge_key

import otel_feedback as of

WORKERS = 3
TASKS = 4


def serve(name, tasks, done):
    """Do task after task until there are no more; end as billiard's workers do, by `os._exit`."""
    with os.fdopen(tasks, "rb", buffering=0) as incoming:
        for task in incoming:
            label = f"{name}-{task.decode().strip()}"
            judge(answer(label), label)
            os.write(done, b".")
    fork_says.tell_threads(name)
    fork_says.leave(name)
    os._exit(0)


class Worker:
    """A worker as its parent sees it."""

    def __init__(self, name):
        self.name = name
        reading, self._tasks = os.pipe()
        self._done, writing = os.pipe()
        tasks, done = self._tasks, self._done

        def child():
            # Otherwise the pipe of tasks would never end.
            os.close(tasks)
            os.close(done)
            for other in alive:
                other.hang_up()
            serve(name, reading, writing)

        self.pid = fork_says.fork(child)
        os.close(reading)
        os.close(writing)

    def do(self, task):
        """Have a task done."""
        os.write(self._tasks, f"{task}\n".encode())
        os.read(self._done, 1)

    def hang_up(self):
        """Close the pipes."""
        os.close(self._tasks)
        os.close(self._done)

    def stop(self):
        """Tell it that there are no more tasks, and see its end."""
        self.hang_up()
        fork_says.reap(self.pid, self.name)


alive = []
fork_says.set_up()
of.configure()
judge(answer("parent"), "parent")
for number in range(WORKERS):
    alive.append(Worker(f"worker-{number}"))  # noqa: PERF401 (each child hangs up on those before it)
for task in range(TASKS):
    for worker in alive:
        worker.do(task)
victim = alive.pop()
os.kill(victim.pid, signal.SIGKILL)
victim.stop()
alive.append(Worker("replacement"))
for task in range(TASKS):
    alive[-1].do(task)
judge_key(f"{victim.name}-0", "parent-of-victim")
while alive:
    alive.pop().stop()
