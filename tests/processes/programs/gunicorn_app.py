"""A WSGI application; `FORK_CONFIGURED=preload` configures it as it is loaded, else the environment does at first use.

Every request is a captured call that is judged by its handle and by its key.
"""

from __future__ import annotations

import json
import os

import fork_says
from fork_says import answer, judge, judge_key

import otel_feedback as of

fork_says.set_up()
if os.environ["FORK_CONFIGURED"] == "preload":
    of.configure()
    judge(answer("loaded"), "loaded")


def application(environ, start_response):
    """Judge an answer, and say which process did."""
    number = environ["QUERY_STRING"]
    handle = answer(f"request-{number}")
    judge(handle, f"request-{number}")
    judge_key(f"request-{number}", f"request-{number}-key")
    start_response("200 OK", [("content-type", "application/json")])
    return [json.dumps({"pid": os.getpid()}).encode()]
