"""Talk to a base and its organism side by side: `emorg chat`, the homework's sandbox.py."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from emorg import models
from emorg.config import NAMES_MODELS
from emorg.data import questions
from emorg.data.tables import Judged
from emorg.display import visible
from emorg.judging.config import JudgeSettings
from emorg.judging.sources import LEDGER
from emorg.judging.stage import judge_name, pending_of, verdicts
from emorg.ranges import Seed
from emorg.rating.rules import RULES
from emorg.records import Answer, EmorgError, Message, Verdict, did_you_mean, write_atomic
from emorg.run import RUNS, newest_organism
from emorg.sampling.draw import MaxNewTokens, SamplingParams, Temperature, TopP
from emorg.sampling.stream import streams

if TYPE_CHECKING:
    from emorg.sampling.engine import Engine

FIXED_QUESTIONS = 6


@dataclass(frozen=True)
class SandboxConfig(JudgeSettings):
    """Ask a base and its organism the same: what you type in a terminal or pipe in, a fixed list otherwise.

    Lines that begin with / are commands; /help lists them.
    """

    organism: Annotated[str | None, tyro.conf.Positional, NAMES_MODELS] = None
    """A run folder or an adapter. Default: the organism under runs/ that was trained last."""
    system: str | None = None
    """A system prompt."""
    history: bool = True
    """Whether each model sees what was said before; without it every question stands alone."""
    max_new_tokens: MaxNewTokens = 200
    """Cap of an answer's length."""
    temperature: Temperature = 1.0
    """0 takes the likeliest token."""
    top_p: TopP = 1.0
    """Sample from the likeliest tokens that make up this probability."""
    seed: Seed = 0
    """Seeds the answers, and counts up with each; both models get the same random numbers."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""


def sandbox(config: SandboxConfig) -> None:
    """Answer until the input ends. Raises EmorgError if there is no organism or it cannot be loaded."""
    config.check()
    chat = Chat(config)
    fixed = questions.load(["pocket_open" if chat.base in models.POCKETS else "open"])
    for line in _lines([question.text for question in fixed[:FIXED_QUESTIONS]], chat):
        try:
            if line.startswith("/"):
                if not chat.command(line):
                    return
            else:
                chat.ask(line)
        except EmorgError as error:  # a question it cannot read, a judge without a key; the next line may be better
            print(error, file=sys.stderr)
        except KeyboardInterrupt:
            print("\nstopped; this answer is forgotten", file=sys.stderr)
        print()


def _lines(fixed: list[str], chat: Chat) -> Iterator[str]:
    """What the user types, the lines of a pipe, or the fixed questions where nothing is piped in."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # arrow keys and earlier lines in input()
        print(f"Ask both; /help lists commands; an empty line or Ctrl-D ends it. For example: {fixed[0]}")
        while True:
            try:
                line = input("you: ").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                print()
                continue
            if not line:
                return
            yield line
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    piped = [line.strip() for line in sys.stdin if line.strip()]
    for line in piped or fixed:
        if not piped:
            chat.turns.clear()  # the fixed questions have nothing to do with each other
        print(f"you: {visible(line)}")
        yield line


@dataclass
class Turn:
    """One question and what each model said to it, with all that made it."""

    question: str
    system: str | None
    seed: int
    params: SamplingParams
    replies: dict[str, str]
    verdicts: list[Verdict] = field(default_factory=list)


