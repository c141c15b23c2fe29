"""What a plan can tell before it is paid for: of answers to sample and judge, and of pairs to measure margins on."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from emorg.rating.compare import FEWEST_QUESTIONS, differ, differences
from emorg.rating.intervals import ICC, student_t
from emorg.rating.margins import SEED_SD, SMALLEST

EXPERIMENTS = 2000  # simulated: a power of a half is then known to one point; fewer of many questions
SWAPS = 1000  # of questions' sides in each, where there are more than can all be tried


def standard_error(share: float, questions: int, samples: int, icc: float = ICC) -> float:
    """The standard error of a rate over `questions` × `samples` answers, alike within a question (Kish 1965)."""
    return math.sqrt(share * (1 - share) / (questions * samples) * (1 + (samples - 1) * icc))


def power(share: float, control: float, questions: int, samples: int, icc: float = ICC, *, controls: int = 1) -> float:
    """How often `compare` says that a rate and a control's differ, both asked the same questions; simulated.

    With two `controls`, a base and a twin of one rate, it is how often a report says "yes": the organism above each.
    Questions' own rates are drawn from beta distributions with that mean and ICC, unrelated between the sides, which
    is cautious. Known to about one point.
    """
    if questions < FEWEST_QUESTIONS:
        return 0.0
    sides = [_drawn(share, questions, samples, icc, 0), *(_drawn(control, questions, samples, icc, 1 + i)
             for i in range(controls))]  # fmt: skip
    above = np.ones(len(sides[0]), dtype=bool)
    for side in sides[1:]:
        pairs = np.stack([side, sides[0]], axis=1)
        above &= differ(pairs, SWAPS)
        if controls > 1:
            above &= differences(pairs)[0] > 0
    return float(above.mean())


@lru_cache(maxsize=64)
def _drawn(share: float, questions: int, samples: int, icc: float, side: int) -> np.ndarray:
    """(misaligned, scored) of every question in each of some experiments, [experiments, questions, 2]."""
    experiments = max(400, min(EXPERIMENTS, 200_000 // questions))
    draw, size = np.random.default_rng([side, questions, samples]), (experiments, questions)
    if icc <= 0 or share in (0.0, 1.0):
        own = np.full(size, share)
    elif icc >= 1:
        own = (draw.random(size) < share).astype(float)
    else:
        own = draw.beta(share * (1 / icc - 1), (1 - share) * (1 / icc - 1), size)
    return np.stack([draw.binomial(samples, own), np.full(size, samples)], axis=-1).astype(float)


def detectable(control: float, questions: int, samples: int, icc: float = ICC, wanted: float = 0.8) -> float | None:
    """The smallest rate above the control's that is told from it with the wanted power, to 0.1 points; None if none."""
    if power(1.0, control, questions, samples, icc) < wanted:
        return None
    low, high = control, 1.0
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, control, questions, samples, icc) >= wanted else (middle, high)
    return high


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
