"""The house of STYLE, section 1: who may import whom, and what only one module may touch.

Imports under `TYPE_CHECKING` count as well: a type that is only known upstairs is knowledge of upstairs all the same.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import otel_feedback

SOURCE = Path(otel_feedback.__file__).parent

# The layers of STYLE, section 1, by module; `*` stands for the other modules of a package. A new room needs a row
# here and a reason there.
LAYERS = {
    "exceptions": 0,
    "environment_variables": 0,
    "_time": 0,
    "_dialects": 0,
    "_streams": 0,  # how streams are stepped through: knows nothing of ours
    "_handle": 1,
    "_record": 2,
    "_declare": 3,  # what an application takes: above what a judgement is, below where it goes
    "_tokens": 2,
    "_metrics": 2,
    "stores": 3,
    "exporters": 3,
    "_active": 3,
    "stores.*": 4,
    # Floors below the stores: the tables, what is saved of them, then the life of a file and the statements.
    "stores._sqlite_schema": 3.3,
    "stores._forks": 3.3,
    "stores._sqlite_salvage": 3.4,
    "stores._sqlite_rescue": 3.5,
    "stores._sqlite_merge": 3.5,
    "stores._sqlite_file": 3.6,
    "stores._sql": 3.6,
    "exporters._checks": 3.5,  # what all of the exporters are told, with HTTP or without
    "exporters._http": 4,
    "exporters._braintrust_rows": 4,
    "exporters._weave_rules": 4,
    "_retry": 4,
    "exporters.*": 5,
    "_correlate": 5,
    "_deliver": 5,
    "_route": 5,  # decides where judgements go, as _deliver decides when: above the ports, below the provider
    "_capture": 6,
    "processor": 6,
    "_settings": 6,
    "provider": 7,
    "instrumentor": 8,
    "testing": 8,
    "_api": 8,
    "sandbox": 9,
    "sandbox.*": 9,
    "web": 9,
    "web.*": 9,
    "cli": 9,
    "cli.*": 9,
    "": 10,
    "__main__": 10,  # `python -m otel_feedback` is the command, as the package is the API
}
# Behind an extra each: their modules import each other as they like.
ROOMS = ("sandbox", "web", "cli")
# What the table has no arrow for and the house has: a module, and what it may import besides.
DOORS = {
    # Commands that run the sandbox, which is why its extra is asked for.
    "cli._stage": {"sandbox"},
    "cli._demo": {"sandbox"},
    # The two programs that the demo starts: applications, which use the public API as any other does.
    "cli._demo_chat": {""},
    "cli._demo_judge": {""},
}

# What tells the time, draws chance or reads the environment, and the one module that may.
TIME = {
    *(
        f"time.{name}"
        for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep")
    ),
    *(f"datetime.datetime.{name}" for name in ("now", "utcnow", "today")),
    "datetime.date.today",
    "asyncio.sleep",
}
# What waits in an event loop, where cancelling the task interrupts it as an event does a thread.
AWAITS = {"provider": {"asyncio.sleep"}}
CHANCE_TYPES = {"random.Random", "random.SystemRandom"}
CHANCE_MODULES = ("random.", "secrets.")
CHANCE = {"uuid.uuid1", "uuid.uuid4", "os.urandom"}
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv"}
# The sandbox stands in for another machine, whose clock and chance are its own where nobody gives them.
OWN_TIME = {"_time", "sandbox._server"}
# The demo hands its environment on to the processes that it starts, and one of them reads where spans go.
OWN_ENVIRONMENT = {"environment_variables", "cli._demo", "cli._demo_chat"}

# What the command starts, where the extra that it needs is known to be wanted.
STARTED_LATE = {
    "cli._main": {"otel_feedback.cli._app.app"},
    "cli._app": {"otel_feedback.cli._stage.run_demo", "otel_feedback.cli._stage.run_sandbox"},
}

# What only some users have installed; it may be imported where it is used.
OPTIONAL = (
    "typer",
    "rich",
    "starlette",
    "uvicorn",
    "jsonschema",
    "psycopg",
    "opentelemetry.instrumentation",
    "opentelemetry.exporter",
)


def module_of(path: Path, source: Path = SOURCE) -> str:
    """Name a file's module below the package; the package itself is ''."""
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}
PACKAGES = {module_of(path) for path in MODULES.values() if path.name == "__init__.py"}


def layer_of(module: str) -> int | None:
    """Find a module's layer."""
    return LAYERS.get(module, LAYERS.get(f"{module.rpartition('.')[0]}.*") if "." in module else None)


def imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """List what a module imports, relative imports resolved: the line, and the full dotted name of each thing."""
    home = ["otel_feedback", *module.split(".")] if module else ["otel_feedback"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_package
            base = home[: len(home) - up] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def own_module(name: str, modules: frozenset[str]) -> str | None:
    """Find which module of ours a dotted name stands in; a foreign one is none."""
    if name != "otel_feedback" and not name.startswith("otel_feedback."):
        return None
    inner = name.removeprefix("otel_feedback").removeprefix(".")
    while inner and inner not in modules:
        inner = inner.rpartition(".")[0]
    return inner


def wrong_imports(text: str, module: str, *, is_package: bool = False) -> list[str]:
    """Say which imports of a module go upwards or sideways."""
    layer = layer_of(module)
    if layer is None:
        return [f"{module} has no row in the table of layers"]
    room = module.partition(".")[0]
    found = []
    for line, name in imports(ast.parse(text), module, is_package=is_package):
        other = own_module(name, frozenset(MODULES))
        if other is None or (room in ROOMS and other.partition(".")[0] == room) or other in DOORS.get(module, ()):
            continue
        other_layer = layer_of(other)
        if other_layer is None or other_layer >= layer:
            found.append(f"{module}:{line} (layer {layer}) imports {other or 'the package'} (layer {other_layer})")
    return found


def inner_imports(text: str) -> list[str]:
    """Say which imports stand inside of a function."""
    functions = (
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    return sorted(
        {
            name
            for function in functions
            for _, name in imports(function, "", is_package=True)
            if not name.startswith(tuple(f"{optional}." for optional in OPTIONAL)) and name not in OPTIONAL
        }
    )


def uses(text: str) -> set[str]:
    """List the dotted names that a module uses, by what they were imported as."""
    tree = ast.parse(text)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                known[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)):
            first, _, rest = ast.unparse(node).partition(".")
            if first in known:
                found.add(f"{known[first]}.{rest}" if rest else known[first])
    return found


def hidden_inputs(text: str, module: str) -> list[str]:
    """Say which uses of a clock, of chance or of the environment a module has no right to."""
    used = uses(text)
    wrong = set()
    if module not in OWN_TIME:
        wrong |= used & TIME - AWAITS.get(module, set())
    if module not in OWN_ENVIRONMENT:
        wrong |= used & ENVIRONMENT
    chance = {name for name in used if name.startswith(CHANCE_MODULES) and name not in CHANCE_TYPES}
    return sorted(wrong | (used & CHANCE) | {name for name in chance if not name.startswith(tuple(CHANCE_TYPES))})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_layers(module: str) -> None:
    """
    Nothing knows what is above or beside it.
    """
    path = MODULES[module]

    assert [] == wrong_imports(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")


@pytest.mark.parametrize("module", MODULES)
def test_no_import_stands_inside_a_function(module: str) -> None:
    """
    But for an optional dependency, and for what the command starts, which needs one.
    """
    found = inner_imports(MODULES[module].read_text(encoding="utf-8"))

    assert sorted(STARTED_LATE.get(module, set())) == found


@pytest.mark.parametrize("module", MODULES)
def test_time_chance_and_the_environment_are_arguments(module: str) -> None:
    """
    Only the clock tells the time, only the table of variables reads the environment, and chance has a seed.
    """
    assert [] == hidden_inputs(MODULES[module].read_text(encoding="utf-8"), module)


class TestTheChecker:
    @pytest.mark.parametrize(
        ("module", "line"),
        [
            ("_handle", "from otel_feedback._record import Part"),
            ("_handle", "import otel_feedback._record"),
            ("_handle", "import otel_feedback"),
            ("_handle", "from otel_feedback import FeedbackHandle"),
            ("_handle", "from otel_feedback import _record"),
            ("_handle", "from . import _record"),
            ("_handle", "from ._record import Part"),
            ("_handle", "from .exporters.orq import OrqExporter"),
            ("_handle", "if TYPE_CHECKING:\n    from otel_feedback._record import Part"),
            ("_handle", "def f():\n    from otel_feedback._record import Part"),
            ("exceptions", "from otel_feedback import _time"),
            ("stores.memory", "from otel_feedback.stores.sqlite import SQLiteStore"),
            ("stores.memory", "from . import sqlite"),
            ("stores.memory", "from .sqlite import SQLiteStore"),
            ("stores.memory", "from ..exporters import _http"),
            ("exporters.orq", "from otel_feedback.exporters.weave import WeaveExporter"),
            ("exporters._http", "from otel_feedback.exporters.orq import OrqExporter"),
            ("_deliver", "from otel_feedback.stores.sqlite import SQLiteStore\nfrom otel_feedback import provider"),
            ("stores._sqlite_file", "from otel_feedback.stores._sql import SQLStore"),
            ("_deliver", "from otel_feedback._correlate import Correlator"),
            ("_retry", "from otel_feedback.exporters import _http"),
            ("exporters._checks", "from otel_feedback.exporters._http import Exchange"),
            ("provider", "from otel_feedback._api import configure"),
            ("sandbox._app", "from otel_feedback.cli import main"),
            ("sandbox._app", "from .._api import configure\nfrom ..cli import app"),
            ("cli._main", "from otel_feedback.sandbox import Sandbox"),
            ("cli._app", "import otel_feedback"),
            ("nowhere", "import json"),
            ("attic.box", "import json"),
        ],
    )
    def test_it_finds_an_import_that_goes_up_or_sideways(self, module: str, line: str) -> None:
        """
        However it is written, and wherever it stands, a seeded violation is one finding.
        """
        assert 1 == len(wrong_imports(line, module))

    @pytest.mark.parametrize(
        ("module", "line"),
        [
            ("_handle", "import json\nfrom opentelemetry.trace import Span"),
            ("_handle", "from otel_feedback import _dialects"),
            ("_handle", "from otel_feedback.exceptions import FeedbackError"),
            ("_handle", "from . import exceptions"),
            ("_handle", "from otel_feedbackers import anything"),
            ("stores.memory", "from otel_feedback.stores import Lease"),
            ("stores.memory", "from . import Lease"),
            ("exporters.orq", "from otel_feedback.exporters._http import Exchange"),
            ("sandbox._app", "from otel_feedback.sandbox._body import read_json\nfrom ._body import read_json"),
            ("sandbox._app", "from otel_feedback.testing import FakeClock"),
            ("", "from otel_feedback._api import configure"),
        ],
    )
    def test_it_lets_an_import_that_goes_down_pass(self, module: str, line: str) -> None:
        """
        What the table allows, and what is not ours, is no finding.
        """
        assert [] == wrong_imports(line, module)

    @pytest.mark.parametrize("module", ["stores", "sandbox"])
    def test_it_reads_the_relative_imports_of_a_package(self, module: str) -> None:
        """
        One dot in an `__init__.py` is the package itself.
        """
        line = "from . import memory" if module == "stores" else "from ._app import build"

        assert (1 if module == "stores" else 0) == len(wrong_imports(line, module, is_package=True))

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("def f():\n    import json", ["json"]),
            ("async def f():\n    from json import loads", ["json.loads"]),
            ("class A:\n    def f(self):\n        if True:\n            import json", ["json"]),
            ("def f():\n    def g():\n        import json", ["json"]),
            ("def f():\n    import typer", []),
            ("def f():\n    from rich.table import Table", []),
            ("import json\nif True:\n    import re\nclass A:\n    import os", []),
        ],
    )
    def test_it_finds_an_import_inside_of_a_function(self, text: str, found: Any) -> None:
        """
        At any depth; a class body or a condition is none.
        """
        assert found == inner_imports(text)

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("import time\ntime.time()", ["time.time"]),
            ("import time as t\nt.time_ns()", ["time.time_ns"]),
            ("from time import sleep\nsleep(1)", ["time.sleep"]),
            ("from time import monotonic as now\ndef f(clock=now): ...", ["time.monotonic"]),
            ("import datetime\ndatetime.datetime.now()", ["datetime.datetime.now"]),
            ("from datetime import datetime\ndatetime.now()", ["datetime.datetime.now"]),
            ("import random\nrandom.random()", ["random.random"]),
            ("from random import choice\nchoice([1])", ["random.choice"]),
            ("import random\nrandom.seed(1)", ["random.seed"]),
            ("import uuid\nuuid.uuid4()", ["uuid.uuid4"]),
            ("import secrets\nsecrets.token_hex()", ["secrets.token_hex"]),
            ("import os\nos.environ['A']", ["os.environ"]),
            ("import os\nos.getenv('A')", ["os.getenv"]),
            ("from os import environ\nenviron.get('A')", ["os.environ"]),
            ("import os.path\nos.environ", ["os.environ"]),
            ("from random import Random, SystemRandom\nRandom(1).random()\nSystemRandom()", []),
            ("import random\ndef f(rng: random.Random):\n    return rng.random()", []),
            ("import os\nos.getpid()", []),
            ("def f(time, random, os):\n    time.time()\n    random.random()\n    os.environ", []),
            ("from datetime import datetime\ndatetime.fromtimestamp(0)", []),
        ],
    )
    def test_it_finds_a_hidden_input(self, text: str, found: Any) -> None:
        """
        By whatever name it was imported, called or only passed on.
        """
        assert found == hidden_inputs(text, "_deliver")

    @pytest.mark.parametrize(
        ("module", "text"),
        [("_time", "import time\ntime.time_ns()"), ("environment_variables", "import os\nos.environ")],
    )
    def test_it_knows_who_may(self, module: str, text: str) -> None:
        """
        The clock reads the clock, and the table of variables the environment.
        """
        assert [] == hidden_inputs(text, module)

    def test_every_row_of_the_table_that_stands_for_one_module_is_a_module_or_is_still_to_come(self) -> None:
        """
        A row without a room is forgotten, unless the house's first sketch has it.
        """
        rows = {row for row in LAYERS if not row.endswith("*")}

        assert rows - set(MODULES) <= {"_tokens", "_metrics", "web"}

    def test_it_sees_the_whole_house(self) -> None:
        """
        No file of the package is left out.
        """
        assert len(MODULES) == len(list(SOURCE.rglob("*.py")))
        assert {"", "stores", "exporters"} <= PACKAGES
