"""Changes the code that keeps and delivers judgements, one small change at a time, and lists what no test notices.

    python tests/mutation/run.py [--only MODULE] [--sample N] [--seed N] [--again] [--work DIRECTORY]

Each mutant is a fork of this process, which has loaded everything but the library: the library is imported in the fork,
so that tables, SQL and defaults are changed as well as functions, and nothing of one mutant is left for the next. It
meets the tests that run the changed lines until one fails. `--again` takes only those that survived the last time. It
ends with 1 when a survivor is not in the README beside this file, where each has its reason.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest
from mutants import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
README = Path(__file__).with_name("README.md")
CONTRACT = ("tests/test_store_states.py", "tests/stores/test_contract.py")
FILES = (
    "tests/stores/test_sqlite_file.py",
    "tests/stores/test_sqlite_merge.py",
    "tests/stores/test_sqlite.py",
    "tests/stores/test_sqlite_schema.py",
)
# Each module, and the tests that are to notice.
MODULES: Mapping[str, Sequence[str]] = {
    "_retry.py": ("tests/test_retry.py",),
    "_deliver.py": ("tests/test_deliver.py",),
    "stores/__init__.py": (*CONTRACT, "tests/test_deliver.py"),
    "stores/_sql.py": (
        *CONTRACT,
        "tests/stores/test_sql.py",
        "tests/stores/test_memory.py",
        "tests/stores/test_sqlite.py",
    ),
    "stores/memory.py": (*CONTRACT, "tests/stores/test_memory.py"),
    "stores/sqlite.py": (*CONTRACT, *FILES),
    "stores/_forks.py": (*CONTRACT, "tests/stores/test_memory.py", "tests/stores/test_sqlite.py"),
    "stores/_sqlite_file.py": FILES,
    "stores/_sqlite_merge.py": FILES,
    "stores/_sqlite_rescue.py": FILES,
    "stores/_sqlite_salvage.py": FILES,
    "stores/_sqlite_schema.py": (*CONTRACT, "tests/stores/test_sql.py", *FILES),
    "exporters/_checks.py": ("tests/exporters/test_checks.py", "tests/exporters/test_orq.py"),
    "exporters/_http.py": ("tests/exporters/test_http.py", "tests/exporters/test_orq.py"),
    "exporters/orq.py": ("tests/exporters/test_orq.py", "tests/exporters/test_orq_annotations.py"),
    "exporters/braintrust.py": ("tests/exporters/test_braintrust.py",),
    "exporters/_braintrust_rows.py": ("tests/exporters/test_braintrust.py",),
    "exporters/weave.py": ("tests/exporters/test_weave.py",),
    "exporters/_weave_rules.py": ("tests/exporters/test_weave.py",),
    "exporters/otlp.py": ("tests/exporters/test_otlp.py",),
    "exporters/console.py": ("tests/exporters/test_console.py",),
}
# So many mutants of a module are drawn, where there are more; fewer where each meets hundreds of files and processes.
SAMPLE, SAMPLE_OF_FILES, SEED = 300, 150, 4
# A test that takes longer is not asked: such a one is about speed or chance, or waits for what happens in a second.
SLOWEST_SECONDS = 1.0
# A test that takes so much longer than without a change is taken to hang.
PATIENCE, PATIENCE_SECONDS = 10, 5.0
# Loaded before the forks, to save time.
PRELOADED = ("httpx", "opentelemetry.sdk.trace", "hypothesis.stateful", "pydantic", "wrapt", "_hypothesis_pytestplugin")
EARLY = "ignore::pytest.PytestAssertRewriteWarning"  # hypothesis is loaded already
# No plugin but one: the others take longer to load than most mutants live, and one of them makes the order random.
ARGUMENTS = ("-q", "-x", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin", "-W", EARLY)
# What the import assigns once.
CONSTANT = re.compile(r"([A-Z_]+)(: .*)? = ")


@dataclass(frozen=True)
class Baseline:
    """What the tests do without a change: how long each takes, and which of them run a line."""

    seconds: Mapping[str, float]
    by_line: Mapping[str, Sequence[str]]
    code: Sequence[str]

    def tests_of(self, mutant: Mutant, killed: Mapping[str, int]) -> dict[str, float]:
        """Name the tests that run the changed lines: all of them where that is not known.

        First come those that killed most so far, then the fastest.
        """
        first, last = mutant.lines
        lines = [first] if "" in self.by_line.get(str(first), ()) else range(first, last + 1)
        chosen = self._ran(lines, set()) & self.seconds.keys() or self.seconds.keys()
        ordered = sorted(chosen, key=lambda test: (-killed[test], self.seconds[test]))
        return {test: self.seconds[test] for test in ordered}

    def _ran(self, lines: Iterable[int], seen: set[int]) -> set[str]:
        """Name the tests that run some lines, or lines that name the constants which these assign."""
        ran: set[str] = set()
        for line in set(lines) - seen:
            seen.add(line)
            tests = self.by_line.get(str(line), ())
            ran |= {test for test in tests if test}
            if "" in tests:  # the import runs it
                if (assigned := CONSTANT.match(self.code[line - 1])) is None:
                    return set(self.seconds)
                name = re.compile(rf"\b{assigned[1]}\b")
                ran |= self._ran((number for number, text in enumerate(self.code, 1) if name.search(text)), seen)
        return ran


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: `survived`, `timeout` or `killed`, and by which test."""

    number: int
    line: int
    label: str
    state: str
    by: str


