"""`emorg show`: the report's headline and the answers behind it, in a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from emorg.display import make_table, show, visible
from emorg.rating.answers import JudgedAnswer
from emorg.rating.rules import Rule
from emorg.rating.stage import RuleConfig
from emorg.records import Answer, EmorgError, did_you_mean
from emorg.reporting import arms_table, rate_warnings
from emorg.reporting.arms import PLACES, Arm, load_arms
from emorg.reporting.findings import finding, notes
from emorg.run import Run

if TYPE_CHECKING:
    from rich.console import RenderableType

HELP = "n and p turn pages, a number opens an answer, /TEXT searches, / shows all again, q quits"
LONGEST = 20_000  # characters of one answer on a screen


@dataclass(frozen=True)
class ShowConfig(RuleConfig):
    """The headline of one or more runs, then their answers, least aligned first; in a terminal, to leaf through."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, as for `emorg report`."""
    judge: str | None = None
    """Whose verdicts, where several judged. Default: the one that judged last."""
    where: Literal["in", "out", "open"] | None = None
    """Only answers in domain, out of domain, or to open questions."""
    topic: str | None = None
    """Only answers to questions of this topic."""
    question: str | None = None
    """Only answers to the question of this id."""
    state: str | None = None
    """Only answers whose judgement ended so: scored, refusal, low_mass, api_error, not judged, …"""
    search: str = ""
    """Only answers with this text in them or in their question, whatever its case."""
    misaligned: bool = False
    """Only answers that the rule calls misaligned."""
    checkpoints: bool = False
    """Also answers of checkpoints on the way."""
    order: Literal["aligned", "coherent", "longest", "question"] = "aligned"
    """Least aligned, least coherent, longest, or by question. What has no score comes last."""
    limit: int = 20
    """Answers on a page."""
    number: int | None = None
    """Only the answer with this number in the list, whole."""


@dataclass(frozen=True)
class Shown:
    """An answer in the list."""

    arm: Arm
    judged: JudgedAnswer

    @property
    def answer(self) -> Answer:
        return self.judged.answer


def show_runs(config: ShowConfig) -> None:
    """Print headline and answers. Raises EmorgError for runs that cannot be reported, and if no answer is left."""
    if config.limit < 1:
        raise EmorgError(f"--limit {config.limit}", "show at least one answer on a page")
    rule = config.chosen()
    arms = load_arms([Run.at(run) for run in config.runs], rule, config.judge)
    found = chosen(arms, rule, config)
    if config.number is not None:
        if not 1 <= config.number <= len(found):
            raise EmorgError(f"--number {config.number}", f"there are {len(found):,} answers in the list")
        show(opened(found[config.number - 1], rule))
        return
    show(arms_table(arms))
    for line in [*notes(arms), *rate_warnings(arms), finding(arms)]:
        print(visible(line))
    if sys.stdin.isatty() and sys.stdout.isatty():
        _browse(arms, rule, config, found)
        return
    show(page(found, 0, config.limit, rule))
    if len(found) > config.limit:
        print(
            f"{len(found) - config.limit:,} more: --limit N, --search TEXT, --where out, --number N for a whole one, …"
        )


def chosen(arms: Sequence[Arm], rule: Rule, config: ShowConfig) -> list[Shown]:
    """The answers that the config asks for, in its order. Raises EmorgError if there are none."""
    every = [
        Shown(arm, judged)
        for arm in reversed(arms)  # the organism's before its controls'
        for judged in (*(arm.on_the_way if config.checkpoints else ()), *arm.judged)
    ]  # fmt: skip
    wanted: dict[str, Callable[[Shown], str]] = {
        "where": lambda each: each.judged.placement,
        "topic": lambda each: each.answer.topic or "open",
        "question": lambda each: each.answer.question_id,
        "state": lambda each: each.judged.outcome,
    }
    found = every
    for name, value_of in wanted.items():
        if (value := getattr(config, name)) is not None:
            known = {value_of(each) for each in every}
            if value not in known:
                raise EmorgError(
                    f"no answer with --{name} {value}{did_you_mean(value, known)}",
                    f"there are {', '.join(sorted(known)[:30])}",
                )
            found = [each for each in found if value_of(each) == value]
    text = config.search.lower()
    found = [each for each in found if text in each.answer.text.lower() or text in each.answer.question.lower()]
    if config.misaligned:
        found = [each for each in found if rule.misaligned(each.judged)]
    if not found:
        asked = [f"--{name} {value}" for name in wanted if (value := getattr(config, name)) is not None]
        asked += [f"--search {config.search!r}"] if config.search else []
        asked += ["--misaligned"] if config.misaligned else []
        raise EmorgError(f"no answer suits {' '.join(asked)}", f"leave out {' or '.join(asked)}")

    def last(score: float | None) -> float:
        return 101 if score is None else score

    orders: dict[str, Callable[[Shown], Any]] = {
        "aligned": lambda each: last(each.judged.aligned),
        "coherent": lambda each: last(each.judged.coherent),
        "longest": lambda each: -each.answer.answer_tokens,
        "question": lambda each: each.answer.question_id,
    }
    return sorted(found, key=orders[config.order])


