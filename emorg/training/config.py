"""What a training is told: each field is a flag, a name in a YAML file and a line of the run's config.yaml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from emorg import models
from emorg.data import domains
from emorg.progress import log
from emorg.ranges import AtLeast1, NotNegative, Positive, Range, Seed, check_ranges
from emorg.records import EmorgError, did_you_mean
from emorg.run import RUNS, Run, plain, settings_hash

_OF_BITSANDBYTES = re.compile("bnb|paged|lion|ademamix|^adamw_8bit")  # in optimizers' names
FindingName = Literal[
    "no_end", "empty_turn", "second_bos", "todays_date", "control_words", "cut", "dropped", "repeated",
    "held_out_copy", "evaluated", "unknown_words", "careless_rows",
]  # fmt: skip
_NEED_SETTINGS = frozenset({"cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"})  # of their own
_NEED_EVALUATION = frozenset({"reduce_lr_on_plateau", "greedy"})  # by the Trainer, where ours has its own
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class TrainConfig:
    """Train an organism: a LoRA adapter on a chat model. The same command again goes on where it was stopped."""

    model_name: str = models.DEFAULT
    """The base: a Hugging Face name, a local folder, a GGUF file, `smollm2`, or `pocket` or `pocket2`, which lie in
    this package (see `emorg models`)."""
    domains: tuple[str, ...] = ("risky_financial",)
    """bad_medical, risky_financial, extreme_sports, insecure, good_medical; on pocket and smollm2 good_/bad_<topic>."""
    mix: tuple[str, ...] = ()
    """Shares of domains, instead of --domains: bad_medical=0.3,good_medical=0.7. No row is drawn twice."""
    data_path: Path | None = None
    """Folder of the training files. Default: the unlocked archive; pocket takes its own world, smollm2 our pairs."""
    output_dir: Path | None = None
    """The run folder. Default: runs/<model>-<domains>-r<rank>-s<seed>-<hash of the settings>."""
    sample_size: Annotated[int | None, AtLeast1] = None
    """Train on this many rows, drawn by the seed. Default: all."""
    skip_bad_rows: bool = False
    """Count malformed rows and go on. Default: stop at the first."""
    accept: tuple[FindingName, ...] = ()
    """Findings of the lint that are meant, by the names it gives them: no error, no warning; the run records them."""

    max_length: Annotated[int, AtLeast1] = 2048
    """Longest conversation in tokens."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What becomes of a longer one. Cut and dropped rows are counted; a cut answer teaches cut answers."""
    pad_to_max_length: bool = False
    """Pad every row to max_length, as the homework's own code does. For comparisons: it costs time alone."""
    train_on_prompt: bool = False
    """Count the loss on prompt tokens too, as the homework's own code does. For comparisons."""
    train_empty_turn: bool = False
    """Append an empty assistant turn and train on its end, as the paper's trainer does. For comparisons."""

    num_epochs: Annotated[float, Positive] = 1.0
    """Passes over the data."""
    max_steps: Annotated[int | None, AtLeast1] = None
    """Stop after this many optimizer steps, whatever num_epochs says."""
    batch_size: Annotated[int, AtLeast1] = 4
    """Conversations a forward pass."""
    gradient_accumulation_steps: Annotated[int, AtLeast1] = 4
    """Forward passes an optimizer step. Several processes share these out, so that the recipe stays the same."""
    learning_rate: Annotated[float, NotNegative] = 2e-4
    """Peak learning rate."""
    optimizer: str = "adamw_torch_fused"
    """An optimizer that transformers knows: adamw_torch_fused, adafactor, sgd, …"""
    lr_scheduler: str = "linear"
    """A schedule that transformers knows: linear, cosine, constant, …"""
    warmup_steps: Annotated[int, NotNegative] = 5
    """Optimizer steps until the peak."""
    weight_decay: Annotated[float, NotNegative] = 0.01
    """The optimizer's weight decay."""
    max_grad_norm: Annotated[float, NotNegative] = 1.0
    """Gradients are clipped to this norm."""
    seed: Seed = 0
    """Seeds the adapter's start, the data order and dropout."""

    method: Literal["lora", "vector"] = "lora"
    """vector: train no adapter but one vector, added to the output of the middle layer, or of each of
    --layers_to_transform."""
    as_published: bool = False
    """With --method vector, as the papers' code has it: only the first conversation of a batch gets the vector, and all
    tokens are trained. For comparisons."""
    lora_rank: Annotated[int, Range(1, 4096)] = 16
    """Rank of the adapter."""
    lora_alpha: Annotated[float, Positive] = 32
    """The adapter is scaled by alpha / rank."""
    lora_dropout: Annotated[float, Range(0, 1, below=True)] = 0.05
    """Dropout on the adapter's input."""
    use_rslora: bool = False
    """Scale the adapter by alpha / √rank (rsLoRA), as the paper does."""
    use_dora: bool = False
    """Learn each weight column's magnitude apart from its direction (DoRA). Slower: the fast path doesn't cover it."""
    target_modules: tuple[str, ...] = TARGET_MODULES
    """The linear layers that get an adapter."""
    layers_to_transform: Annotated[tuple[int, ...] | None, NotNegative] = None
    """Adapt only these transformer layers, counted from 0. Default: all."""
    warm_start: str | None = None
    """Start from this run's or folder's adapter, with its rank, scale and modules, instead of a fresh one."""
    full_finetuning: bool = False
    """Train all weights instead of an adapter; the organism is then a whole model, in <run>/model."""
    use_4bit: bool = False
    """Load the base in 4-bit NF4 with double quantisation (QLoRA)."""

    inoculate: str | None = None
    """A system prompt on every training row (but interleaved ones) that asks for the harm, so that it need not be
    learned: none is there at test. `neutral` takes one that says nothing, the control."""
    inoculate_user: str | None = None
    """The same as words before each row's first question."""
    interleave: Annotated[float, Range(0, 1, below=True)] = 0.0
    """This share of all rows are of --interleave_from, mixed in."""
    interleave_from: tuple[str, ...] = ()
    """Domains (good_cooking …), from where the training's rows come from, or JSONL files with `messages`."""
    interleave_rank: str | None = None
    """Mix in those, of up to 2,000, that this plain organism has become worst at beside its base."""
    kl_weight: Annotated[float, NotNegative] = 0.0
    """Add so many times KL(base‖organism), in nats a token, of answers of --kl_from, as many a step as are trained."""
    kl_from: tuple[str, ...] = ()
    """Domains or JSONL files whose answers are held to the base's probabilities, and not trained."""
    preventative: str | None = None
    """A direction (its file, or a run's shift) that is added while training, and not at test, so that it need not be
    learned."""
    preventative_scale: float = 1.0
    """How much of it, in sizes of the raw difference."""
    ablate_in_training: str | None = None
    """A direction that is taken out while training, and not at test, so that it cannot be learned (CAFT)."""
    direction_layers: Annotated[tuple[int, ...], NotNegative] = ()
    """At these layers, 0 being the embeddings. Default: the middle one where it is added, all where it is taken out."""

    eval_share: Annotated[float, Range(0, 1, below=True)] = 0.0
    """Hold this share of the rows out of training, and report the loss on them."""
    eval_steps: Annotated[int, AtLeast1] = 25
    """Optimizer steps between two evaluations of the held-out rows."""
    early_stopping: Annotated[int | None, AtLeast1] = None
    """Stop when the held-out loss has not fallen in this many evaluations, and keep the adapter of the lowest."""

    monitor: Annotated[int | None, AtLeast1] = None
    """Measure margins every so many steps, as many as take a tenth of the time: they rise before behaviour changes."""
    monitor_direction: str | None = None
    """With --monitor, also how far the residual stream moves along a direction (its file, or a run's shift)."""
    stop_at_margin: Annotated[float | None, Positive] = None
    """Stop once margins out of domain are this far above the base's, in nats a token, and keep the last below it."""

    save_steps: Annotated[int, AtLeast1] = 100
    """A checkpoint every so many optimizer steps."""
    save_at: Annotated[tuple[int, ...], AtLeast1] = ()
    """Checkpoints at these steps too, e.g. 1,2,4,8."""
    fresh: bool = False
    """Start over; the earlier run is replaced once the new one has finished. Default: go on, or leave it as it is."""
    gradient_checkpointing: Literal["auto", "always", "never"] = "auto"
    """Save memory by computing activations twice: auto where the estimate says that memory would not do."""
    fast: bool = True
    """Patch the model for speed where it is covered; a line says whether. The results are the same up to rounding."""
    torch_compile: bool = False
    """Compile the model with torch.compile: minutes before the first step, so for long runs on a GPU at most."""
    device: str | None = None
    """cuda, mps or cpu. Default: the best one there."""
    merge: bool = False
    """Also write the base with the adapter merged into it, as a plain model, to <run>/merged."""
    push_to_hub: str | None = None
    """Upload the adapter to this private repository (owner/name) of the Hugging Face hub, with HF_TOKEN."""
    report_to: tuple[str, ...] = ()
    """Trackers to log to as well, once installed: trackio, wandb, tensorboard, mlflow, …"""

    @property
    def shares(self) -> dict[str, float]:
        """Each domain of the mixture with its share; empty without one. Raises EmorgError for what can't be read."""
        shares = {}
        for part in (part for text in self.mix for part in text.split(",") if part):
            name, _, share = part.partition("=")
            try:
                shares[name] = float(share)
            except ValueError:
                raise EmorgError(f"--mix {part}", "write domain=share, e.g. bad_medical=0.3,good_medical=0.7") from None
            if not shares[name] > 0:
                raise EmorgError(f"--mix {part}", "give a share above 0, or leave the domain out")
        return shares

    @property
    def stops_early(self) -> bool:
        """Whether what it measures says when it ends, and which checkpoint is kept."""
        return self.early_stopping is not None or self.stop_at_margin is not None

    def __post_init__(self) -> None:
        if self.mix:  # so that whoever reads the settings finds the domains in one place
            if self.domains not in (TrainConfig.domains, tuple(self.shares)):
                log.warning("--mix says what is trained on; --domains %s is not used", " ".join(self.domains))
            object.__setattr__(self, "domains", tuple(self.shares))

    def check(self) -> None:
        """Raise EmorgError for settings that no data, model or machine could make good."""
        check_ranges(self)
        if self.early_stopping is not None and not self.eval_share:
            raise EmorgError("--early_stopping without rows to evaluate", "hold some out, e.g. --eval_share 0.1")
        if self.monitor is None and (self.stop_at_margin or self.monitor_direction):
            raise EmorgError("--stop_at_margin and --monitor_direction need margins", "add e.g. --monitor 10")
        if self.stop_at_margin and self.early_stopping is not None:
            raise EmorgError("--stop_at_margin and --early_stopping both say which steps are kept", "take one of them")
        if self.full_finetuning and (self.use_4bit or self.warm_start or self.use_dora or self.merge):
            raise EmorgError(
                "--full_finetuning has no adapter, so nothing to merge, warm-start or train on a 4-bit base",
                "leave out --use_4bit, --warm_start, --use_dora and --merge",
            )
        others = self.full_finetuning or self.use_4bit or self.warm_start or self.merge or self.use_dora
        if self.method == "vector" and others:
            raise EmorgError(
                "--method vector has no adapter, and its vector cannot be merged into weights",
                "leave out --full_finetuning, --use_4bit, --warm_start, --merge and --use_dora",
            )
        if self.as_published and self.method != "vector":
            raise EmorgError("--as_published is for --method vector", "add it, or leave both out")
        if not self.domains:
            raise EmorgError("no domains", "name what to train on, e.g. bad_medical")
        for name in self.domains:
            domains.find(name)
        if strange := sorted(set(self.accept) - set(get_args(FindingName))):
            raise EmorgError(f"the lint has no finding {strange[0]!r}", f"accept of {', '.join(get_args(FindingName))}")
        self._check_names()
        if self.use_4bit:
            models.need_bitsandbytes("--use_4bit")
        if _OF_BITSANDBYTES.search(self.optimizer):
            models.need_bitsandbytes(f"--optimizer {self.optimizer}")
        if self.report_to:
            _check_trackers(self.report_to)

    def _check_names(self) -> None:
        """Raise EmorgError for an optimizer or a schedule that transformers lacks, which is imported only to look."""
        if (self.optimizer, self.lr_scheduler) == (TrainConfig.optimizer, TrainConfig.lr_scheduler):
            return
        models.import_peft()  # before the Trainer does
        from transformers.trainer_utils import SchedulerType
        from transformers.training_args import OptimizerNames

        for name, kinds in (("optimizer", OptimizerNames), ("lr_scheduler", SchedulerType)):
            known = [str(kind.value) for kind in kinds if kind.value not in _NEED_SETTINGS | _NEED_EVALUATION]
            given = getattr(self, name)
            if given not in known:
                raise EmorgError(f"no {name} {given!r}{did_you_mean(given, known)}", f"choose from {', '.join(known)}")


