"""Measures every row and writes the table into the README beside this file.

    python tests/benchmarks/run.py [--seconds 5] [--only WORDS]

With `--only`, the rows whose name has these words are printed, and nothing is written.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from benchmark_measure import Measured, measure
from benchmark_rows import ROWS, Row

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- written by run.py -->", "<!-- end -->"
HEAD = (
    "| path | beside | plain call | wall clock | caller's thread | whole process | reach | |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)
PACKAGES = ("otel-feedback", "opentelemetry-sdk", "wrapt")


def main() -> None:
    """Run as told on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each row is measured")
    parser.add_argument("--only", default="", help="words of the rows to print")
    options = parser.parse_args()
    load_before = _load()
    lines = list(HEAD)
    for row in ROWS:
        if options.only in row.name:
            lines.append(line_of(row, asyncio.run(measured(row, seconds=options.seconds))))
            print(lines[-1], file=sys.stderr, flush=True)
    facts = {**surroundings(), "load average, before and after": f"{load_before}; {_load()}"}
    text = "\n".join([*(f"- {name}: {value}" for name, value in facts.items()), "", *lines])
    print(text)
    if not options.only:
        README.write_text(with_text(README.read_text("utf-8"), text), "utf-8")


async def measured(row: Row, *, seconds: float) -> Measured:
    """Measure a row in a world of its own."""
    with nothing_fails(row.name), row.opens() as world:
        return await measure(row.ours(world), row.plain(world), settle=world.settle, seconds=seconds)


@contextmanager
def nothing_fails(name: str) -> Iterator[None]:
    """Take nothing for a result that was measured while capture failed, or lost keys: to fail is very fast.

    Raises:
        RuntimeError: when the library has logged an error.
    """
    logger, failures = logging.getLogger("otel_feedback"), _Failures(logging.ERROR)
    logger.addHandler(failures)
    try:
        yield
    finally:
        logger.removeHandler(failures)
    if failures.messages:
        raise RuntimeError(f"{name} was not measured, it failed: {failures.messages[0]}")


class _Failures(logging.Handler):
    """What a logger was told from a level on."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.messages.append(record.getMessage())


def line_of(row: Row, found: Measured) -> str:
    """Write one line of the table."""
    reach = "" if row.reach is None else f"≤ {row.reach:.2f}"
    spreads = (str(each) for each in (found.wall, found.caller, found.process))
    cells = (row.name, row.beside, f"{found.plain_micros:.2f} µs", *spreads, reach, verdict(row.reach, found))
    return "| " + " | ".join(cells) + " |"


def verdict(reach: float | None, found: Measured) -> str:
    """Say whether both of the caller's ratios are what they should be, as exactly as they are shown."""
    if reach is None:
        return ""
    return "reached" if all(round(each.median, 2) <= reach for each in (found.wall, found.caller)) else "**not yet**"


def surroundings() -> Mapping[str, str]:
    """Say where and when it was measured."""
    return {
        "machine": f"{_cpu()}, {os.cpu_count()} cores, {platform.system()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def with_text(readme: str, text: str) -> str:
    """Put a text between the README's marks.

    Raises:
        ValueError: when the marks are not there.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README lacks its marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _cpu() -> str:
    """Name the processor; Linux does so in a file only."""
    info = Path("/proc/cpuinfo")
    lines: Iterable[str] = info.read_text("utf-8").splitlines() if info.exists() else ()
    names: Sequence[str] = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _load() -> str:
    """Say how busy the machine is; Windows does not know."""
    return " ".join(f"{each:.2f}" for each in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"


if __name__ == "__main__":
    main()
