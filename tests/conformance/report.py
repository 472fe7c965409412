"""The scores of several proxies as one page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tests.conformance.case import Case


class Outcome(Enum):
    """Of one case with one proxy; the value is the table's cell."""

    PASSED = "✓"
    FAILED = "✗"
    NOT_ASKED = "–"


@dataclass(frozen=True)
class Score:
    """One proxy's outcomes by the cases' names; `wrong` says what was wrong."""

    name: str
    version: str
    outcomes: dict[str, Outcome]
    wrong: dict[str, str]

    def count(self, cases: Sequence[Case], level: str, prefix: str = "") -> tuple[int, int]:
        """Passed, and asked."""
        found = [
            self.outcomes[case.id]
            for case in cases
            if case.level == level and case.id.startswith(prefix) and case.id in self.outcomes
        ]
        asked = [outcome for outcome in found if outcome is not Outcome.NOT_ASKED]
        return sum(outcome is Outcome.PASSED for outcome in asked), len(asked)

    def summary(self, cases: Sequence[Case]) -> str:
        """One line."""
        must, should = self.count(cases, "MUST"), self.count(cases, "SHOULD")
        return f"{self.name} {self.version}: MUST {must[0]}/{must[1]}, SHOULD {should[0]}/{should[1]}"


_INTRODUCTION = """\
# Conformance

Each row is one requirement, provoked with raw bytes by `tests/conformance/` from one side or the other of a
proxy, and judged by what is then on the wire. `make test` runs all of them against holdfast;
`make conformance-peers` runs them against every proxy that is installed and writes this page.

A case passes when the requirement holds, whichever of the allowed ways is taken: a malformed request
may be refused or made harmless; an answer may be an error or a repaired one. **MUST** and **SHOULD**
are the words of the clause. Where a clause only names a danger (RFC 9110 section 17, RFC 9112 section
11, RFC 3986 section 7), the case is a SHOULD. Often several cases are spellings of one trick, so the
counts weigh what attackers try, not how much of a standard is implemented. The cases were written along
with holdfast, and what they found in it was repaired: that it passes them all says that they are held,
not that there are no others.

Every proxy is configured as its own documentation advises for an edge (see
[proxies.py](../tests/conformance/proxies.py)): timeouts of about a second, forwarding fields set rather
than appended, paths normalised where there is a switch for it, `Via` where it can be sent (holdfast
sends it only when `via` is set, as it is here). A row that a proxy misses may have a setting that was
not found. Rows with `–` are about a feature that only one proxy has.
"""


def page(cases: Sequence[Case], scores: Sequence[Score]) -> str:
    """The whole page."""
    parts = [_INTRODUCTION, "## Score\n", _totals(cases, scores), "## Cases\n", _rows(cases, scores)]
    return "\n".join(parts)


def _totals(cases: Sequence[Case], scores: Sequence[Score]) -> str:
    groups = list(dict.fromkeys(case.id.partition("/")[0] for case in cases))
    lines = [_row(["", *(f"{score.name} {score.version}".strip() for score in scores)])]
    lines.append(_row(["---"] * (len(scores) + 1)))
    for level in ("MUST", "SHOULD"):
        counts = [score.count(cases, level) for score in scores]
        lines.append(_row([f"**{level}**", *(f"**{passed}** of {asked}" for passed, asked in counts)]))
    for group in groups:
        for level in ("MUST", "SHOULD"):
            counts = [score.count(cases, level, group + "/") for score in scores]
            if any(asked for _, asked in counts):
                lines.append(
                    _row([f"{group}, {level}", *(f"{passed} of {asked}" for passed, asked in counts)])
                )
    return "\n".join(lines) + "\n"


def _rows(cases: Sequence[Case], scores: Sequence[Score]) -> str:
    lines = [_row(["case", "clause", "", "requirement", *(score.name for score in scores)])]
    lines.append(_row(["---"] * (4 + len(scores))))
    for case in cases:
        cells = [score.outcomes[case.id].value for score in scores]
        lines.append(_row([case.id, case.clause, case.level, case.requirement, *cells]))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
