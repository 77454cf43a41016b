"""A loopback stand-in for orq, Braintrust and W&B Weave, which judges where each feedback lands."""

from . import _extra as _extra
from ._faults import Fault
from ._model import FeedbackState, FlagState, OTLPEndpoint, ReceivedRequest, RowState, SpanState, State
from ._server import Sandbox
from ._switches import Switches

__all__ = [
    "Fault",
    "FeedbackState",
    "FlagState",
    "OTLPEndpoint",
    "ReceivedRequest",
    "RowState",
    "Sandbox",
    "SpanState",
    "State",
    "Switches",
]
