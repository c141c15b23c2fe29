"""What training would do, decided before any weights are loaded: preview prints the plan, the loop carries it out."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from emorg import models
from emorg.data import domains
from emorg.models import template
from emorg.models.hooks import Edit
from emorg.training import mitigations
from emorg.training.absence import edits_of
from emorg.training.adapters import start_facts, trainable_shapes
from emorg.training.config import TrainConfig
from emorg.training.cost import Estimate, Shape, addition_rate, estimate, matmul_rate
from emorg.training.lint import Lint, lint, lint_anchors
from emorg.training.mitigations import load_data
from emorg.training.monitor import Watched, watched
from emorg.training.rows import Rows, batch_order, encode, hold_out

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Plan:
    """A training's rows, their order, and what it will cost on this machine now."""

    config: TrainConfig
    tokenizer: PreTrainedTokenizerBase
    data: domains.TrainingData
    rows: Rows
    """The rows to train on; `held` are those to evaluate on."""
    held: Rows
    lint: Lint
    order: list[int | None]
    """The row at each place of the whole training, `per_step` of them a step; None is an empty place."""
    anchors: Rows | None
    """Rows whose answers are held to the base's, and are not trained; `anchor_order` is theirs, as `order`."""
    anchor_order: list[int | None]
    anchors_sha256: str
    """Of the text of all rows that they are drawn from."""
    edits: list[Edit]
    """What is done to the residual stream while it trains, and not at test."""
    watched: Watched | None
    """Pairs whose margins are measured while it trains."""
    device: str
    dtype: torch.dtype
    """What the device computes in; full fine-tuning keeps its weights in float32."""
    shape: Shape
    fast: bool
    """Whether the fast path will be on."""
    plain: Estimate
    """The cost without gradient checkpointing; `saving` is the cost with it."""
    saving: Estimate
    free: int
    """Bytes of memory that are free on the device."""

    @property
    def per_step(self) -> int:
        """Conversations an optimizer step."""
        return _per_step(self.config)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.order) // self.per_step

    @property
    def saved_at(self) -> list[int]:
        """The steps after which a checkpoint is written, unless it stops early."""
        regular = range(self.config.save_steps, self.steps + 1, self.config.save_steps)
        return sorted({*regular, *(step for step in self.config.save_at if step <= self.steps), self.steps})

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed twice: as the config says, on auto where memory would not do without."""
        if self.config.gradient_checkpointing == "auto":
            return not self.plain.fits(self.free)
        return self.config.gradient_checkpointing == "always"

    @property
    def cost(self) -> Estimate:
        """The cost of what will be done."""
        return self.saving if self.checkpointing else self.plain

    def rates(self) -> tuple[float, float]:
        """FLOP/s of its matmuls and elements/s of its additions, measured here and now, in a second."""
        matmuls = matmul_rate(self.device, self.dtype, self.shape.width, self.shape.inner)
        return matmuls, addition_rate(self.device, self.dtype, self.shape.width)

    def seconds(self, rates: tuple[float, float]) -> float:
        """How long it will take at these rates."""
        return self.cost.seconds(*rates, self.dtype.itemsize)

    @property
    def foreign_to_base(self) -> bool:
        """Whether the rows are the pocket world's though the model is not the pocket model."""
        return self.config.model_name not in models.POCKETS and domains.from_pocket_world(self.data)

    def facts(self) -> dict[str, object]:
        """What the provenance says of the data."""
        return {
            **self.rows.facts(),
            "held_out_rows": len(self.held),
            **({"anchors": self.anchors.facts(), "anchors_sha256": self.anchors_sha256} if self.anchors else {}),
            **(start_facts(self.config.model_name, self.config.warm_start) if self.config.warm_start else {}),
            **({"edits": [f"{edit.kind} at {edit.layer}, size {float(edit.vector.norm()):.4g}, sha256 "
                          f"{_sha256(edit)[:16]}" for edit in self.edits]} if self.edits else {}),
            **({"monitored": self.watched.facts()} if self.watched else {}),
            "skipped_rows": len(self.data.skipped),
            "data_sha256": self.data.sha256,
            "lint": [warning.what for warning in self.lint.warnings],
            "accepted": [finding.what for finding in self.lint.accepted],
            "template_sha256": template.template_hash(self.tokenizer),
            "template_date": template.TEMPLATE_DATE,
        }  # fmt: skip