def main() -> int:
    """Run as told on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODULES, help="one module")
    parser.add_argument("--sample", type=int, help="how many mutants of a module at most")
    parser.add_argument("--seed", type=int, default=SEED, help="which of them")
    parser.add_argument("--again", action="store_true", help="only those that survived the last time")
    parser.add_argument("--work", type=Path, default=ROOT / ".mutation", help="where copies and results are kept")
    options = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    options.work.mkdir(exist_ok=True)
    reasons = README.read_text("utf-8")
    unexplained = 0
    for module in [options.only] if options.only else MODULES:
        outcomes = _run(module, options)
        survivors = [outcome for outcome in outcomes if outcome.state == "survived"]
        missing = [outcome for outcome in survivors if outcome.label not in reasons]
        for outcome in missing:
            print(f"{module}:{outcome.line}: {outcome.label}")
        print(f"{module}: {len(outcomes)} mutants, {dict(Counter(outcome.state for outcome in outcomes))}", flush=True)
        unexplained += len(missing)
    print(f"{unexplained} survived without a reason in the README")
    return 1 if unexplained else 0


def _run(module: str, options: argparse.Namespace) -> list[Outcome]:
    """Try the mutants of one module."""
    results = options.work / f"{module.replace('/', '.')}.json"
    outcomes = {each["number"]: Outcome(**each) for each in json.loads(results.read_text())} if options.again else {}

    def chosen(count: int) -> Sequence[int]:
        if options.again:
            return [number for number, outcome in outcomes.items() if outcome.state == "survived"]
        print(f"{module}: {count} mutants", flush=True)
        sample = options.sample or (SAMPLE_OF_FILES if module.startswith("stores/_sqlite_") else SAMPLE)
        return random.Random(options.seed).sample(range(count), min(count, sample))

    target = _copied(options.work) / "otel_feedback" / module
    baseline = _baseline(target, MODULES[module], options.work)
    Path(cache_from_source(str(target))).unlink()
    for mutant in mutants_of(target.read_text("utf-8"), chosen):
        if options.again and mutant.label != outcomes[mutant.number].label:
            raise SystemExit(f"{module} is not what it was the last time: run it without --again")
        target.write_text(mutant.code, "utf-8")
        killed = Counter(outcome.by for outcome in outcomes.values())
        outcome = _tried(mutant, baseline.tests_of(mutant, killed), options.work)
        outcomes[outcome.number] = outcome
        results.write_text(json.dumps([asdict(each) for each in outcomes.values()], indent=1, ensure_ascii=False))
    return sorted(outcomes.values(), key=lambda outcome: outcome.number)


def _copied(work: Path) -> Path:
    """Copy the library and its tests, so that both can be edited meanwhile; answer where the library is."""
    for name in ("src", "tests"):
        shutil.rmtree(work / name, ignore_errors=True)
        shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", work)
    compileall.compile_dir(work / "src", quiet=1)
    return work / "src"


def _baseline(target: Path, tests: Sequence[str], work: Path) -> Baseline:
    """Run the tests without a change."""
    kept = work / "baseline.json"

    def run() -> int:
        watch = _Watch(coverage.Coverage(data_file=None, include=[str(target)], config_file=False))
        with watch.cov.collect():
            code = pytest.main([*ARGUMENTS, *tests], plugins=[watch])
        seconds = {test: took for test, took in watch.seconds.items() if took < SLOWEST_SECONDS}
        kept.write_text(
            json.dumps({"seconds": seconds, "by_line": watch.cov.get_data().contexts_by_lineno(str(target))})
        )
        return int(code)

    if (code := _forked(run, work)) != 0:
        raise SystemExit(f"the tests fail without a change ({code}); see {work / 'log'}")
    return Baseline(**json.loads(kept.read_text()), code=target.read_text("utf-8").splitlines())


def _tried(mutant: Mutant, tests: Mapping[str, float], work: Path) -> Outcome:
    """Run the tests on a mutant until one of them fails."""
    by = work / "by"
    by.write_text("the import")

    def run() -> int:
        sys.dont_write_bytecode = True
        files = dict.fromkeys(test.split("::")[0] for test in tests)
        return int(pytest.main([*ARGUMENTS, *files], plugins=[_Chosen(tests, by)]))

    code = _forked(run, work)
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise SystemExit(f"no test was found for {mutant.label}")
    state = {0: "survived", -signal.SIGALRM: "timeout"}.get(code, "killed")
    return Outcome(mutant.number, mutant.lines[0], mutant.label, state, "" if state == "survived" else by.read_text())


def _forked(run: Callable[[], int], work: Path) -> int:
    """Run in a fork that sees the copies; answer how it ended."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setsid()
            log = os.open(work / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(work)
            sys.path.insert(0, str(work / "src"))
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            os.environ["PYTHONPATH"] = str(work / "src")
            hypothesis.settings.register_profile("mutation", derandomize=True, max_examples=20, database=None)
            hypothesis.settings.load_profile("mutation")
            code = run()
        except BaseException:  # noqa: BLE001 (a fork must not go on as its parent)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what its tests have left running
    return os.waitstatus_to_exitcode(status)


class _Watch:
    """A plugin that notes how long each test takes, and which lines it runs."""

    def __init__(self, cov: coverage.Coverage) -> None:
        self.cov = cov
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note the lines that run from now on under this test."""
        self.cov.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add up the time of setup, call and teardown."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


class _Chosen:
    """A plugin that runs some tests, in their order, and ends the process when one hangs."""

    def __init__(self, tests: Mapping[str, float], by: Path) -> None:
        self._tests = tests
        self._by = by

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Choose and sort."""
        found = {item.nodeid: item for item in items}
        items[:] = [found[test] for test in self._tests if test in found]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Say which test it is, and wait for it so long at the most: nothing handles the alarm."""
        self._by.write_text(nodeid)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS + PATIENCE * self._tests[nodeid])


if __name__ == "__main__":
    sys.exit(main())
