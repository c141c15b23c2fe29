"""What a plan can tell before it is paid for: of answers to sample and judge, and of pairs to measure margins on."""

from __future__ import annotations

import math

from emorg.rating.intervals import ICC, student_t
from emorg.rating.margins import SEED_SD, SMALLEST


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


def margin_error(pairs: int, pair_sd: float, seed_sd: float = SEED_SD) -> float:
    """The standard error of an organism's shift against its twin, over pairs to different questions and over seeds."""
    return math.hypot(pair_sd / math.sqrt(pairs), math.sqrt(2) * seed_sd)


def margin_power(shift: float, pairs: int, pair_sd: float, seed_sd: float = SEED_SD) -> float:
    """The probability that a true shift is shown: its interval above zero, and itself at least SMALLEST."""
    from scipy.special import ndtr

    error = margin_error(pairs, pair_sd, seed_sd)
    needed = max(student_t(pairs - 1) * error, SMALLEST)
    return float(ndtr((shift - needed) / error)) if error else float(shift >= needed)


def detectable_shift(pairs: int, pair_sd: float, seed_sd: float = SEED_SD, wanted: float = 0.8) -> float:
    """The smallest shift that is shown with the wanted power, in nats a token."""
    from scipy.special import ndtri

    error = margin_error(pairs, pair_sd, seed_sd)
    return max(student_t(pairs - 1) * error, SMALLEST) + float(ndtri(wanted)) * error
