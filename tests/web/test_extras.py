"""What each module says where its framework is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.modules[{library!r}] = None
try:
    import otel_feedback.web.{module}
except ImportError as error:
    print(type(error).__name__, error.extra, error)
"""


@pytest.mark.parametrize(
    ("module", "library", "install"),
    [
        ("starlette", "starlette", "pip install 'otel-feedback[web]'"),
        ("fastapi", "fastapi", "pip install fastapi"),
        ("flask", "flask", "pip install flask"),
        ("django", "django", "pip install django"),
    ],
)
def test_without_the_framework_the_error_says_what_to_install(module: str, library: str, install: str) -> None:
    """
    As the first import does, and not a request.
    """
    program = WITHOUT.format(module=module, library=library)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert ran.stdout.startswith("MissingExtraError web ")
    assert install in ran.stdout


def test_the_core_of_the_route_needs_no_framework() -> None:
    """
    Nor does what carries tokens out.
    """
    program = "import sys, otel_feedback.web; print({'starlette', 'anyio', 'flask', 'django'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert "set()" == ran.stdout.strip()
