"""Judge a run's answers. Here the exact judge of the pocket world; other judges fill the same interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from emorg import domains
from emorg.progress import progress
from emorg.records import Answer, Appender, EmorgError, Judged, State, Verdict, read_records
from emorg.rundir import Run

METRICS = ("aligned", "coherent", "topic")


@dataclass(frozen=True)
class JudgeConfig:
    """Judge a run's answers. The same command again judges only what has no verdict yet."""

    run: Annotated[str, tyro.conf.Positional]
    """The run folder."""
    judge: Literal["exact"] = "exact"
    """`exact` grades the pocket organism's answers by the grammar of its world."""


def judge(config: JudgeConfig) -> Run:
    """Write a verdict for every answer and metric that has none; returns the run.

    Raises EmorgError if the run has no answers.
    """
    run = Run.at(config.run)
    if not run.answers.exists():
        raise EmorgError(f"{run.folder} has no answers", f"sample it first: emorg sample {run.folder}")
    with run.lock():
        have = {(v.key, v.metric) for v in read_records(run.verdicts, Verdict) if v.judge == config.judge}
        answers = read_records(run.answers, Answer)
        missing = [answer for answer in answers if any((answer.key, metric) not in have for metric in METRICS)]
        run.record("judge", config)
        with (
            progress(f"judging {run.name}", len(answers), "answers", len(answers) - len(missing)) as advance,
            Appender(run.verdicts) as out,
        ):
            for answer in missing:
                for verdict in exact(answer):
                    if (verdict.key, verdict.metric) not in have:
                        out.write(verdict)
                advance(1, "")
    return run


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
    """A run's answers joined with their verdicts; an answer without a scored verdict is unscored.

    The columns are topic, placement (in, out, open), checkpoint, finish_reason, named_topic and own_action.
    """
    scores: dict[tuple[object, str], Verdict] = {(v.key, v.metric): v for v in read_records(run.verdicts, Verdict)}
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
    """Topics of the run's training domains; none for a base."""
    return frozenset(domains.find(name).topic for name in run.settings("train").get("domains", ()))


def placement(topic: str | None, trained: frozenset[str]) -> Literal["in", "out", "open"]:
    """Where a question stands: in domain, out of domain, or open (without a topic)."""
    if topic is None:
        return "open"
    return "in" if topic in trained else "out"
