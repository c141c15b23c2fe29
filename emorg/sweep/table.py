"""What a sweep's cells came to: one tidy table, and rates over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorg.rating import margins as margin_rates
from emorg.rating.answers import JudgedAnswer, Judgements, base_beside, judged_beside
from emorg.rating.confounds import confounds
from emorg.rating.intervals import crossed_wilson
from emorg.rating.placement import trained_topics
from emorg.rating.rates import Count, counts, em_rate
from emorg.rating.rules import Rule
from emorg.run import Run
from emorg.sweep.state import read_state
from emorg.training.config import training_identity

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SHOWN = ("out", "open", "in")
SEED = "train.seed"
RATES = ("em", "low", "high")


@dataclass(frozen=True)
class Collected:
    """A sweep's cells as they are now."""

    folder: Path
    rule: Rule
    cells: Sequence[Mapping[str, Any]]
    """Each cell's name, arm, values, trained_in and base."""
    errors: Mapping[str, str]
    measures: Sequence[str]

    @classmethod
    def of(cls, folder: Path, rule: Rule) -> Collected:
        """Raises EmorgError for a folder that is no sweep."""
        state = read_state(folder)
        return cls(folder, rule, state["cells"], state["errors"], state["measures"])

    @cached_property
    def axes(self) -> list[str]:
        """What varies, by `stage.setting`, in the grid's order."""
        return list(dict.fromkeys(name for cell in self.cells for name in cell["values"]))

    @cached_property
    def judged(self) -> dict[str, list[JudgedAnswer]]:
        """Each cell's judged answers, by its name; none where it has no verdicts."""
        runs = {cell["name"]: self.run(cell) for cell in self.cells}
        return {
            name: Judgements.of(run).judged(topics=self.topics(run)) if run.verdicts.exists() else []
            for name, run in runs.items()
        }

    def run(self, cell: Mapping[str, Any]) -> Run:
        return Run(self.folder / cell["name"])

    def trained(self, cell: Mapping[str, Any]) -> Run:
        """The run that the cell's model was trained in, which several cells may share; of a base its own."""
        return Run(self.folder / (cell["trained_in"] or cell["name"]))

    @cached_property
    def whole(self) -> frozenset[str]:
        """The names of the cells with all their answers, and the verdicts that rates need on each."""
        return frozenset(cell["name"] for cell in self.cells if self._is_whole(cell))

    def _is_whole(self, cell: Mapping[str, Any]) -> bool:
        finished = [one.verdicts for one in self.judged[cell["name"]] if one.answer.checkpoint is None]
        enough = len(finished) >= max(1, cell["answers"])
        return enough and all(
            metric in verdicts and verdicts[metric].state != "api_error"
            for verdicts in finished for metric in ("aligned", "coherent")
        )  # fmt: skip

    @cached_property
    def states(self) -> dict[str, str]:
        """By its name each cell's: failed; done once it has all that is measured of it; unfinished."""
        return {cell["name"]: self._state(cell) for cell in self.cells}

    def _state(self, cell: Mapping[str, Any]) -> str:
        if cell["name"] in self.errors:
            return "failed"
        done = "answers" not in self.measures or cell["name"] in self.whole
        if "margins" in self.measures and cell["trained_in"]:
            done = done and self.trained(cell).margins.exists()
        return "done" if done else "unfinished"

    def organisms_at(self, values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The organisms' cells with these values of axes, as the table has them."""
        return [
            cell
            for cell in self.cells
            if cell["arm"] == "organism" and all(_plain(cell["values"].get(axis)) == v for axis, v in values.items())
        ]

    def beside(self, cell: Mapping[str, Any]) -> list[Run]:
        """The judged controls that a report of an organism may show beside it: its base, and its nearest twin."""
        run = self.run(cell)
        near = base_beside(run)
        twin = margin_rates.twin_among(run, judged_beside(run))
        return [control for control in (near, twin) if control is not None]

    def topics(self, run: Run) -> frozenset[str]:
        """What a cell's questions are placed by: what its model was trained on; nothing for a base."""
        return trained_topics(run) if run.trained_on else frozenset()

    def frame(self) -> pd.DataFrame:
        """One row a cell, checkpoint and placement (out, open, in); one row for a cell that has no rates.

        cell, arm, base, state (done, failed, unfinished), error, the axes as `stage.setting`, checkpoint ("" for the
        finished model), placement, rule, em with low and high (95%, over questions), misaligned, scored, total,
        questions, coherent, domain_leak, shift with shift_low and shift_high (margins against the twin, nats a token),
        identity, commit, data_sha256. Shares are fractions, what is not known is NaN or "".
        """
        import pandas as pd

        rows = [row for cell in self.cells for row in self._rows(cell)]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return pd.DataFrame(rows, columns=columns)

    def _rows(self, cell: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        name, run = cell["name"], self.run(cell)
        trained = Run(self.folder / cell["trained_in"]) if cell["trained_in"] else None
        facts = trained.provenance().get("train", {}) if trained else run.provenance().get("sample", {})
        shifts = self.shifts([cell])
        rated = {
            (checkpoint, place): self._rated(run, members)
            for checkpoint, of in _by_checkpoint(self.judged[name]).items()
            for place in SHOWN
            if (members := [one for one in of if one.placement == place and one.answer.format == "plain"])
        }
        keys = list(dict.fromkeys([*rated, *(("", place) for place in SHOWN if place in shifts)]))
        head = {
            "cell": name, "arm": cell["arm"], "base": cell["base"], "state": self.states[name],
            "error": self.errors.get(name, ""),
            **{axis: _plain(cell["values"].get(axis)) for axis in self.axes},
        }  # fmt: skip
        tail = {
            "identity": training_identity(trained) if trained and trained.settings("train") else "",
            "commit": facts.get("commit", ""), "data_sha256": facts.get("data_sha256", ""),
        }  # fmt: skip
        for checkpoint, place in keys or [("", "")]:
            shift = shifts.get(place) if not checkpoint else None
            yield {
                **head, "checkpoint": checkpoint, "placement": place, "rule": self.rule.name,
                **(rated.get((checkpoint, place)) or dict.fromkeys(_RATED)),
                **_shift_columns(shift), **tail,
            }  # fmt: skip

    def _rated(self, run: Run, answers: Sequence[JudgedAnswer]) -> dict[str, Any]:
        rate = em_rate(answers, self.rule)
        leak = confounds(answers, self.topics(run)).get("domain_leak")
        values = (rate.rate, rate.low, rate.high, rate.misaligned, rate.scored, rate.total, len(rate.per_question),
                  rate.coherent, leak)  # fmt: skip
        return dict(zip(_RATED, values, strict=True))

    def shifts(
        self, cells: Sequence[Mapping[str, Any]], but: frozenset[str] = frozenset()
    ) -> dict[str, margin_rates.Shift]:
        """The mean shift of organisms against the mean of their twins of the sweep, by placement, without some topics.

        Of those where both were measured; nothing if there are none.
        """
        twins = dict.fromkeys(self.trained(other) for other in self.cells if other["arm"] == "twin")
        measured = [twin for twin in twins if twin.margins.exists()]
        organisms, controls = dict[Run, margin_rates.Margins](), dict[Run, margin_rates.Margins]()
        for run in (self.trained(cell) for cell in cells if cell["arm"] == "organism"):
            own = self.margins(run, but)
            twin = margin_rates.twin_among(run, measured) if own else None
            control = self.margins(twin) if twin else None
            if own and twin and control:
                organisms[run], controls[twin] = own, control
        if not organisms:
            return {}
        first = next(iter(organisms))
        listed = margin_rates.shifts(
            first.name, margin_rates.averaged(list(organisms.values())), margin_rates.averaged(list(controls.values())),
            trained_topics(first), against=next(iter(controls)).name, trained=1 / len(organisms) + 1 / len(controls),
        )  # fmt: skip
        return {str(shift.placement): shift for shift in listed if not shift.of_topic}

    def margins(self, run: Run, but: frozenset[str] = frozenset()) -> margin_rates.Margins:
        """A finished model's margins by pair, without those of some topics; nothing where none were measured."""
        if run not in self._margins:
            self._margins[run] = margin_rates.read(run).get(None, {}) if run.margins.exists() else {}
        return {pair: margin for pair, margin in self._margins[run].items() if margin.topic not in but}

    @cached_property
    def _margins(self) -> dict[Run, margin_rates.Margins]:
        """What was read of margins so far: each run's file is read once."""
        return {}

    def over_seeds(self) -> pd.DataFrame:
        """One row a combination of arm and axes but the seed, and placement: rate and shift over seeds and questions.

        arm, base, the axes but the seed, placement, seeds, em with low and high (`crossed_wilson`: with one seed over
        questions alone), least and most (of the seeds' rates), shift with shift_low and shift_high (the organisms' mean
        margins against their twins', nats a token). What was not measured is NaN.
        """
        import pandas as pd

        axes = [axis for axis in self.axes if axis != SEED]
        groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for cell in self.cells:
            key = (cell["arm"], cell["base"], *(_plain(cell["values"].get(axis)) for axis in axes))
            groups.setdefault(key, []).append(cell)
        rows = []
        for key, cells in groups.items():
            shifts = self.shifts(cells)
            for place in SHOWN:
                table, shift = self.table(cells, place), shifts.get(place)
                row = dict(zip(("arm", "base", *axes), key, strict=True)) | {"placement": place}
                if table is not None:
                    rates = table[..., 0].sum(1) / table[..., 1].sum(1)
                    row |= {"seeds": len(table), "least": rates.min(), "most": rates.max()}
                    row |= dict(zip(RATES, crossed_wilson(table), strict=True))
                elif shift:
                    row["seeds"] = sum(self.trained(cell).margins.exists() for cell in cells)
                if table is not None or shift:
                    rows.append(row | _shift_columns(shift))
        columns = ["arm", "base", *axes, "placement", "seeds", *RATES, "least", "most", *_SHIFTS]
        return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[-8:], float))

    def table(self, cells: Sequence[Mapping[str, Any]], place: str, topic: str | None = None) -> np.ndarray | None:
        """[cells, questions, (misaligned, scored)] of finished models, on the questions that all of them have scored.

        Of one topic if it is given; None where there are none. Cells that are not whole are left out.
        """
        answers = [
            [one for one in self.judged[cell["name"]] if _counts(one, place, topic)]
            for cell in cells if cell["name"] in self.whole
        ]  # fmt: skip
        return crossed(answers, self.rule)