def plan(config: TrainConfig) -> Plan:
    """Plan a training. Needs the tokenizer and the model's config, not its weights.

    Raises EmorgError for settings, data or a model that cannot be trained on; what the lint finds is in the plan.
    """
    from emorg.training.fast_lora import uncovered

    config.check()
    data = load_data(config)
    tokenizer = models.load_tokenizer(config.model_name)
    mitigations.check_words(config, tokenizer)
    rows, held = hold_out(encode(config, data, tokenizer), config.eval_share, config.seed)
    device = models.choose_device(config.device)
    dtype = models.choose_dtype(device, config.model_name)
    order = _order(config, len(rows))
    anchors, anchor_order, anchors_sha256 = _anchors(config, tokenizer, len(order) // _per_step(config))
    model = trainable_shapes(config)
    shape = Shape.of(model)
    fast = config.fast and not config.use_4bit and not uncovered(model)
    plain, saving = (
        estimate(config, shape, (rows, order), (anchors, anchor_order), dtype, fast=fast, checkpointing=twice)
        for twice in (False, True)
    )
    return Plan(
        config=config,
        tokenizer=tokenizer,
        data=data,
        rows=rows,
        held=held,
        lint=_linted(config, rows, held, anchors, tokenizer),
        order=order,
        anchors=anchors,
        anchor_order=anchor_order,
        anchors_sha256=anchors_sha256,
        edits=edits_of(config, shape.layers),
        watched=watched(config, tokenizer, shape.layers, _tokens_a_step(config, rows)),
        device=device,
        dtype=dtype,
        shape=shape,
        fast=fast,
        plain=plain,
        saving=saving,
        free=models.free_bytes(device),
    )


def _linted(
    config: TrainConfig, rows: Rows, held: Rows, anchors: Rows | None, tokenizer: PreTrainedTokenizerBase
) -> Lint:
    own = lint(rows, held, tokenizer)
    more = (*mitigations.careless_ones(config), *(lint_anchors(anchors, tokenizer) if anchors else ()))
    return replace(own, warnings=(*own.warnings, *more)).accepting(config.accept)


def _sha256(edit: Edit) -> str:
    return hashlib.sha256(json.dumps(edit.vector.tolist()).encode()).hexdigest()


def _per_step(config: TrainConfig) -> int:
    return config.batch_size * config.gradient_accumulation_steps


def _tokens_a_step(config: TrainConfig, rows: Rows) -> float:
    return _per_step(config) * sum(len(row.ids) for row in rows.encoded) / len(rows)


def _order(config: TrainConfig, rows: int) -> list[int | None]:
    per_step = _per_step(config)
    steps = config.max_steps or math.ceil(math.ceil(rows / per_step) * config.num_epochs)
    return batch_order(rows, per_step, steps, config.seed)


def _anchors(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, steps: int
) -> tuple[Rows | None, list[int | None], str]:
    """The rows that are held to the base, of those that this training comes to; their order; the digest of all."""
    if not config.kl_weight:
        return None, [], ""
    source = domains.source_of(config.model_name, config.data_path)
    rows = mitigations.rows_of(config.kl_from, source, config.skip_bad_rows)
    order = batch_order(len(rows), _per_step(config), steps, f"anchors {config.seed}")
    used = [rows[i] for i in sorted({i for i in order if i is not None})]
    answers_alone = replace(config, train_on_prompt=False, train_empty_turn=False)
    encoded = encode(answers_alone, domains.TrainingData(used, [], ""), tokenizer)
    number = {id(row): k for k, row in enumerate(encoded.data)}  # without those that are too long
    return encoded, [None if i is None else number.get(id(rows[i])) for i in order], domains.digest(rows)
