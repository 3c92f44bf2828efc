"""What was found about an answer: how bad, the figure, what it means, what to do."""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
"""``error``: do not use these numbers; ``warning``: use them with care; ``note``: good to know."""


class Finding(NamedTuple):
    """Something that a user must know before trusting an answer.

    ``name`` is a short stable word (``"r_hat"``), ``figure`` the number behind it, NaN where there
    is none; ``meaning`` says what was found and what it means, ``remedy`` what to do next.
    """

    name: str
    severity: Severity
    figure: float
    meaning: str
    remedy: str = ""

    @property
    def text(self) -> str:
        """Meaning and remedy in one sentence."""
        return f"{self.meaning}; {self.remedy}" if self.remedy else self.meaning


def interrupted(draws: int) -> Finding:
    """That a run was stopped by hand, and what was kept of it."""
    return Finding(
        "interrupted",
        "warning",
        draws,
        f"interrupted: kept the {draws} draws per chain that were finished",
    )


def unsettled(limit: str, steps: int, what: str, remedy: str) -> Finding:
    """That an iteration ended at its limit of steps before it had settled."""
    meaning = f"{limit}: stopped after {steps} steps before {what} settled"
    return Finding(limit, "warning", steps, meaning, remedy)


def worse_restarts(count: int, of: int, nats: float, what: str) -> Finding:
    """That restarts ended at different heights."""
    return Finding(
        "restarts",
        "note",
        nats,
        f"{count} of {of} restarts ended at a lower {what} (by up to {nats:.3g} nats); the best is "
        "returned",
        "more restarts may find a better one",
    )


def fell(what: str, nats: float, steps: str) -> Finding:
    """That what exact steps raise has fallen."""
    return Finding(
        "fell",
        "error",
        nats,
        f"the {what} fell, which exact steps cannot do",
        f"{steps} of the model do not belong to its program",
    )
