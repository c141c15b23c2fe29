"""The judging stage: which verdicts are missing, who makes them, and where they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import emorg.judging.api as api_judge
import emorg.judging.exact as exact_judge
import emorg.judging.local as local_judge
import emorg.judging.prompts as prompts
from emorg.judging.config import EXACT_METRICS, JudgeConfig, JudgeSettings, Kind, Pending
from emorg.judging.ledger import Ledger, Request
from emorg.judging.scoring import Reading, completion_of, read, read_masses
from emorg.judging.sources import FileSource, RunSource
from emorg.progress import progress
from emorg.records import EmorgError, Verdict
from emorg.run import Run


def judge(config: JudgeConfig) -> tuple[Run, ...]:
    """Write a verdict for every answer, metric and repeat that has none; returns the runs.

    Raises EmorgError for unusable settings, a source without answers, and a judge that cannot be asked.
    """
    config.check()
    if not config.sources:
        raise EmorgError("no runs", "name at least one run folder, or a CSV or JSONL file of answers")
    sources = [_source(name) for name in config.sources]
    for source in sources:
        kind = config.judge or source.kind
        settings = replace(config, judge=kind, sources=(source.place,))
        with source:
            _judge(source, settings, kind)
    return tuple(source.run for source in sources if isinstance(source, RunSource) and not config.dry_run)


def _source(name: str) -> RunSource | FileSource:
    path = Path(name)
    if path.suffix in (".csv", ".jsonl", ".json") and not path.is_dir():
        return FileSource(path)
    return RunSource(Run.at(name))


def _judge(source: RunSource | FileSource, settings: JudgeConfig, kind: Kind) -> None:
    name = judge_name(settings, kind)
    have = source.done(name)
    metrics = EXACT_METRICS if kind == "exact" else settings.metrics
    wanted = [Pending(a, metric, r) for r in range(settings.repeats) for a in source.answers for metric in metrics]
    pending = [each for each in wanted if (each.answer.key, each.metric, each.repeat) not in have]
    ledger = settings.ledger or source.ledger
    if settings.dry_run:
        print(f"{source.name}: {_plan(settings, kind, pending, ledger)}")
        return
    if kind == "api" and pending:
        api_judge.key()  # without one, nothing has been judged and nothing is recorded
    with (
        progress(f"judging {source.name}", len(wanted), "verdicts", len(wanted) - len(pending)) as advance,
        source.writing(settings, name) as out,
    ):
        for each, reading, note in readings(settings, kind, pending, ledger):
            out.write(verdict(each, name, reading))
            advance(1, note)
    if isinstance(source, FileSource):
        print(f"{source.output}\nnext: emorg rates {source.output}")


def judge_name(settings: JudgeSettings, kind: Kind) -> str:
    """What verdicts call their judge: the model, how it scores, and the version of its prompts."""
    if kind == "exact":
        return kind
    version = prompts.load(settings.prompts).name
    if kind == "local":
        return f"local/{local_judge.identity(settings.model)}/{version}"
    return f"{settings.model}/{settings.scoring}/{version}"


def verdict(pending: Pending, judge: str, reading: Reading) -> Verdict:
    """The record of a reading."""
    answer = pending.answer
    return Verdict(
        run=answer.run,
        checkpoint=answer.checkpoint,
        question_id=answer.question_id,
        sample=answer.sample,
        judge=judge,
        metric=pending.metric,
        state=reading.state,
        score=reading.score,
        reply=reading.text,
        detail=reading.detail,
        repeat=pending.repeat,
    )


def readings(
    settings: JudgeSettings, kind: Kind, pending: Sequence[Pending], ledger: Path
) -> Iterator[tuple[Pending, Reading, str]]:
    """(what was to be judged, how it was, a note for people) as they come: first what the ledger knows already.

    Judgements that ask the same words are asked for once. Raises EmorgError if the judge cannot be asked.
    """
    if kind == "exact":
        for each in pending:
            yield each, exact_judge.readings(each.answer)[each.metric], ""
        return
    if not pending:
        return
    asked = _asked(settings, kind, pending)
    with Ledger(ledger) as kept:
        known = kept.find([request.key for request in asked])
        for request, of in asked.items():
            if request.key in known:
                body = known[request.key]
                reading = read(completion_of(body), settings.scoring) if kind == "api" else read_masses(body)
                for each in of:
                    yield each, reading, ""
        if missing := [request for request in asked if request.key not in known]:
            judge = api_judge.ask if kind == "api" else local_judge.ask
            with ExitStack() as closing:
                coming = judge(settings, missing, kept)
                closing.callback(coming.close)  # type: ignore[attr-defined]
                for request, reading, note in coming:
                    for each in asked[request]:
                        yield each, reading, note


def _asked(settings: JudgeSettings, kind: Kind, pending: Sequence[Pending]) -> dict[Request, list[Pending]]:
    words = prompts.load(settings.prompts)
    of = api_judge.request_of if kind == "api" else local_judge.request_of
    asked: dict[Request, list[Pending]] = {}
    for each in pending:
        asked.setdefault(of(settings, words.text(each.metric, each.answer), each.repeat), []).append(each)
    return asked


def _plan(settings: JudgeSettings, kind: Kind, pending: Sequence[Pending], ledger: Path) -> str:
    """What there is to do, in words; nothing is asked and nothing written."""
    if kind == "exact":
        return f"{len(pending):,} verdicts by the pocket world's grammar, which cost nothing"
    asked = _asked(settings, kind, pending)
    if ledger.exists():
        with Ledger(ledger) as kept:
            known = kept.find([request.key for request in asked])
        missing = [request for request in asked if request.key not in known]
    else:
        missing = list(asked)
    told = f"{len(pending):,} verdicts, {len(missing):,} calls to make ({len(asked) - len(missing):,} in the ledger)"
    if kind == "local":
        return f"{told}, on this machine"
    cost = api_judge.guess(settings, missing)
    if cost is None:
        return f"{told}; the price of {settings.model} is not known: --prices FILE"
    return f"{told}, about ${cost:.2f} by {settings.prices or 'judge/prices.yaml'}"
