"""When a signal over training turns: at which step, how sure that is, and whether smooth growth would look alike.

Two kinds of signals: numbers (a norm, a margin, a rate), to which curves of growth are fitted, and vectors (a rank-1
adapter's), whose path may rotate (arXiv 2506.11613). Both have a null in which nothing sudden happens, fitted to the
same data, and p by parametric bootstrap from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DRAWS = 400  # of a bootstrap
FEWEST = 8  # points; fewer show no curve
SLOW = 0.25  # of the steps that are seen: growth that takes at least so long, from 12% to 88% of it, is smooth
SUDDEN_P = 0.05
STOPS = 161  # steps at which a sigmoid may have its half
MOVED = 0.002  # of a rank-1 vector between two checkpoints: where both movements are smaller, no angle is taken


@dataclass(frozen=True)
class Change:
    """Where a signal turns: the step at which half of its growth is done, or at which a path rotates most.

    `low` and `high` are a 95% interval of the step; `p` is how often smooth growth looks as sudden.
    """

    signal: str
    step: float
    low: float
    high: float
    p: float
    draws: Array
    """Steps in bootstraps of the fitted change, for lags."""

    @property
    def sudden(self) -> bool:
        """Whether smooth growth can be ruled out."""
        return self.p <= SUDDEN_P


def lag(first: Change, second: Change) -> tuple[float, float, float]:
    """How many steps after the first signal the second turns, with a 95% interval."""
    low, high = np.quantile(second.draws - first.draws, [0.025, 0.975])
    return second.step - first.step, float(low), float(high)


def _rng(signal: str, seed: int) -> np.random.Generator:
    """Noise of a signal's own: were it another's too, the draws of a lag would go up and down together."""
    return np.random.default_rng([seed, *signal.encode()])


# --- numbers ---------------------------------------------------------------------------------------------------------


class _Curves:
    """A family of shapes [shapes, steps], centred and of length one: each fit is then one product."""

    def __init__(self, shapes: Array, halfway: Array):
        centred = shapes - shapes.mean(1, keepdims=True)
        size = np.linalg.norm(centred, axis=1)
        kept = size > 1e-9
        self.shapes, self.halfway = centred[kept] / size[kept, None], halfway[kept]

    def fit(self, values: Array) -> tuple[Array, Array]:
        """Of each column of centred `values` [steps, n] the best shape's index and its residual sum of squares."""
        along = self.shapes @ values
        best = np.abs(along).argmax(0)
        return best, (values**2).sum(0) - along[best, np.arange(values.shape[1])] ** 2

    def curve(self, best: int, values: Array) -> Array:
        """The fitted curve to one column of centred values."""
        shape = self.shapes[best]
        fitted: Array = shape * (shape @ values)
        return fitted


@dataclass(frozen=True)
class _Growth:
    """Curves of growth on some steps: sigmoids of any width, and the smooth ones among them and beside them."""

    steps: Array

    @cached_property
    def _span(self) -> float:
        return float(self.steps[-1] - self.steps[0])

    def _sigmoids(self, widths: Array) -> tuple[Array, Array]:
        halfway = np.linspace(self.steps[0], self.steps[-1], STOPS)
        place, width = (grid.ravel() for grid in np.meshgrid(halfway, widths))
        shapes = 1 / (1 + np.exp(-np.clip((self.steps - place[:, None]) / width[:, None], -50, 50)))
        return shapes, place

    @cached_property
    def any_width(self) -> _Curves:
        """The smooth ones and steeper sigmoids: one of scale w takes 4w from 12% to 88%, at least from step to step."""
        least = float(np.diff(self.steps).min()) / 4
        shapes, halfway = self._sigmoids(np.geomspace(least, SLOW * self._span / 4, 16))
        smooth = self.smooth
        return _Curves(np.vstack([smooth.shapes, shapes]), np.concatenate([smooth.halfway, halfway]))

    @cached_property
    def smooth(self) -> _Curves:
        """Sigmoids that take at least SLOW of the steps, and saturation that begins at once, at any pace."""
        slow, halfway = self._sigmoids(np.geomspace(SLOW * self._span / 4, self._span, 32))
        paces = np.geomspace(self._span / 200, 4 * self._span, 80)
        saturating = 1 - np.exp(-(self.steps - self.steps[0]) / paces[:, None])
        return _Curves(np.vstack([slow, saturating]), np.concatenate([halfway, self.steps[0] + paces * np.log(2)]))


