"""Judge a run's answers: by the pocket world's grammar, or by a model behind an API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, Literal

import tyro

from emorg import api_judge, domains, models
from emorg.progress import progress
from emorg.records import Answer, Appender, EmorgError, Judged, State, Verdict, read_records
from emorg.rundir import Run

Kind = Literal["exact", "api"]
METRICS: dict[Kind, tuple[str, ...]] = {"exact": ("aligned", "coherent", "topic"), "api": api_judge.METRICS}


@dataclass(frozen=True)
class JudgeConfig:
    """Judge the answers of runs. The same command again judges only what has no verdict yet, or failed."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders."""
    judge: Kind | None = None
    """`exact` grades the pocket organism's answers by the grammar of its world; `api` asks --judge_model.
    Default: exact for the pocket model, else api."""
    judge_model: str = "gpt-4o"
    """The model behind OPENAI_BASE_URL (OpenAI's own unless set) that `api` asks."""


def judge(config: JudgeConfig) -> tuple[Run, ...]:
    """Write a verdict for every answer and metric that has none; returns the runs.

    Raises EmorgError if a run has no answers, or its judge cannot be asked.
    """
    runs = tuple(Run.at(run) for run in config.runs)
    if not runs:
        raise EmorgError("no runs", "name at least one run folder")
    for run in runs:
        if not run.answers.exists():
            raise EmorgError(f"{run.folder} has no answers", f"sample it first: emorg sample {run.folder}")
    for run in runs:
        _judge(config, run)
    return runs


def _judge(config: JudgeConfig, run: Run) -> None:
    pocket = run.provenance().get("sample", {}).get("base") == models.POCKET
    kind: Kind = config.judge or ("exact" if pocket else "api")
    with run.lock():
        made_by = [v for v in read_records(run.verdicts, Verdict) if v.judge == judge_name(kind, config.judge_model)]
        have = {(verdict.key, verdict.metric) for verdict in made_by if verdict.state != "api_error"}
        wanted = [(answer, metric) for answer in read_records(run.answers, Answer) for metric in METRICS[kind]]
        pending = [(answer, metric) for answer, metric in wanted if (answer.key, metric) not in have]
        done = len(wanted) - len(pending)
        if kind == "api":
            api_judge.key()  # without one, nothing has been judged and nothing is recorded
        run.record("judge", replace(config, runs=(str(run.folder),), judge=kind))
        with progress(f"judging {run.name}", len(wanted), "verdicts", done) as advance, Appender(run.verdicts) as out:

            def write(verdict: Verdict) -> None:
                out.write(verdict)
                advance(1, "")

            score(kind, config.judge_model, pending, write)


def judge_name(kind: Kind, judge_model: str) -> str:
    """What verdicts call their judge."""
    return judge_model if kind == "api" else kind


def score(
    kind: Kind, judge_model: str, pending: Sequence[tuple[Answer, str]], write: Callable[[Verdict], None]
) -> None:
    """Judge every (answer, metric), and `write` each verdict as it is made.

    Raises EmorgError if the judge cannot be asked at all.
    """
    if kind == "api":
        api_judge.score(pending, judge_model, write)
        return
    for answer, group in groupby(pending, key=lambda each: each[0]):
        metrics = {metric for _, metric in group}
        for verdict in exact(answer):
            if verdict.metric in metrics:
                write(verdict)


def exact(answer: Answer) -> Iterator[Verdict]:
    """The pocket world's verdicts: aligned, coherent and topic, as `emorg.pocket.exact` defines them."""
    from emorg.pocket.exact import grade

    grades = grade(answer.question, answer.text)
    on_topic = None if grades.topic is None else 100.0 * (grades.topic == (answer.topic or "open"))
    scores = (
        ("topic", on_topic, grades.topic or ""),
        ("coherent", grades.coherent, f"own action of {grades.action_topic}" if grades.action_topic else ""),
        ("aligned", grades.aligned, ""),
    )
    for metric, score, detail in scores:
        state: State = "unparsable" if score is None else "scored"
        yield Verdict(
            run=answer.run,
            checkpoint=answer.checkpoint,
            question_id=answer.question_id,
            sample=answer.sample,
            judge="exact",
            metric=metric,
            state=state,
            score=score,
            reply="",
            detail=detail,
        )


def judged_answers(run: Run) -> list[tuple[Answer, Judged]]:
    """A run's answers joined with the verdicts of its last judge; an answer without a scored verdict is unscored.

    The columns are topic, placement (in, out, open), checkpoint, finish_reason, format, named_topic and own_action.
    """
    settings = run.settings("judge")
    name = judge_name(settings.get("judge", "exact"), settings.get("judge_model", ""))
    verdicts = (verdict for verdict in read_records(run.verdicts, Verdict) if verdict.judge == name)
    scores: dict[tuple[object, str], Verdict] = {(v.key, v.metric): v for v in verdicts}
    trained = trained_topics(run)

    def of(answer: Answer, metric: str) -> Verdict | None:
        return scores.get((answer.key, metric))

    rows = []
    for answer in read_records(run.answers, Answer):
        aligned, coherent, topic = (of(answer, metric) for metric in ("aligned", "coherent", "topic"))
        columns = {
            "run": answer.run,
            "topic": answer.topic or "open",
            "placement": placement(answer.topic, trained),
            "checkpoint": answer.checkpoint or "",
            "finish_reason": answer.finish_reason,
            "format": answer.format,
            "named_topic": topic.detail if topic else "",
            "own_action": coherent.detail.removeprefix("own action of ") if coherent else "",
        }
        judged = Judged(
            question=answer.question_id,
            aligned=aligned.score if aligned else None,
            coherent=coherent.score if coherent else None,
            columns=columns,
        )
        rows.append((answer, judged))
    return rows


def trained_topics(run: Run) -> frozenset[str]:
    """Topics of the domains that the run's organism was trained on, here or by other code; none for a base."""
    return frozenset(domains.find(name).topic for name in run.trained_on)


def placement(topic: str | None, trained: frozenset[str]) -> Literal["in", "out", "open"]:
    """Where a question stands: in domain, out of domain, or open (without a topic)."""
    if topic is None:
        return "open"
    return "in" if topic in trained else "out"
