"""What CI runs, one session each; `nox` alone runs all of them.

`bench` is for people, since a CI machine tells no time, and so is `mutation`, which takes an hour.
"""

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|venv"
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint."""
    session.install("ruff>=0.6")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types, with both checkers."""
    session.install("-e", ".[dev]")
    session.run("mypy")
    session.run("pyright")


@nox.session
def newcomer(session: nox.Session) -> None:
    """Run the README's first command in an environment that has nothing else."""
    session.install("pip")
    session.run("python", "-m", "pip", "install", "--quiet", ".[demo]")
    session.run("otel-feedback", "demo", "--exit")


@nox.session
def core_only(session: nox.Session) -> None:
    """Use the library without any extra."""
    session.install("pip")
    session.run("python", "-m", "pip", "install", "--quiet", ".")
    session.run("python", "examples/quickstart.py")


@nox.session
def chaos(session: nox.Session) -> None:
    """Run the long forms of the stress and fault tests; all of them take an hour or two, the arguments choose."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "chaos", *session.posargs)


@nox.session
def weave_server(session: nox.Session) -> None:
    """Let the code of Weave's own server take what our exporter sends: 0.53.12 is the last that has all of it."""
    session.install(
        "-e", ".[sandbox,cli]", "weave[trace_server]==0.53.12", "pytest>=8", "hypothesis>=6.100", "pyyaml>=6"
    )
    session.run(
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/exporters/test_weave_server.py",
        "tests/exporters/test_weave_contract.py",
    )


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the suite, with every branch covered."""
    session.install("-e", ".[test]")
    # A file of its own, as several of these may run at once.
    counted = {"COVERAGE_FILE": str(Path(session.virtualenv.location, "coverage").resolve())}
    session.run("pytest", "--cov", "--cov-report=term", "--cov-fail-under=100", *session.posargs, env=counted)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure what capture costs beside plain OpenTelemetry, and write the table into the benchmarks' README."""
    session.install("-e", ".")
    session.run("python", "tests/benchmarks/run.py", *session.posargs)


@nox.session(default=False)
def mutation(session: nox.Session) -> None:
    """Change the code that keeps and delivers judgements, and fail where no test notices; takes an hour."""
    session.install("-e", ".[dev]")
    session.run("python", "tests/mutation/run.py", *session.posargs)
