"""Victims on order: processes that are killed at random points or at chosen system calls, and what they were told."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import IO

from typing_extensions import Self

import otel_feedback as of
from vendor_account import Acknowledged

PROGRAM = Path(__file__).parent / "programs" / "kill_zygote.py"
PATIENCE_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a victim does; without `rounds` it goes on until it is killed."""

    role: str
    store: str
    delivery: str = "thread"
    rounds: int | None = None
    ahead_millis: int = 0
    bug: str | None = None


@dataclass(slots=True)
class Told:
    """What victims have been told to be accepted."""

    records: list[Acknowledged] = field(default_factory=list)
    # The span that each key was bound to.
    keys: dict[str, str] = field(default_factory=dict)

    def add(self, other: Told) -> None:
        """Take over what others were told."""
        self.records += other.records
        self.keys |= other.keys


class Victim:
    """One process that is to be killed."""

    def __init__(self, pid: int, lines: queue.SimpleQueue[list[str]]) -> None:
        self.pid = pid
        self.told = Told()
        self.exit_code: int | None = None
        self._lines = lines

    def hear(self) -> str:
        """Read one line; answer its first word."""
        word, *rest = self._lines.get(timeout=PATIENCE_SECONDS)
        if word == "record":
            self.told.records.append(Acknowledged(*rest))
        elif word == "key":
            self.told.keys[rest[0]] = rest[2]
        elif word == "end":
            self.exit_code = int(rest[1])
        return word

    def hear_of(self, number: int) -> None:
        """Read until a number of judgements is acknowledged, or all is over."""
        while len(self.told.records) < number and self.exit_code is None:
            self.hear()

    def kill(self) -> None:
        """Kill it, and read what it still said."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Read until it has ended; answer its exit code."""
        while self.exit_code is None:
            self.hear()
        return self.exit_code


class Zygote:
    """A warm process that forks victims, one after the other; a context manager.

    Args:
        environment: what it is told besides this process's environment.

        tracer: the command that runs it, as `strace` that kills at a system call.
    """

    def __init__(self, environment: Mapping[str, str], tracer: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*tracer, sys.executable, str(PROGRAM)],
            env={**os.environ, **environment, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._lines: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            self._reader.join(PATIENCE_SECONDS)
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _read(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            self._lines.put(line.decode().split())

    def start(self, order: Order) -> Victim:
        """Fork a victim."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        self._process.stdin.flush()
        word, pid = self._lines.get(timeout=PATIENCE_SECONDS)
        assert word == "pid"
        return Victim(int(pid), self._lines)


def killing_at(system_call: str, number: int) -> list[str]:
    """Answer the command whose program dies as one of its threads begins a system call for the n-th time.

    strace counts for each thread, from one. It would be quicker with `--seccomp-bpf`, and does not count then (6.1).
    """
    return [
        *("strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={system_call}"),
        *("-e", f"inject={system_call}:signal=SIGKILL:when={number}"),
    ]


@cache
def can_kill_at_system_calls() -> bool:
    """Tell whether strace is here and may tamper with a program."""
    if shutil.which("strace") is None:
        return False
    program = [sys.executable, "-c", "import os; os.rmdir('/nowhere')"]
    # strace ends as its program did.
    return subprocess.run([*killing_at("rmdir", 1), *program], check=False, timeout=60).returncode == -signal.SIGKILL


def problems(store: Path, copy: Path, told: Told, *, is_idle: bool) -> list[str]:
    """Say what is wrong with a store after a kill: its integrity, or something it does not know.

    A store that nobody has open is looked at in a copy, so that what a kill left is for the next victim to recover.
    """
    path = store
    if is_idle:
        path = copy
        for suffix in ("", "-wal", "-shm"):
            copy.with_name(copy.name + suffix).unlink(missing_ok=True)
        for suffix in ("", "-wal"):
            if (source := store.with_name(store.name + suffix)).exists():
                shutil.copy(source, copy.with_name(copy.name + suffix))
    with closing(sqlite3.connect(path, timeout=PATIENCE_SECONDS)) as connection:
        found = [text for (text,) in connection.execute("PRAGMA integrity_check") if text != "ok"]
    return found + _unknown(path, told)


def _unknown(path: Path, told: Told) -> list[str]:
    """Name what was acknowledged and is not in the store."""
    with closing(of.SQLiteStore(path)) as store:
        records = [f"record {each.id} is unknown" for each in told.records if store.status(each.id) is None]
        keys = [
            f"{key} is unknown"
            for key, span_id in told.keys.items()
            if [span_id] != [handle.span_id for handle in store.find("app", key)]
        ]
    return records + keys
