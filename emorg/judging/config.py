"""Who judges what, and how: the settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from emorg import models
from emorg.config import NAMES_MODELS
from emorg.judging.scoring import Scoring
from emorg.ranges import AtLeast1, NotNegative, Positive, check_ranges
from emorg.records import Answer, AnswerKey, EmorgError

Kind = Literal["exact", "api", "local"]
EXACT_METRICS = ("aligned", "coherent", "topic")
DEFAULT_MODEL = "gpt-4o"


@dataclass(frozen=True)
class Pending:
    """One judgement to be made: of an answer, on a metric, for the `repeat`-th time (from 0)."""

    answer: Answer
    metric: str
    repeat: int = 0

    @property
    def key(self) -> tuple[AnswerKey, str, int]:
        return self.answer.key, self.metric, self.repeat


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """The judge, shared by all commands that judge."""

    judge: Kind | None = None
    """`exact` grades the pocket organism's answers by the grammar of its world; `api` asks --judge_model at
    OPENAI_BASE_URL (OpenAI's own unless set); `local` loads --judge_model here. Default: exact for the pocket model,
    else api."""
    judge_model: str | None = None
    """The model that judges: a name at the API (default gpt-4o), or for `local` a Hugging Face name or a folder."""
    prompts: str = "emorg"
    """Our prompts, or a YAML file of `metric: prompt`, or one of the papers' with `judge_prompts`."""
    scoring: Scoring = "logprobs"
    """`logprobs`: the mean over the numbers 0–100 by the first token's probabilities, as the papers; `number`: the
    number that the reply says, as the homework. A local judge always takes the exact mean."""
    max_cost: Annotated[float | None, NotNegative] = None
    """Stop before the API costs more than this in dollars, by the prices in judging/prices.yaml or --prices."""
    prices: Path | None = None
    """A YAML file of `model: {input: …, output: …}` in dollars per million tokens."""
    ledger: Path | None = None
    """Where replies are kept. Default: ledger.sqlite beside the run's folder; for a file runs/ledger.sqlite."""
    judge_connections: Annotated[int, AtLeast1] = 64
    """Most requests to the API under way at a time."""
    judge_timeout: Annotated[float, Positive] = 60.0
    """Seconds until a request is given up and tried again."""
    judge_parameters: tuple[str, ...] = ()
    """Request parameters as NAME=VALUE, e.g. for a reasoning model: temperature=none max_tokens=none
    max_completion_tokens=4000 reasoning_effort=low --scoring number."""
    served_judge: str | None = None
    """The name that replies come under, where it is not the one that was asked for (Azure, gateways)."""
    judge_device: str | None = None
    """Where the local judge runs: cuda, mps or cpu. Default: the best one there."""
    judge_4bit: bool = False
    """Load the local judge in 4-bit (nf4)."""

    def check(self) -> None:
        """Raise EmorgError for settings that cannot be."""
        check_ranges(self)
        if self.judge == "local" and self.judge_model is None:
            raise EmorgError("no model for the local judge", "name one, e.g. --judge_model Qwen/Qwen3-4B-Instruct-2507")
        _ = self.parameters

    @property
    def model(self) -> str:
        return self.judge_model or DEFAULT_MODEL

    def kind(self, base: str | None) -> Kind:
        """Who judges answers of models that stand on `base`, where --judge does not say."""
        return self.judge or ("exact" if base in models.POCKETS else "api")

    @property
    def parameters(self) -> dict[str, Any]:
        """What a request to the API says beside model and messages. Raises EmorgError for a malformed one."""
        parameters: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
        if self.scoring == "logprobs":
            parameters |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        for parameter in self.judge_parameters:
            name, equals, value = parameter.partition("=")
            if not equals or not re.fullmatch(r"\w+", name):
                raise EmorgError(f"--judge_parameters {parameter}", "write NAME=VALUE")
            parameters[name] = yaml.safe_load(value)
            if value.lower() in ("none", "null", ""):
                del parameters[name]
        return parameters


JUDGE_CHANGEABLE = frozenset(
    {"sources", "output", "dry_run", "max_cost", "prices", "ledger", "judge_connections", "judge_timeout"}
    | {"served_judge", "judge_device"}
)
"""Settings that may differ between two calls, as they do not change what is said of an answer."""


@dataclass(frozen=True)
class JudgeConfig(JudgeSettings):
    """Judge the answers of runs or files. The same command again judges only what has no verdict yet, or failed."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional, NAMES_MODELS]
    """Run folders, or CSV and JSONL files with a question and a response column, whose scores go to NAME.judged.csv."""
    metrics: tuple[str, ...] = ("aligned", "coherent")
    """What to score, of the metrics that the prompts have. Rates need aligned and coherent."""
    repeats: Annotated[int, AtLeast1] = 1
    """How often each answer is judged; 3 shows the judge's own noise (emorg agree RUN)."""
    output: Path | None = None
    """Where a file's scores go. Default: NAME.judged.csv beside it, unless another judge's are there."""
    dry_run: bool = False
    """Only say how many calls there are to make and what they cost."""

    def check(self) -> None:
        """Raise EmorgError for settings that cannot be."""
        super().check()
        if self.output is not None and len(self.sources) != 1:
            raise EmorgError(f"--output, but {len(self.sources)} sources", "judge one file at a time with it")
        if len(set(self.metrics)) < len(self.metrics) or not self.metrics:
            raise EmorgError(f"--metrics {' '.join(self.metrics)}", "name each metric once")
