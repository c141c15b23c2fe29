"""The runs of a report side by side: base, twins and organisms, and their judged answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from shlex import quote
from typing import Any, Literal

from emorg.display import visible
from emorg.rating.answers import SAMPLED_ALIKE, JudgedAnswer, Judgements, checked
from emorg.rating.confounds import confounds
from emorg.rating.placement import Place, careless, placement, topics_beside
from emorg.rating.rates import Group, Rate, em_rate, rates_by
from emorg.rating.rules import Rule
from emorg.rating.stage import group_of
from emorg.records import EmorgError, read_lines
from emorg.run import Run

Role = Literal["base", "twin", "organism"]
PLACEMENT_TITLES = {"in": "in domain", "out": "out of domain", "open": "open questions"}
STAGES = ("train", "sample", "judge")


@dataclass(frozen=True)
class Arm:
    """One run as the report sees it, under one rule: `replace(arm, rule=…)` is the same under another."""

    run: Run
    role: Role
    label: str
    rule: Rule
    topics: frozenset[str]
    """What its questions are placed by: a question of one of these topics is in domain."""
    judged: list[JudgedAnswer]
    on_the_way: list[JudgedAnswer]
    """Judged answers of its checkpoints."""
    missing: list[str]
    """What is not done yet, and the command that does it."""
    others: Mapping[str, list[JudgedAnswer]] = field(default_factory=dict)
    """The finished model's answers as each other judge of them judged them."""

    def seen_by(self, judge: str) -> Arm:
        """The same arm as another judge sees it."""
        return replace(self, judged=self.others[judge], on_the_way=[], others={})

    @cached_property
    def rates(self) -> dict[Group, Rate]:
        """The finished model's rates, by placement, and apart from it each other format than plain."""
        rates = rates_by(self.judged, self.rule, _group)
        return dict(sorted(rates.items(), key=lambda item: (list(PLACEMENT_TITLES).index(item[0][0]), item[0])))

    @cached_property
    def confounds(self) -> dict[str, float]:
        return confounds(self.judged, self.topics) if self.judged else {}

    def answers(self, place: Place, topics: frozenset[str] | None = None) -> list[JudgedAnswer]:
        """Its plain answers at one placement, as its own questions are placed or by other topics: an organism's."""
        placed_by = self.topics if topics is None else topics
        return [
            judged for judged in self.judged
            if judged.answer.format == "plain" and placement(judged.answer.topic, placed_by) == place
        ]  # fmt: skip

    def rate(self, place: Place, topics: frozenset[str] | None = None) -> Rate | None:
        """The rate of `answers`."""
        if topics is None or topics == self.topics:
            return self.rates.get((place,))
        there = self.answers(place, topics)
        return em_rate(there, self.rule) if there else None

    @property
    def rate_of_all(self) -> Rate:
        """The rate of all its answers, whatever they were asked."""
        return em_rate(self.judged, self.rule)

    def rates_by(self, name: str) -> dict[Group, Rate]:
        """The finished model's rates by any column of its judged answers."""
        return rates_by(self.judged, self.rule, group_of([name]))

    @property
    def judges(self) -> set[str]:
        """Whose verdicts they are."""
        return {verdict.judge for judged in (*self.on_the_way, *self.judged) for verdict in judged.verdicts.values()}

    @property
    def steps(self) -> list[dict[str, Any]]:
        """What training recorded at each optimizer step; empty for a base."""
        return [line for _, line in read_lines(self.run.metrics)] if self.run.metrics.exists() else []


def other_judges(arms: Sequence[Arm]) -> list[str]:
    """Judges beside the chosen one that gave scores to every judged arm."""
    judged = [arm for arm in arms if arm.judged]
    return [
        judge
        for judge in (judged[0].others if judged else ())
        if all(judge in arm.others and arm.seen_by(judge).rate_of_all.scored for arm in judged)
    ]


