"""The judging stage: which verdicts are missing, who makes them, and where they are written."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Literal

from emorg.judging import api, exact, local, prompts
from emorg.judging.config import EXACT_METRICS, JudgeConfig, JudgeSettings, Pending
from emorg.judging.ledger import Ledger, Request
from emorg.judging.scoring import Reading, completion_of, read, read_masses
from emorg.judging.sources import FileSource, RunSource
from emorg.judging.tally import Tally
from emorg.progress import log, progress
from emorg.records import Answer, EmorgError, Verdict, read_records
from emorg.run import Run


def judge(config: JudgeConfig) -> tuple[Run | Path, ...]:
    """Write a verdict for every answer, metric and repeat that has none.

    Returns the run of each source, or of a file the path with its scores. Raises EmorgError for unusable settings (also
    `dry_run`, which is for `costs`), a source without answers, and a judge that cannot be asked.
    """
    return tuple(judge_all(config))


def judge_and_say(config: JudgeConfig) -> tuple[Run, ...] | Literal[False]:
    """The command: judge, and say where a file's scores are, or what there is to do.

    Returns the runs, or False if the judge failed on some answers, or judged under half of them.
    """
    if config.dry_run:
        print("\n".join(costs(config)))
        return ()
    judged = judge_all(config)
    for path, tally in judged.items():
        if isinstance(path, Path):
            print(f"{path}" + (f"\nnext: emorg rates {quote(str(path))}" if tally.passed else ""))
    passed = all(tally.passed for tally in judged.values())
    return tuple(run for run in judged if isinstance(run, Run)) if passed else False


def judge_all(config: JudgeConfig, account: api.Account | None = None) -> dict[Run | Path, Tally]:
    """Judge every source, and say what each came to: by its run, or the path with a file's scores.

    `account` goes on with what was spent before, as --max_cost bounds the whole. Raises as `judge` does.
    """
    if config.dry_run:
        raise EmorgError("a dry run judges nothing", "leave out dry_run")
    judged: dict[Run | Path, Tally] = {}
    account = account or api.Account()
    for source, settings in _sources(config):
        with source, source.turn(settings.ledger):
            tally = _judge(source, settings, account)
        log.info(tally.headline())
        for warning in filter(None, (tally.failures(), tally.problem())):
            log.warning(warning)
        judged[source.run if isinstance(source, RunSource) else source.output] = tally
    return judged


def is_judged(run: Run, config: JudgeConfig) -> bool:
    """Whether a run has every verdict that `judge` would write; a failed request left none.

    Raises EmorgError for a run without answers.
    """
    source = RunSource(run)
    settings = replace(config, judge=config.kind(source.base))
    known = source.known(judge_name(settings))
    wanted = pending_of(read_records(run.answers, Answer), _metrics(settings), settings.repeats)
    return all(judgement.key in known for judgement in wanted)


def costs(config: JudgeConfig) -> list[str]:
    """What there is to do for each source, in words; nothing is asked and nothing written. Raises as `judge` does."""
    lines = []
    for source, settings in _sources(config):
        with source:
            lines.append(f"{source.name}: {_cost(settings, source)}")
    return lines


def _sources(config: JudgeConfig) -> list[tuple[RunSource | FileSource, JudgeConfig]]:
    """Each source, and the settings that it is judged with."""
    config.check()
    if not config.sources:
        raise EmorgError("no runs", "name at least one run folder, or a CSV or JSONL file of answers")
    sources = [_source(name, config.output) for name in config.sources]
    return [(s, replace(config, judge=config.kind(s.base), sources=(s.place,))) for s in sources]


def _source(name: str, output: Path | None) -> RunSource | FileSource:
    path = Path(name)
    if path.suffix in (".csv", ".jsonl", ".json") and not path.is_dir():
        return FileSource(path, output)
    if output is not None:
        raise EmorgError(f"--output {output}, but {name} is a run", "a run keeps its scores itself; leave it out")
    return RunSource(Run.at(name))


def _judge(source: RunSource | FileSource, settings: JudgeConfig, account: api.Account) -> Tally:
    """Judge what is not judged yet."""
    name, spent = judge_name(settings), account.spent
    wanted, known = _wanted(source, settings), source.known(judge_name(settings))
    pending = [judgement for judgement in wanted if judgement.key not in known]
    if settings.judge == "api" and pending:
        api.server(settings)  # without a key, nothing has been judged and nothing is recorded
    with (
        progress(f"judging {source.name}", len(wanted), "verdicts", len(wanted) - len(pending)) as advance,
        source.writing(settings, name) as out,
    ):
        for verdict, note in verdicts(settings, pending, settings.ledger or source.ledger, account):
            out.write(verdict)
            advance(1, note)
            known[verdict.key, verdict.metric, verdict.repeat] = verdict
    said = tuple(known[judgement.key] for judgement in wanted)
    return Tally(source.name, name, settings.judge, said, account.spent - spent)


def _wanted(source: RunSource | FileSource, settings: JudgeConfig) -> list[Pending]:
    """Every verdict that there will be in all."""
    return pending_of(source.answers, _metrics(settings), settings.repeats)


def _metrics(settings: JudgeConfig) -> tuple[str, ...]:
    return EXACT_METRICS if settings.judge == "exact" else settings.metrics


def judge_name(settings: JudgeSettings) -> str:
    """What verdicts call their judge: the model, how it scores, and the version of its prompts."""
    if settings.judge == "exact":
        return "exact"
    version = prompts.load(settings.prompts).name
    if settings.judge == "local":
        return f"local/{local.identity(settings.model)}/{version}"
    return f"{settings.model}/{settings.scoring}/{version}"


def pending_of(
    answers: Sequence[Answer], metrics: Sequence[str] = ("aligned", "coherent"), repeats: int = 1
) -> list[Pending]:
    """Every judgement of the answers on the metrics, all of a repeat before the next."""
    return [Pending(answer, metric, k) for k in range(repeats) for answer in answers for metric in metrics]


def verdicts(
    settings: JudgeSettings, pending: Sequence[Pending], ledger: Path, account: api.Account | None = None
) -> Iterator[tuple[Verdict, str]]:
    """(verdict, a note for people) as they come; `account` goes on with what was spent. Raises as `readings` does."""
    judge = judge_name(settings)
    for wanted, reading, note in readings(settings, pending, ledger, account):
        answer = wanted.answer
        yield (
            Verdict(
                run=answer.run,
                checkpoint=answer.checkpoint,
                question_id=answer.question_id,
                sample=answer.sample,
                judge=judge,
                metric=wanted.metric,
                state=reading.state,
                score=reading.score,
                reply=reading.text,
                detail=reading.detail,
                repeat=wanted.repeat,
            ),
            note,
        )


def readings(
    settings: JudgeSettings, pending: Sequence[Pending], ledger: Path, account: api.Account | None = None
) -> Iterator[tuple[Pending, Reading, str]]:
    """(what was to be judged, how it was, a note for people) as they come: first what the ledger knows already.

    Judgements that ask the same words are asked for once. Raises EmorgError if the judge cannot be asked.
    """
    if settings.judge == "exact":
        for wanted in pending:
            yield wanted, exact.readings(wanted.answer)[wanted.metric], ""
        return
    if not pending:
        return
    by_request = _by_request(settings, pending)
    with Ledger(ledger) as kept:
        known = kept.find([request.key for request in by_request])
        for request, judgements in by_request.items():
            if request.key in known:
                reading = _read(settings, known[request.key])
                for wanted in judgements:
                    yield wanted, reading, ""
        if missing := [request for request in by_request if request.key not in known]:
            with ExitStack() as closing:
                if settings.judge == "local":
                    coming = local.ask(settings, missing, kept)
                else:
                    coming = api.ask(settings, missing, kept, account or api.Account())
                closing.callback(coming.close)  # type: ignore[attr-defined]
                for request, reading, note in coming:
                    for wanted in by_request[request]:
                        yield wanted, reading, note


def _read(settings: JudgeSettings, body: str) -> Reading:
    return read_masses(body) if settings.judge == "local" else read(completion_of(body), settings.scoring)


def _by_request(settings: JudgeSettings, pending: Sequence[Pending]) -> dict[Request, list[Pending]]:
    words = prompts.load(settings.prompts)
    request_of = local.request_of if settings.judge == "local" else api.request_of
    by_request: dict[Request, list[Pending]] = {}
    for wanted in pending:
        text = words.text(wanted.metric, wanted.answer)
        by_request.setdefault(request_of(settings, text, wanted.repeat), []).append(wanted)
    return by_request


def _cost(settings: JudgeConfig, source: RunSource | FileSource) -> str:
    known = source.known(judge_name(settings))
    pending = [judgement for judgement in _wanted(source, settings) if judgement.key not in known]
    if settings.judge == "exact":
        return f"{len(pending):,} verdicts by the pocket world's grammar, which cost nothing"
    by_request, ledger = _by_request(settings, pending), settings.ledger or source.ledger
    paid: Collection[str] = ()
    if ledger.exists():
        with Ledger(ledger) as kept:
            paid = kept.find([request.key for request in by_request])
    missing = [request for request in by_request if request.key not in paid]
    kept_already = len(by_request) - len(missing)
    calls = f"{len(pending):,} verdicts, {len(missing):,} calls to make ({kept_already:,} in the ledger)"
    if settings.judge == "local":
        return f"{calls}, on this machine"
    cost = api.guess(settings, missing)
    if cost is None:
        return f"{calls}; the price of {settings.model} is not known: --prices FILE"
    return f"{calls}, about ${cost:.2f} by {settings.prices or 'judging/prices.yaml'}"
