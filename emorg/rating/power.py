"""What a sampling plan can tell before it is paid for."""

from __future__ import annotations

import math

from emorg.rating.intervals import ICC, student_t


def spread(share: float, questions: int, samples: int, likeness: float = ICC) -> float:
    """The standard error of a rate over `questions` × `samples` answers, alike within a question (Kish 1965)."""
    return math.sqrt(share * (1 - share) / (questions * samples) * (1 + (samples - 1) * likeness))


def power(share: float, control: float, questions: int, samples: int, likeness: float = ICC) -> float:
    """The probability of telling a rate from a control's at p < 0.05, both asked the same number of questions.

    By the normal approximation with t's critical value; the sides' questions are taken as unrelated, which is cautious.
    """
    from scipy.special import stdtr

    error = math.hypot(*(spread(each, questions, samples, likeness) for each in (share, control)))
    away = abs(share - control) / error if error else math.inf
    return float(stdtr(questions - 1, away - student_t(questions - 1)))


def detectable(
    control: float, questions: int, samples: int, likeness: float = ICC, wanted: float = 0.8
) -> float | None:
    """The smallest rate above the control's that is told from it with the wanted power; None if none is."""
    if power(1.0, control, questions, samples, likeness) < wanted:
        return None
    low, high = control, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, control, questions, samples, likeness) >= wanted else (middle, high)
    return high
