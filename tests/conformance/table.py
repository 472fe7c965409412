"""All cases, in the order of the table."""

from __future__ import annotations

from tests.conformance import answers, framing, heads, hops, lifetimes, targets, websocket
from tests.conformance.case import Case

CASES: list[Case] = [
    case for module in (framing, heads, targets, hops, answers, lifetimes, websocket) for case in module.CASES
]