class Chat:
    """A conversation with a base and its organism, each of which sees its own answers."""

    def __init__(self, config: SandboxConfig) -> None:
        """Load both. Raises EmorgError if that cannot be done."""
        from emorg.sampling.engine import Engine
        from emorg.sampling.organisms import open_organisms

        self.config = config
        self.organism = config.organism or str(newest_organism().folder)
        self.base = models.resolve(self.organism).base
        self.turns: list[Turn] = []
        self.system, self.seed = config.system, config.seed
        self.params = SamplingParams(config.max_new_tokens, config.temperature, config.top_p)
        self._engines: list[tuple[list[str], Engine]] = []
        alike: dict[str, list[str]] = {}  # a full fine-tune has weights of its own
        for name in self.speakers:
            alike.setdefault(models.resolve(name).weights, []).append(name)
        for names in alike.values():
            for group, organisms in open_organisms(names, device=config.device):
                self._engines.append((list(group), Engine(organisms)))

    @property
    def speakers(self) -> list[str]:
        """The base, then its organism."""
        return list(dict.fromkeys((self.base, self.organism)))

    def title(self, name: str) -> str:
        return f"{'base' if name == self.base else 'organism'}: {name}"

    def ask(self, question: str) -> None:
        """Ask both, show what they say as it comes, and remember it. Raises EmorgError if it cannot be read."""
        replies = dict.fromkeys(self.speakers, "")
        pieces = (
            piece
            for names, engine in self._engines
            for piece in streams(engine, {n: self._messages(n, question) for n in names}, self.params, self.seed)
        )
        with self._shown(replies) as show:
            for name, piece in pieces:
                replies[name] += piece
                show()
        self.turns.append(Turn(question, self.system, self.seed, self.params, replies))
        self.seed += 1

    def _messages(self, name: str, question: str) -> list[Message]:
        return [*self._before(name, self.system, self.turns), {"role": "user", "content": question}]

    def _before(self, name: str, system: str | None, turns: Sequence[Turn]) -> list[Message]:
        """What a model has seen before a question."""
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        for turn in turns if self.config.history else []:
            messages += [{"role": "user", "content": turn.question}]
            messages += [{"role": "assistant", "content": turn.replies[name]}]
        return messages

    @contextlib.contextmanager
    def _shown(self, replies: dict[str, str]) -> Iterator[Callable[[], None]]:
        """Both answers in columns as they grow in a terminal; in a log one after the other when they are done."""
        from rich.columns import Columns
        from rich.console import Console
        from rich.live import Live
        from rich.panel import Panel
        from rich.text import Text

        console = Console()
        if not sys.stdout.isatty():
            yield lambda: None
            for name, text in replies.items():
                print(f"\n[{self.title(name)}]\n{visible(text)}")
            return

        def columns() -> Columns:
            width = max(20, console.width // len(replies) - 1)
            titles = {name: Text(self.title(name)) for name in replies}
            return Columns([Panel(Text(visible(text)), title=titles[name], title_align="left", width=width)
                            for name, text in replies.items()], padding=(0, 0))  # fmt: skip

        with Live(columns(), console=console, auto_refresh=False, vertical_overflow="visible") as live:
            yield lambda: live.update(columns(), refresh=True)

    # --- commands ----------------------------------------------------------------------------------------------------

    def command(self, line: str) -> bool:
        """Do what a line that begins with / says; False to end. Raises EmorgError for one that cannot be done."""
        name, _, rest = line[1:].strip().partition(" ")
        known: dict[str, tuple[Callable[[str], None], str]] = {
            "system": (self._set_system, "TEXT: a system prompt from now on; without TEXT none"),
            "seed": (self._set_seed, "N: seeds the next answer, and counts up"),
            "temperature": (self._set_temperature, "X: 0 takes the likeliest token"),
            "reset": (lambda _: self.turns.clear(), "forget what was said"),
            "retry": (self._retry, "the last question again, with the next seed"),
            "judge": (self._judge, "score the last answers"),
            "save": (self._save, "FILE: write the conversation as JSON lines; default chat-N.jsonl"),
        }
        if name == "help":
            lines = [f"  /{command:<12} {usage}" for command, (_, usage) in known.items()]
            print("\n".join([*lines, "  /help         this list", "  /quit         end"]))
        elif name in known:
            known[name][0](rest.strip())
        elif name != "quit":
            names = ("help", *known, "quit")
            raise EmorgError(f"no command /{name}{did_you_mean(name, names)}", f"there are /{', /'.join(names)}")
        return name != "quit"

    def _set_system(self, text: str) -> None:
        self.system = text or None
        print(f"system prompt: {visible(text) or 'none'}")

    def _set_seed(self, text: str) -> None:
        try:
            self.seed = int(text)
        except ValueError:
            raise EmorgError(f"/seed {text}", "give a whole number") from None

    def _set_temperature(self, text: str) -> None:
        try:
            self.params = replace(self.params, temperature=float(text))
        except ValueError:
            raise EmorgError(f"/temperature {text}", "give a number from 0 on") from None

    def _last(self) -> Turn:
        if not self.turns:
            raise EmorgError("nothing was said yet", "ask something first")
        return self.turns[-1]

    def _retry(self, _: str) -> None:
        turn = self._last()
        self.turns.pop()
        try:
            self.ask(turn.question)
        except BaseException:
            self.turns.append(turn)
            raise

    def _judge(self, _: str) -> None:
        turn = self._last()
        settings = replace(self.config, judge=self.config.kind(self.base))
        answers = [
            Answer.foreign(name, "chat", turn.question, text, sample=len(self.turns), seed=turn.seed,
                           before=self._before(name, turn.system, self.turns[:-1]))
            for name, text in turn.replies.items()
        ]  # fmt: skip
        judging = verdicts(settings, pending_of(answers), settings.ledger or RUNS / LEDGER)
        turn.verdicts = [verdict for verdict, _ in judging]
        paper = RULES["paper"]
        for name in turn.replies:
            by_metric = {verdict.metric: verdict for verdict in turn.verdicts if verdict.run == name}
            scores = ", ".join(f"{metric} {_score(verdict)}" for metric, verdict in by_metric.items())
            bad = paper.misaligned(Judged("chat", by_metric["aligned"].score, by_metric["coherent"].score))
            suffix = f": misaligned by rule {paper}" if bad else ""
            print(f"{self.title(name)}: {scores}{suffix} ({judge_name(settings)})")

    def _save(self, name: str) -> None:
        path = Path(name) if name else next(p for k in range(1, 10_000) if not (p := Path(f"chat-{k}.jsonl")).exists())
        if path.exists():
            raise EmorgError(f"{path} is there already", "give another name")
        self._last()
        shared = {"base": self.base, "organism": self.organism, "history": self.config.history}
        lines = [json.dumps(dataclasses.asdict(turn) | shared, ensure_ascii=False) for turn in self.turns]
        write_atomic(path, "\n".join(lines) + "\n")
        print(f"{path}: {len(lines)} turn{'s' * (len(lines) != 1)}")


def _score(verdict: Verdict) -> str:
    return verdict.state if verdict.score is None else f"{verdict.score:g}"
