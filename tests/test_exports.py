import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import otel_feedback

SOURCE = Path(otel_feedback.__file__)
HEAVY = ("httpx", "sqlite3", "pydantic", "pydantic_core", "wrapt", "opentelemetry", "opentelemetry.sdk", "asyncio")


def run(program: Any) -> Any:
    """Run a program in a fresh interpreter and read what it prints as JSON."""
    # Without coverage, which brings modules of its own to every process that it measures.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    return json.loads(ran.stdout)


def type_checking_block() -> Any:
    """Read the names that type checkers see, with the module that each is imported from."""
    (block,) = (
        node
        for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.asname or alias.name: node.module.removeprefix("otel_feedback.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }


# Names for types, which Python gives neither a name nor a place for a sentence.
ALIASES = ("Exchange", "Result")


class TestNames:
    def test_all_is_sorted_and_has_each_name_once(self) -> None:
        """
        The list of public names can be compared at a glance.
        """
        assert sorted(set(otel_feedback.__all__)) == list(otel_feedback.__all__)

    def test_the_table_of_homes_has_exactly_the_public_names(self) -> None:
        """
        What can be loaded and what is public is the same.
        """
        assert sorted([*otel_feedback.__all__, "FeedbackInstrumentor"]) == sorted(otel_feedback._HOME_OF)

    def test_every_name_has_one_home(self) -> None:
        """
        No name stands in two rows of the table, and each row is sorted.
        """
        rows = otel_feedback._HOMES.values()

        assert len(otel_feedback._HOME_OF) == sum(map(len, rows))
        assert [sorted(names) for names in rows] == [list(names) for names in rows]

    def test_type_checkers_see_what_is_loaded(self) -> None:
        """
        The imports for type checkers and the table name the same homes.
        """
        assert otel_feedback._HOME_OF == type_checking_block()

    def test_dir_lists_the_public_names(self) -> None:
        """
        Completion in a shell offers what there is and nothing private.
        """
        assert otel_feedback.__all__ == dir(otel_feedback)

    @pytest.mark.parametrize("name", otel_feedback.__all__)
    def test_a_name_is_loaded_from_its_home(self, name: str) -> None:
        """
        What the package answers is the object of the home module, and is not looked up again.
        """
        loaded = getattr(otel_feedback, name)

        assert loaded is getattr(importlib.import_module(f"otel_feedback.{otel_feedback._HOME_OF[name]}"), name)
        assert loaded is vars(otel_feedback)[name]

    @pytest.mark.parametrize("name", otel_feedback.__all__)
    def test_no_object_is_public_under_two_names(self, name: str) -> None:
        """
        Everything public has one name, which is its own.
        """
        loaded = getattr(otel_feedback, name)

        assert [name] == [other for other in otel_feedback.__all__ if getattr(otel_feedback, other) is loaded]
        assert name in ALIASES or name == getattr(loaded, "__name__", name)

    @pytest.mark.parametrize("name", otel_feedback.__all__)
    def test_everything_public_is_documented(self, name: str) -> None:
        """
        Each public object says in one sentence what it is for.
        """
        if name in ALIASES:
            return

        assert getattr(otel_feedback, name).__doc__

    @pytest.mark.parametrize("name", ["nonsense", "_nonsense", "record_feedbac", "client"])
    def test_an_unknown_name_is_an_attribute_error(self, name: str) -> None:
        """
        So `hasattr` works, and the message names module and attribute as Python's own does.
        """
        with pytest.raises(AttributeError, match=f"module 'otel_feedback' has no attribute '{name}'"):
            getattr(otel_feedback, name)

    def test_everything_can_be_imported_without_any_extra(self) -> None:
        """
        `from otel_feedback import *` needs no optional package.
        """
        program = "import sys; sys.modules['opentelemetry.instrumentation'] = None; from otel_feedback import *"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

        assert (0, "") == (done.returncode, done.stderr)

    def test_an_unknown_name_cannot_be_imported(self) -> None:
        """
        `from otel_feedback import …` says so too.
        """
        with pytest.raises(ImportError, match="cannot import name"):
            exec("from otel_feedback import nonsense")  # noqa: S102 (an import statement is the subject)


class TestLoading:
    def test_the_import_loads_nothing_that_costs(self) -> None:
        """
        `import otel_feedback` brings neither HTTP, nor a database, nor validation, nor OpenTelemetry.
        """
        program = f"import json, sys, otel_feedback; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"

        assert [] == run(program)

    def test_the_import_loads_no_module_of_ours(self) -> None:
        """
        Each is loaded with the first of its names that is used.
        """
        program = (
            "import json, sys, otel_feedback; "
            "print(json.dumps([m for m in sys.modules if m.startswith('otel_feedback.')]))"
        )

        assert [] == run(program)

    @pytest.mark.parametrize(
        ("name", "unwanted"),
        [
            ("FeedbackError", ["httpx", "sqlite3", "pydantic_core", "opentelemetry"]),
            ("FeedbackHandle", ["httpx", "sqlite3", "pydantic_core", "opentelemetry.sdk"]),
            ("Feedback", ["httpx", "sqlite3", "opentelemetry.sdk"]),
            ("Settings", ["httpx", "sqlite3", "pydantic_core", "opentelemetry"]),
            ("MemoryStore", ["httpx", "opentelemetry.sdk"]),
            ("record_feedback", ["httpx"]),
            ("ConsoleFeedbackExporter", ["httpx", "sqlite3", "opentelemetry.sdk"]),
            ("OTLPFeedbackExporter", ["httpx", "sqlite3"]),
        ],
    )
    def test_a_name_loads_only_what_it_needs(self, name: str, unwanted: Any) -> None:
        """
        A process that only records, or whose exporters need none, never loads an HTTP client.
        """
        program = (
            f"import json, sys, otel_feedback; otel_feedback.{name}; "
            f"print(json.dumps([m for m in {unwanted} if m in sys.modules]))"
        )

        assert [] == run(program)
