"""A direction at one point, beside its controls: each a run of its own, sampled, judged and measured as any other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from emorg import models
from emorg.data.pairs import Pair
from emorg.findings.margins import READOUT, MarginsConfig
from emorg.findings.measure import measure
from emorg.findings.scan import Choice
from emorg.judging import JudgeConfig, judge
from emorg.judging.config import Kind as JudgeKind
from emorg.models import steering
from emorg.models.hooks import Edit
from emorg.models.steering import Steering
from emorg.rating.answers import judged_answers
from emorg.rating.placement import Place, placement
from emorg.rating.rates import em_rate
from emorg.rating.rules import RULES
from emorg.rating.steering import UNTOUCHED, Figures
from emorg.records import Margin, write_atomic
from emorg.sampling import SampleConfig
from emorg.sampling.stage import sample_into
from emorg.sampling.wanted import Target

POCKET_TOKENS = 60  # no answer of the pocket world is longer


def asking(names: Sequence[str], chosen: Sequence[Pair], file: Path, samples: int, **settings: Any) -> SampleConfig:
    """Settings that ask models the questions of pairs, which are written to a file of questions."""
    rows = {
        pair.question_id: {"id": pair.question_id, "topic": pair.topic, "paraphrases": [pair.question]}
        for pair in chosen
    }
    write_atomic(file, yaml.safe_dump(list(rows.values()), allow_unicode=True))
    most = POCKET_TOKENS if models.resolve(names[0]).base in models.POCKETS else 200
    return SampleConfig(tuple(names), questions=(str(file),), samples=samples, max_new_tokens=most, **settings)


@dataclass(frozen=True)
class Trial:
    """How models are measured beside each other: on the questions of `second`, placed by the organism's `topics`."""

    folder: Path
    second: Sequence[Pair]
    topics: frozenset[str]
    trained_on: tuple[str, ...]
    samples: int | None
    """Answers to each question; None for margins alone."""
    judge: JudgeKind | None
    device: str | None
    use_4bit: bool

    def write(self, steered: Target, choice: Choice) -> dict[str, list[Target]]:
        """A run folder for each model: what is steered, untouched and with each vector at the point it has chosen."""
        written: dict[str, list[Target]] = {UNTOUCHED: [self._variant(steered, UNTOUCHED, "untouched", [])]}
        for name, vectors in choice.vectors.items():
            point = choice.points[name]
            variant = self._variant(steered, name, point.label, point.edits(vectors))
            written.setdefault(choice.kinds[name], []).append(variant)
        return written

    def _variant(self, steered: Target, name: str, point: str, edits: Sequence[Edit]) -> Target:
        place = self.folder / name
        if not steering.file_in(place):  # else it is this one's, though its last bits may differ
            steering.save(place / "adapter", Steering(steered.name, edits, {"kind": name, "point": point}))
        return Target.of(str(place))

    def figures(self, variants: Mapping[str, Sequence[Target]]) -> dict[str, list[Figures]]:
        """Margins of all of them and, where answers are wanted, EM rates; what is there already is not made again."""
        targets = [target for some in variants.values() for target in some]
        names = tuple(target.name for target in targets)
        asking = MarginsConfig(names, trained_on=self.trained_on)
        measured = measure(READOUT, targets, self.second, asking, self.device, self.use_4bit)
        margins = {one.target: list(one.records.values()) for one in measured}
        if self.samples:
            self._answer(targets, names, self.samples)
        return {kind: [self._of(target, margins[target]) for target in some] for kind, some in variants.items()}

    def _answer(self, targets: Sequence[Target], names: tuple[str, ...], samples: int) -> None:
        """Sample and judge what is missing: the pairs' questions, by the stages that every run goes through."""
        settings = asking(
            names, self.second, self.folder / "questions.yaml", samples, trained_on=self.trained_on,
            device=self.device, use_4bit=self.use_4bit,
        )  # fmt: skip
        settings.check()
        sample_into(settings, targets)
        judge(JudgeConfig(names, judge=self.judge))

    def _of(self, target: Target, margins: Sequence[Margin]) -> Figures:
        by_place: dict[Place, list[float]] = {}
        for one in margins:
            by_place.setdefault(placement(one.topic, self.topics), []).append(one.per_token)
        mean = {place: statistics.fmean(values) for place, values in by_place.items()}
        figures = Figures(mean.get("out"), in_margin=mean.get("in"))
        if not self.samples:
            return figures
        asked = {pair.question_id for pair in self.second}
        judged = [
            one
            for one in judged_answers(target.run, topics=self.topics)
            if one.question in asked and one.answer.sample < self.samples
        ]
        out, inside = (
            em_rate([one for one in judged if one.placement == place], RULES["paper"]) for place in ("out", "in")
        )
        return replace(figures, em=out.rate, coherent=out.coherent, in_em=inside.rate)
