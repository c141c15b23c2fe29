"""Linear probes: whether labels can be told from a few numbers, on questions that the probe did not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emorg.rating.placement import Place

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
FOLDS = 5
SHUFFLES = DRAWS = 19  # fewer could not give p ≤ .05
FILE = "probe.json"
ALL, NONE = "all", "none"  # of the adapters
RIDGE = 1.0  # L2 penalty on standardised features


@dataclass(frozen=True)
class Probe:
    """How well misaligned answers are told from aligned ones; AUROC as a share, .5 by chance.

    `shuffled` is the largest of 19 AUROCs with the labels of half of the questions exchanged; `random` the median and
    the largest of 19 that read as many random numbers of the same inputs, and `p` the share of these, with one added,
    that came as far. `alone` is the AUROC of each feature by itself, above .5 where it is larger in misaligned answers;
    `telling` are those that are farther from .5 than any feature of any shuffle, and any random one in its place.
    """

    answers: int
    auroc: float
    shuffled: float
    random: tuple[float, float]
    p: float
    alone: dict[str, float]
    telling: list[str]


@dataclass(frozen=True)
class Part:
    """Mean margins in nats a token with some of the adapters; None where there is no pair of that placement.

    `name` is `all`, `none`, a module's, or `without` one.
    """

    name: str
    inside: float | None
    out: float | None


@dataclass(frozen=True)
class Probed:
    """`parts` are what adapters do, `probes` what is read from them, by placement."""

    run: str
    parts: list[Part]
    probes: dict[Place, Probe]


def probe_of(features: Array, labels: Labels, questions: NDArray[np.str_], names: Sequence[str], seed: int) -> Probe:
    """Fit by logistic regression in five folds over questions; labels are 0 or 1 [answers].

    `features` [answers, 1 + draws, n]: the probe's own, and as many random ones for each draw.
    """
    rng = np.random.default_rng(seed)
    folds, own = _folds(questions, rng), features[:, 0]
    reached = _auroc_over(own, labels, folds)
    draws = [_auroc_over(features[:, k], labels, folds) for k in range(1, features.shape[1])]
    shuffles = [_exchanged(labels, questions, rng) for _ in range(SHUFFLES)]
    by_itself = [auroc(column, labels) for column in own.T]
    by_shuffle = max(abs(auroc(column, one) - 0.5) for one in shuffles for column in own.T)
    in_place = [max(abs(auroc(features[:, k, n], labels) - 0.5) for k in range(1, features.shape[1]))
                for n in range(len(names))]  # fmt: skip
    return Probe(
        answers=len(labels),
        auroc=reached,
        shuffled=max(_auroc_over(own, one, folds) for one in shuffles),
        random=(float(np.median(draws)), max(draws)),
        p=(1 + sum(one >= reached for one in draws)) / (1 + len(draws)),
        alone=dict(zip(names, by_itself, strict=True)),
        telling=[
            name
            for name, value, bar in zip(names, by_itself, in_place, strict=True)
            if abs(value - 0.5) > max(by_shuffle, bar)
        ],
    )


def auroc(scores: Array, labels: Labels) -> float:
    """The chance that a positive's score is above a negative's, ties counting half."""
    from scipy.stats import rankdata

    positive = labels == 1
    count = int(positive.sum()), int((~positive).sum())
    if 0 in count:
        return 0.5
    return float((rankdata(scores)[positive].sum() - count[0] * (count[0] + 1) / 2) / (count[0] * count[1]))


def _folds(questions: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Of each answer its question's fold."""
    once = np.array(sorted(set(questions)))
    fold = dict(zip(rng.permutation(once), np.arange(len(once)) % FOLDS, strict=True))
    return np.array([fold[question] for question in questions])


def _exchanged(labels: Labels, questions: NDArray[np.str_], rng: np.random.Generator) -> Labels:
    """The labels with those of each question turned round or left, at random, half of the questions each."""
    once = np.array(sorted(set(questions)))
    turned = set(rng.permutation(once)[: len(once) // 2])
    return np.array([1 - label if q in turned else label for label, q in zip(labels, questions, strict=True)])


def _auroc_over(features: Array, labels: Labels, folds: NDArray[np.int64]) -> float:
    """The mean over folds of the AUROC on a fold of a regression on the others: scores of two fits do not compare."""
    return float(np.mean([
        auroc(_scores(features[folds != k], labels[folds != k], features[folds == k]), labels[folds == k])
        for k in range(FOLDS)
    ]))  # fmt: skip


def _scores(features: Array, labels: Labels, others: Array) -> Array:
    """Log-odds of `others` by a logistic regression with an L2 penalty, whose features are standardised on its own."""
    from scipy.optimize import minimize
    from scipy.special import expit

    mean, spread = features.mean(0), features.std(0)
    spread[spread < 1e-12] = 1.0
    x = np.column_stack([(features - mean) / spread, np.ones(len(features))])
    sign = 2.0 * labels - 1

    def loss(w: Array) -> tuple[float, Array]:
        margin = sign * (x @ w)
        gradient = -x.T @ (sign * expit(-margin))
        gradient[:-1] += RIDGE * w[:-1]
        return float(np.logaddexp(0, -margin).sum() + RIDGE * (w[:-1] ** 2).sum() / 2), gradient

    w = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
    scores: Array = np.column_stack([(others - mean) / spread, np.ones(len(others))]) @ w
    return scores