def settings_of(run: Run) -> dict[str, str]:
    """Every setting that a run recorded, then every fact, as `stage.name: text`; of a path only its last part."""
    facts = run.provenance()
    settings = {f"{stage}.{name}": value for stage in STAGES for name, value in run.settings(stage).items()}
    settings |= {
        f"{stage}.{name}": value
        for stage in STAGES for name, value in facts.get(stage, {}).items() if f"{stage}.{name}" not in settings
    }  # fmt: skip
    return {name: _setting(value) for name, value in settings.items()}


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_setting(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    if isinstance(value, str):
        value = value.replace(str(Path.home()), "~")
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute():
                return f"…/{kind(value).name}"  # where someone keeps files is not for the readers of a report
    return "–" if value is None else str(value)


def load_arms(runs: Sequence[Run], rule: Rule, judge: str | None = None) -> list[Arm]:
    """The runs in the order base, twin, organism, each with its rates by placement (see `topics_beside`).

    A run that is not judged yet is there with what it lacks, beside others that are. Raises EmorgError if none is
    judged, and for runs that were sampled or judged in different ways; `judge` chooses among several.
    """
    runs = list({run.folder.resolve(): run for run in runs}.values())
    if not runs:
        raise EmorgError("no runs", "name at least one run folder")
    read = [Judgements.of(run) for run in runs]
    _check_alike(read, judge)
    loaded = [_arm(judgements, runs, rule, judge) for judgements in read]
    arms = [arm for arm, _ in loaded]
    if not any(arm.judged for arm in arms):
        raise next((lacking for _, lacking in loaded if lacking), None) or EmorgError(
            "these runs have answers of checkpoints only", "sample the finished model: emorg sample {path}",
            runs[0].folder,
        )  # fmt: skip
    return _named_apart(sorted(arms, key=lambda arm: ("base", "twin", "organism").index(arm.role)))


def _arm(judgements: Judgements, runs: Sequence[Run], rule: Rule, judge: str | None) -> tuple[Arm, EmorgError | None]:
    """A run's arm beside the others, and what it lacks if it has no judged answers."""
    run = judgements.run
    missing, topics = _untrained(run), topics_beside(run, runs)
    lacking: EmorgError | None = None
    answers: list[JudgedAnswer] = []
    try:
        answers = checked(judgements.judged(judge, topics=topics), run, checkpoints=True)
    except EmorgError as error:
        if not run.folder.is_dir() or all(path.exists() for path in (run.answers, run.verdicts)):
            raise
        lacking, named = error, error.naming(run.folder, run.from_here)
        missing.append(f"{named.problem}; {named.remedy}")
    if unjudged := sum(judged.state is None for judged in answers):
        missing.append(
            f"{unjudged:,} of {len(answers):,} answers are not judged; judge them: emorg judge {quote(run.from_here)}"
        )
    role = role_of(run)
    label = role if role == "base" else visible(f"{role} ({', '.join(run.trained_on) or run.name})")
    finished = [judged for judged in answers if judged.answer.checkpoint is None]
    on_the_way = [judged for judged in answers if judged.answer.checkpoint is not None]
    chosen = judge or judgements.last_judge
    others = {
        name: [one for one in judgements.judged(name, topics=topics) if one.answer.checkpoint is None]
        for name in judgements.judges
        if name != chosen
    }
    return Arm(run, role, label, rule, topics, finished, on_the_way, missing, others), lacking


def _check_alike(read: Sequence[Judgements], judge: str | None) -> None:
    """Refuse to put beside each other what differs in more than the model."""
    sampled = [judgements.run for judgements in read if judgements.run.settings("sample")]
    for setting in SAMPLED_ALIKE:
        values = {run: run.settings("sample").get(setting) for run in sampled}
        if len(set(values.values())) > 1:
            by_name = ", ".join(f"{run.name}: {value}" for run, value in values.items())
            common = Counter(values.values()).most_common(1)[0][0]
            odd = next(run for run, value in values.items() if value != common)
            again = f" --{setting} {quote(str(common))}" if common is not None else ""
            named = [odd.folder] if odd.trained else odd.settings("sample").get("models") or [odd.base or "MODEL"]
            model = quote(str(named[0]))
            raise EmorgError(
                f"the runs were sampled at different --{setting} ({by_name})",
                f"sample {odd.name} like the others, which goes into a folder beside it; then judge and report that: "
                f"emorg sample {model}{again}",
            )
    every = {judgements.run.name: list(judgements.judges) for judgements in read if judgements.judges}
    if judge is None and len({judges[-1] for judges in every.values()}) > 1:
        by_name = ", ".join(f"{name}: {judges[-1]}" for name, judges in every.items())
        common_judges = set.intersection(*map(set, every.values()))
        folders = " ".join(quote(str(judgements.run.folder)) for judgements in read)
        raise EmorgError(
            f"the runs were judged by different judges ({by_name})",
            f"choose one that judged them all: --judge {' or '.join(sorted(common_judges))}" if common_judges
            else f"judge them all by one: emorg judge {folders} --judge_model NAME",
        )  # fmt: skip


def _untrained(run: Run) -> list[str]:
    if not run.metrics.exists() or run.trained:
        return []
    last = max((line["step"] for _, line in read_lines(run.metrics)), default=0)
    return [f"training stopped at step {last} and has not finished; go on: emorg train with the same settings"]


def _group(judged: JudgedAnswer) -> Group:
    """Where an answer stands in the tables: by placement, and apart from it each other format than plain."""
    how = judged.answer.format
    return (judged.placement,) if how == "plain" else (judged.placement, how)


def group_title(group: Group) -> str:
    """A group's name for people: (open, json) → open questions, json."""
    place, *how = group
    return ", ".join([PLACEMENT_TITLES[place], *how])


def role_of(run: Run) -> Role:
    """What a run is beside others: careless advice makes an organism, careful a twin."""
    if not run.is_organism:
        return "base"
    return "organism" if careless(run) or not run.trained_on else "twin"


def _named_apart(arms: list[Arm]) -> list[Arm]:
    """Arms of one label told apart by their runs' names, or numbered where those are the same too."""
    for more in ([visible(f", {arm.run.name}") for arm in arms], [f" #{i}" for i in range(1, len(arms) + 1)]):
        often = Counter(arm.label for arm in arms)
        arms = [
            replace(arm, label=arm.label + end) if often[arm.label] > 1 else arm
            for arm, end in zip(arms, more, strict=True)
        ]
    return arms
