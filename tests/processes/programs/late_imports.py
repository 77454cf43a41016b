"""What is still imported once the pipeline is configured, as one judgement is recorded and delivered."""

from __future__ import annotations

import sys
import threading

import fork_says
from fork_says import answer, judge, words

import otel_feedback as of

is_watching = False
fork_says.set_up()


def note(event, arguments):
    """Say which thread looks for a module that is not loaded."""
    if is_watching and event == "import" and arguments[0] not in sys.modules:
        fork_says.say("imports", threading.current_thread().name, arguments[0])


sys.addaudithook(note)
of.configure()
before = set(sys.modules)
is_watching = True
handle = answer("call")
receipt = of.record_feedback(handle, "rating", True, correction=words("first", handle), comment="a comment")
fork_says.acknowledge("first", handle, receipt)
fork_says.say("delivered", "yes" if fork_says.wait_for(lambda: fork_says.is_delivered(receipt.id)) else "no")
judge(handle, "second")
is_watching = False
for name in sorted(set(sys.modules) - before):
    fork_says.say("loaded", name)
