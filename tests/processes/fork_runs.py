"""How the forking programs are run, and what is read from what they say."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import Self

from vendor_account import Acknowledged

PROGRAMS = Path(__file__).parent / "programs"
# A program's own watch ends it before.
PATIENCE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Ran:
    """What the processes of one program said, until the last of them had ended."""

    lines: Sequence[Sequence[str]]
    errors: str
    exit_code: int | None
    ended_at: float = field(default_factory=time.monotonic)

    def said(self, word: str) -> list[Sequence[str]]:
        """List what was said under a word."""
        return [line[1:] for line in self.lines if line[0] == word]

    @property
    def acknowledged(self) -> list[Acknowledged]:
        """Every judgement that a process was told to be accepted."""
        return [Acknowledged(*rest) for rest in self.said("record")]

    @property
    def captured(self) -> dict[str, str]:
        """The span that each key was captured with."""
        return {key: span_id for key, _, span_id in self.said("captured")}

    @property
    def misfound(self) -> list[Sequence[str]]:
        """Keys that were found to be another call than they were captured with."""
        return [each for each in self.said("found") if self.captured[each[0]] != each[1]]

    @property
    def exits(self) -> dict[str, int]:
        """How each child ended."""
        return {label: int(code) for label, _, code in self.said("ended")}

    @property
    def seconds_to_end(self) -> dict[str, float]:
        """How long each process took from its last line to its end."""
        began = {label: float(at) for label, at in self.said("leaving")}
        ended = {label: float(at) for label, at, _ in self.said("ended")}
        return {label: ended.get(label, self.ended_at) - at for label, at in began.items()}


def run(program: str, *arguments: str, settings: Mapping[str, str], patience: float = PATIENCE_SECONDS) -> Ran:
    """Run a program until the last process that it began has ended; `exit_code` is `None` where one hung."""
    command = [sys.executable, str(PROGRAMS / program), *arguments]
    return finish(begin(command, settings), patience)


def begin(command: Sequence[str], settings: Mapping[str, str], **options: Any) -> subprocess.Popen[str]:
    """Begin a program, in a session of its own, without coverage: a child would wait for its lock for ever.

    Another thread may hold that one at the moment of the fork.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return subprocess.Popen(
        command,
        env={**environment, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(process: subprocess.Popen[str], patience: float = PATIENCE_SECONDS) -> Ran:
    """Wait until the last process that a program began has ended, and end those that hang."""
    has_hung = False
    try:
        # The pipe is at its end when all who hold it have ended, children and their children as well.
        said, errors = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        has_hung = True
        os.killpg(process.pid, signal.SIGKILL)
        said, errors = process.communicate()
    return Ran([line.split() for line in said.splitlines()], errors, None if has_hung else process.returncode)


class Gunicorn:
    """A real gunicorn with two preloaded workers, on a free port of this machine; a context manager.

    Args:
        worker: gunicorn's kind of worker.

        settings: what the processes are told.
    """

    told_at: float

    def __init__(self, worker: str, settings: Mapping[str, str]) -> None:
        # Listening since before, so that nobody waits for the workers to be ready.
        self._socket = socket.create_server(("127.0.0.1", 0))
        number = self._socket.fileno()
        self._url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        options = ["--preload", "--workers=2", "--threads=4", f"--worker-class={worker}", f"--bind=fd://{number}"]
        self._process = begin(
            [sys.executable, "-m", "gunicorn", *options, f"--chdir={PROGRAMS}", "--no-control-socket", "gunicorn_app"],
            settings,
            pass_fds=[number],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()

    def request(self, number: int) -> int:
        """Have one answer judged; tell which process did it."""
        with urllib.request.urlopen(f"{self._url}?{number}", timeout=PATIENCE_SECONDS) as answer:
            pid: int = json.load(answer)["pid"]
            return pid

    def stop(self) -> Ran:
        """Tell the server to end, as service managers do, and wait for it and its workers."""
        self.told_at = time.monotonic()
        self._process.terminate()
        return finish(self._process)
