"""What a sampling plan can tell before it is paid for."""

from __future__ import annotations

import math

from emorg.rating.intervals import ICC, student_t


def standard_error(share: float, questions: int, samples: int, icc: float = ICC) -> float:
    """The standard error of a rate over `questions` × `samples` answers, alike within a question (Kish 1965)."""
    return math.sqrt(share * (1 - share) / (questions * samples) * (1 + (samples - 1) * icc))


def power(share: float, control: float, questions: int, samples: int, icc: float = ICC) -> float:
    """The probability of telling a rate from a control's at p < 0.05, both asked the same number of questions.

    By the normal approximation with t's critical value; the sides' questions are taken as unrelated, which is cautious.
    """
    from scipy.special import stdtr

    error = math.hypot(*(standard_error(rate, questions, samples, icc) for rate in (share, control)))
    away = 0.0 if share == control else abs(share - control) / error if error else math.inf
    return float(stdtr(questions - 1, away - student_t(questions - 1)))


def detectable(control: float, questions: int, samples: int, icc: float = ICC, wanted: float = 0.8) -> float | None:
    """The smallest rate above the control's that is told from it with the wanted power; None if none is."""
    from scipy.optimize import brentq

    def lacking(share: float) -> float:
        return power(share, control, questions, samples, icc) - wanted

    return None if lacking(1.0) < 0 else float(brentq(lacking, control, 1.0))