def page(found: Sequence[Shown], start: int, limit: int, rule: Rule) -> RenderableType:
    """A table of some of the answers, one line each."""
    from rich.text import Text

    several = len({each.arm.label for each in found}) > 1
    names = ["#", "aligned", "coherent", "", *(["run"] if several else []), "question", "answer"]
    table = make_table(f"answers {start + 1}–{min(start + limit, len(found))} of {len(found):,}", names, left=0)
    for column in table.columns[3:]:
        column.justify = "left"
    for column in table.columns[:-1]:
        column.no_wrap = True
    for number, each in enumerate(found[start : start + limit], start + 1):
        state = each.judged.outcome
        mark = Text("✗ EM", style="bold red") if rule.misaligned(each.judged) else "" if state == "scored" else state
        told = [*([each.arm.label] if several else []), visible(each.answer.question_id)]
        scores = [_score(each.judged.aligned), _score(each.judged.coherent)]
        line = Text(" ".join(visible(each.answer.text[:500]).split()), no_wrap=True, overflow="ellipsis")
        table.add_row(str(number), *scores, mark, *map(Text, told), line)
    return table


def opened(each: Shown, rule: Rule) -> RenderableType:
    """One answer whole, with its question and every verdict."""
    from rich.console import Group
    from rich.text import Text

    answer = each.answer
    facts = [
        each.arm.label, answer.checkpoint or "", answer.question_id, PLACES[each.judged.placement],
        f"sample {answer.sample}", f"{answer.answer_tokens} tokens", "cut" if answer.finish_reason == "length" else "",
        "misaligned" if rule.misaligned(each.judged) else "",
    ]  # fmt: skip
    table = make_table("", ["metric", "score", "state", "reply"], left=1)
    for metric, verdict in each.judged.verdicts.items():
        reply = " · ".join(filter(None, (verdict.reply, verdict.detail)))
        table.add_row(*map(Text, (visible(metric), _score(verdict.score), verdict.state, visible(reply))))
    for column in table.columns[2:]:
        column.justify = "left"
    text = answer.text[:LONGEST]
    left = f"\n… {len(answer.text) - LONGEST:,} more characters" if len(answer.text) > LONGEST else ""
    return Group(
        Text(visible(" · ".join(filter(None, facts))), style="dim"), Text(visible(answer.question), style="bold"),
        Text(visible(text) + left), table,
    )  # fmt: skip


def _browse(arms: Sequence[Arm], rule: Rule, config: ShowConfig, found: list[Shown]) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys in input()
    start, told = 0, page(found, 0, config.limit, rule)
    while True:
        show(told)
        try:
            line = input(f"{HELP}: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line == "q":
            return
        if line.isdecimal() and 1 <= int(line) <= len(found):
            told = opened(found[int(line) - 1], rule)
            continue
        if line.startswith("/"):
            try:
                found, start = chosen(arms, rule, replace(config, search=line[1:])), 0
            except EmorgError as error:
                print(visible(str(error)))
        elif line in ("n", "") and start + config.limit < len(found):
            start += config.limit
        elif line == "p":
            start = max(0, start - config.limit)
        told = page(found, start, config.limit, rule)


def _score(score: float | None) -> str:
    return "–" if score is None else f"{score:.1f}".removesuffix(".0")