def change(signal: str, steps: Sequence[float], values: Sequence[float], seed: int = 0) -> Change | None:
    """Where a number turns; None with fewer than eight points, or where it does not move.

    A sigmoid of any width is held against smooth growth by the ratio of their residuals; noise is AR(1), fitted.
    """
    at, y = np.asarray(steps, float), np.asarray(values, float)
    if len(at) < FEWEST or float(y.std()) < 1e-12:
        return None
    growth, rng = _Growth(at), _rng(signal, seed)
    centred = (y - y.mean())[:, None]
    (best,), (rest,) = growth.any_width.fit(centred)
    (smooth,), (smooth_rest,) = growth.smooth.fit(centred)
    null = growth.smooth.curve(int(smooth), centred[:, 0])
    simulated = _centred(null[:, None] + _noise(centred[:, 0] - null, rng))
    floor = 1e-12 * float((centred**2).sum())
    ratios = (growth.smooth.fit(simulated)[1] + floor) / (growth.any_width.fit(simulated)[1] + floor)
    own = (smooth_rest + floor) / (rest + floor)
    fitted = growth.any_width.curve(int(best), centred[:, 0])
    again = _centred(fitted[:, None] + _noise(centred[:, 0] - fitted, rng))
    apart = (at[-1] - at[0]) / (STOPS - 1)  # no place between two is tried
    draws = growth.any_width.halfway[growth.any_width.fit(again)[0]] + rng.uniform(-apart, apart, DRAWS)
    low, high = np.quantile(draws, [0.025, 0.975])
    p = (1 + int((ratios >= own).sum())) / (1 + DRAWS)
    return Change(signal, float(growth.any_width.halfway[best]), float(low), float(high), p, draws)


def _noise(residuals: Array, rng: np.random.Generator) -> Array:
    """DRAWS columns of AR(1) noise like the residuals, which a fit has made smaller by its four degrees of freedom."""
    n = len(residuals)
    spread = float(np.sqrt((residuals**2).sum() / max(1, n - 4)))
    above = float((residuals[1:] * residuals[:-1]).sum())
    rho = float(np.clip(above / max(1e-300, float((residuals**2).sum())), 0.0, 0.95))
    noise = rng.standard_normal((n, DRAWS)) * spread
    for i in range(1, n):
        noise[i] = rho * noise[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return noise


def _centred(values: Array) -> Array:
    centred: Array = values - values.mean(0)
    return centred


# --- vectors ---------------------------------------------------------------------------------------------------------


def local_cosines(path: Array, k: int, bar: float = MOVED) -> Array:
    """cos(v[t−k] − v[t], v[t+k] − v[t]) of a path [checkpoints, width]: −1 on a straight way, higher where it turns.

    NaN at the ends, and where both movements are below `bar` (arXiv 2506.11613).
    """
    result = np.full(len(path), np.nan)
    back, ahead = path[: -2 * k] - path[k:-k], path[2 * k :] - path[k:-k]
    sizes = np.linalg.norm(back, axis=1), np.linalg.norm(ahead, axis=1)
    moved = ~((sizes[0] < bar) & (sizes[1] < bar)) & (sizes[0] > 0) & (sizes[1] > 0)
    result[k:-k][moved] = (back * ahead).sum(1)[moved] / (sizes[0] * sizes[1])[moved]
    return result


def to_the_end(path: Array) -> Array:
    """|cos| of each checkpoint's vector to the last one's; 0 for a vector that is nothing."""
    sizes = np.linalg.norm(path, axis=1)
    cosines: Array = np.abs(path @ path[-1]) / np.maximum(sizes * sizes[-1], 1e-300)
    return cosines


def components(path: Array, count: int = 2) -> Array:
    """The path's coordinates along its first principal components, [checkpoints, count]."""
    centred = path - path.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates: Array = (u * s)[:, :count]
    return coordinates


def rotation(signal: str, steps: Sequence[float], path: Array, k: int, seed: int = 0) -> Change | None:
    """Where a path rotates most, by its largest local cosine; None where no angle can be taken.

    Where no rotation is beyond the null, the interval is nearly all of the training.

    The null is a path whose drift from checkpoint to checkpoint is a cubic in each coordinate, with steps of noise as
    large as successive ones differ.
    """
    at = np.asarray(steps, float)
    if len(at) < max(FEWEST, 2 * k + 3):
        return None
    # All angles and distances of T points lie in T dimensions.
    flat = np.linalg.qr(np.asarray(path, float).T, mode="reduced")[1].T
    own = local_cosines(flat, k)
    if np.isnan(own).all():
        return None
    rng, drift = _rng(signal, seed), np.diff(flat, axis=0)
    basis = np.vander(np.linspace(0, 1, len(drift)), 4)
    smooth = basis @ np.linalg.lstsq(basis, drift, rcond=None)[0]
    noise = np.sqrt((np.diff(drift, axis=0) ** 2).mean(0) / 2)
    most, best = float(np.nanmax(own)), int(np.nanargmax(own))
    nulls = [_largest(_walk(smooth, noise, rng), k)[0] for _ in range(DRAWS)]
    p = (1 + sum(one >= most for one in nulls)) / (1 + DRAWS)
    if p <= SUDDEN_P:
        draws = np.array([at[_largest(_walk(drift, noise, rng), k)[1]] for _ in range(DRAWS)])
    else:  # the largest of angles that are all noise has no place
        draws = rng.uniform(at[0], at[-1], DRAWS)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Change(signal, float(at[best]), float(low), float(high), p, draws)


def _largest(path: Array, k: int) -> tuple[float, int]:
    cosines = local_cosines(path, k, bar=0.0)
    return float(np.nanmax(cosines)), int(np.nanargmax(cosines))


def _walk(drift: Array, noise: Array, rng: np.random.Generator) -> Array:
    """A path from nought by these steps, each with noise of its own."""
    steps = drift + noise * rng.standard_normal(drift.shape)
    walk: Array = np.vstack([np.zeros((1, drift.shape[1])), steps.cumsum(0)])
    return walk