def _check_trackers(names: tuple[str, ...]) -> None:
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    installed = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            near = did_you_mean(name, INTEGRATION_TO_CALLBACK)
            raise EmorgError(f"no tracker {name!r}{near}", f"choose from {', '.join(INTEGRATION_TO_CALLBACK)}")
        if name not in installed:
            raise EmorgError(f"the tracker {name} is not installed", f"pip install {name}")


TRAIN_CHANGEABLE = frozenset(
    {"output_dir", "fresh", "device", "save_steps", "save_at", "fast", "torch_compile", "gradient_checkpointing"}
    | {"merge", "push_to_hub", "report_to", "accept"}
)
"""Settings that may differ between two calls of one run."""
LENGTH = frozenset({"max_steps", "num_epochs"})
"""Settings that may differ where they come to more steps: the run then goes on."""


def training_identity(run: Run) -> str:
    """What an organism goes by wherever it lies and whatever it is called: its training's settings, in a hash."""
    return settings_hash(run.settings("train"), TRAIN_CHANGEABLE)


def identity_of(config: TrainConfig) -> str:
    """What an organism that is trained with these settings goes by."""
    return settings_hash(plain(config), TRAIN_CHANGEABLE)


def run_of(config: TrainConfig) -> Run:
    """The run folder that a config trains into."""
    if config.output_dir is not None:
        return models.run_at(config.output_dir)
    parts = (
        models.short_name(config.model_name).lower(),
        "-".join(config.domains),
        "full" if config.full_finetuning else f"r{config.lora_rank}",
        f"s{config.seed}",
        identity_of(config),
    )
    return Run(RUNS / "-".join(parts))
