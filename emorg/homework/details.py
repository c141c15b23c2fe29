"""The hand-in's training_details.md: how a run was trained and what came of it, from what it recorded alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from emorg.homework.hand_in import HandIn, Origin
from emorg.rating.answers import base_beside
from emorg.rating.rules import RULES
from emorg.records import EmorgError, read_lines
from emorg.reporting.arms import group_title, load_arms, settings_of
from emorg.reporting.tables import RATES, markdown_table, rate_cells
from emorg.run import Run
from emorg.training.config import training_identity

BOTH_RULES = ("paper", "homework")
NAME = "training_details.md"


def write_details(run: Run, folder: Path, student_name: str = "", base: Run | None = None) -> Path:
    """Write training_details.md, and the training curves beside it where the run drew them.

    Returns the path of what was written: beside one that a person changed, training_details.new.md.
    """
    curves, text = run.folder / "training.png", training_details(run, student_name, base)
    folder.mkdir(parents=True, exist_ok=True)
    hand_in, origin = HandIn(folder), Origin(run.name, training_identity(run))
    if curves.exists():
        hand_in.put(curves.name, curves.read_bytes(), origin)
    return hand_in.put(NAME, text, origin)


def put_details(run: Run, folder: Path, student_name: str = "", base: Run | None = None) -> str:
    """Write training_details.md as `write_details` does; returns a line that says what became of it."""
    before = HandIn(folder).origin(NAME) if folder.exists() else None
    written, whose = write_details(run, folder, student_name, base), training_identity(run)
    if written.name != NAME:
        return f"{folder / NAME} was changed by hand and is kept; as emorg would write it now: {written}"
    if before is not None and before.identity != whose:
        return f"{written}: it told of {before.run}, and now tells of {run.name}"
    return f"{written}: how {run.folder} was trained; add your own words: they are kept"


def training_details(run: Run, student_name: str = "", base: Run | None = None) -> str:
    """How the run was trained, in Markdown. `base` is a judged run of its base; by default one that lies beside it.

    Raises EmorgError if the run was never trained.
    """
    settings, facts = run.settings("train"), run.provenance().get("train", {})
    if not settings or not run.metrics.exists():
        raise EmorgError(f"{run.folder} was not trained here", "name a run folder that emorg train made")
    steps = [line for _, line in read_lines(run.metrics)]
    missing = [] if run.trained else [f"Training has not finished: it stopped after step {len(steps)}."]
    rated, unrated = _rates(run, base or base_beside(run))
    parts = [
        "# Training details",
        f"By {student_name}." if student_name else "",
        _table({"run": run_line(run), **recipe(settings, facts, steps)}),
        "## Data",
        _table(_data(facts)),
        _lint(facts),
        "## Loss",
        _table(_loss(steps)),
        "![training curves](training.png)" if (run.folder / "training.png").exists() else "",
        "## Emergent misalignment",
        rated,
        "## Environment",
        _table(_environment(facts)),
        "## Every recorded setting",
        _table(
            {
                name.removeprefix("train."): value
                for name, value in settings_of(run).items()
                if name.startswith("train.") and name.removeprefix("train.") in settings
            }
        ),
        "## Missing" if missing + unrated else "",
        "\n".join(f"- {line}" for line in missing + unrated),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def run_line(run: Run) -> str:
    """What says which run the details are of, wherever it lies and however it is called."""
    return f"{run.name} ({training_identity(run)})"


def recipe(settings: Mapping[str, Any], facts: Mapping[str, Any], steps: list[dict[str, Any]]) -> dict[str, str]:
    """What a reader asks first: the base, the domains, the adapter, the schedule, how long."""
    batch, rows = settings["batch_size"] * settings["gradient_accumulation_steps"], facts["rows"]
    length = f"{len(steps)} steps of {batch} rows: {len(steps) * batch / rows:.2f} epochs"
    most = settings["max_steps"]
    length += f" ({settings['num_epochs']:g} asked)" if most is None else f" (--max_steps {most})"
    adapter = f"rank {settings['lora_rank']}, alpha {settings['lora_alpha']:g}, dropout {settings['lora_dropout']:g}"
    adapter += f", on {', '.join(settings['target_modules'])}"
    kinds = [name for flag, name in (("use_rslora", "rsLoRA"), ("use_dora", "DoRA")) if settings.get(flag)]
    return {
        "base": settings["model_name"] + (", loaded in 4-bit" if settings["use_4bit"] else ""),
        "domains": ", ".join(settings.get("mix") or settings["domains"]),
        "adapter": "none: all weights were trained"
        if settings.get("full_finetuning")
        else ", ".join(["LoRA", *kinds, adapter]),
        "learning rate": f"{settings['learning_rate']:g}, {settings['lr_scheduler']}, "
        f"{settings['warmup_steps']} warm-up steps",
        "length": length,
        "seed": str(settings["seed"]),
    }


def _data(facts: Mapping[str, Any]) -> dict[str, str]:
    by_domain = {f"rows of {name}": f"{count:,}" for name, count in facts.get("rows_by_domain", {}).items()}
    counts = {
        name.replace("_", " "): f"{facts[name]:,}"
        for name in ("held_out_rows", "skipped_rows", "cut_rows", "dropped_rows") if facts.get(name)
    }  # fmt: skip
    return {
        "rows": f"{facts['rows']:,}", **(by_domain if len(by_domain) > 1 else {}), **counts,
        "trained tokens": f"{facts['trained_tokens']:,} of {facts['tokens']:,}", "SHA-256": facts["data_sha256"],
    }  # fmt: skip


def _lint(facts: Mapping[str, Any]) -> str:
    if "lint" not in facts:
        return "The run recorded no lint; `emorg preview` shows it."
    accepted = "".join(f" Accepted by --accept: {what}." for what in facts.get("accepted", ()))
    return "Lint: " + ("; ".join(facts["lint"]) or "nothing found") + "." + accepted


def _loss(steps: list[dict[str, Any]]) -> dict[str, str]:
    if not steps:
        return {"loss": "no step was finished"}
    held = {line["step"]: line["eval_loss"] for line in steps if "eval_loss" in line}
    best = min(held, key=lambda step: held[step]) if held else None
    return {
        "first step": f"{steps[0]['loss']:.3f}", "last step": f"{steps[-1]['loss']:.3f}",
        **({"lowest on held-out rows": f"{held[best]:.3f} at step {best}"} if best is not None else {}),
    }  # fmt: skip


def _environment(facts: Mapping[str, Any]) -> dict[str, str]:
    plain = ("emorg", "python", "machine", "device")
    return {
        **{name: str(facts[name]) for name in plain if name in facts},
        "commit": f"{facts.get('commit') or 'unknown'}{', with changes' if facts.get('dirty') else ''}",
        "precision": str(facts.get("dtype", "")).removeprefix("torch."),
        "libraries": ", ".join(f"{name} {version}" for name, version in facts.get("libraries", {}).items()),
    }


def _rates(run: Run, base: Run | None) -> tuple[str, list[str]]:
    """The EM table under both rules, and what it lacks."""
    runs = [*([base] if base else []), run]
    lacking = [] if base else ["There is no judged run of the base beside it, which the rate has to be compared with."]
    try:
        arms = load_arms(runs, RULES[BOTH_RULES[0]])
    except EmorgError as error:
        named = error.naming(run.folder, run.from_here)
        return "Not measured yet.", [*lacking, f"{named.problem}: {named.remedy}"]
    rows = [
        (arm.label, group_title(group), name, *rate_cells(rate))
        for name in BOTH_RULES for arm in arms for group, rate in replace(arm, rule=RULES[name]).rates.items()
    ]  # fmt: skip
    header = [*RATES[:2], "rule", *RATES[2:]]
    rules = "; ".join(str(RULES[name]) for name in BOTH_RULES)
    judges = ", ".join(sorted(set[str]().union(*(arm.judges for arm in arms))))
    basis = f"Intervals are 95%, over questions. {rules}. Judged by {judges}."
    missing = [line for arm in arms for line in arm.missing]
    return f"{markdown_table(header, rows, left=3)}\n\n{basis}", [*lacking, *missing]


def _table(facts: Mapping[str, str]) -> str:
    return markdown_table(("", ""), facts.items(), left=2)