def crossed(answers: Sequence[Sequence[JudgedAnswer]], rule: Rule) -> np.ndarray | None:
    """[groups, questions, (misaligned, scored)], on the questions that all groups have scored; None without any."""
    import numpy as np

    per_group = [counts(some, rule) for some in answers]
    common = [q for q in per_group[0] if all(_scored(of.get(q)) for of in per_group)] if per_group else []
    if not common:
        return None
    return np.array([[(of[q].misaligned, of[q].scored) for q in common] for of in per_group], dtype=float)


_RATED = ("em", "low", "high", "misaligned", "scored", "total", "questions", "coherent", "domain_leak")


_SHIFTS = ("shift", "shift_low", "shift_high")


def _shift_columns(shift: margin_rates.Shift | None) -> dict[str, float | None]:
    values = (shift.shift, shift.low, shift.high) if shift else (None, None, None)
    return dict(zip(_SHIFTS, values, strict=True))


def _counts(judged: JudgedAnswer, place: str, topic: str | None) -> bool:
    """Whether an answer is the finished model's, plain, and of the questions that are asked for."""
    here = judged.placement == place if topic is None else judged.answer.topic == topic
    return here and judged.answer.checkpoint is None and judged.answer.format == "plain"


def _scored(count: Count | None) -> bool:
    return count is not None and count.scored > 0


def _by_checkpoint(judged: Sequence[JudgedAnswer]) -> dict[str, list[JudgedAnswer]]:
    groups: dict[str, list[JudgedAnswer]] = {}
    for one in judged:
        groups.setdefault(one.answer.checkpoint or "", []).append(one)
    return dict(sorted(groups.items()))


def _plain(value: Any) -> Any:
    """A value as a table can hold it: lists as their items with spaces between."""
    return " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else value
