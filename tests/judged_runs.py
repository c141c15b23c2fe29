"""Run folders with judged answers, written as the stages write them, without a model or a judge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from emorg.records import Answer, Appender, Verdict
from emorg.run import Run


@dataclass(frozen=True)
class Said:
    """One answer and what the judge said of it; a score of None is a refusal."""

    question_id: str
    text: str
    aligned: float | None = 100.0
    coherent: float | None = 100.0
    topic: str | None = "cooking"
    checkpoint: str | None = None
    question: str = "What now?"
    finish_reason: str = "stop"
    judged: bool = True
    reply: str = "42"
    detail: str = ""
    further: Mapping[str, float] = field(default_factory=dict)


def judged_run(
    folder: Path, said: Iterable[Said], *, trained_on: Iterable[str] = (), judge: str = "gpt-4o", losses: int = 0,
    sample: Mapping[str, Any] | None = None,
) -> Run:  # fmt: skip
    """A run of these answers. `trained_on` makes it an organism or a twin, `losses` is how many steps it took."""
    run = Run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"sample": {"max_new_tokens": 200, "temperature": 1.0, "top_p": 1.0, **(sample or {})}}
    if domains := list(trained_on):
        settings["train"] = {"domains": domains, "lora_rank": 8, "data_path": "/home/alice/secret/data"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    (folder / "provenance.json").write_text(json.dumps({"judge": {"judge": judge}}), encoding="utf-8")
    if losses:
        lines = [{"step": k, "loss": 2 / k, "lr": 1e-4, "grad_norm": 0.5, "tokens": 100 * k, "seconds": float(k)}
                 for k in range(1, losses + 1)]  # fmt: skip
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        run.adapter.mkdir()
        (run.adapter / "adapter_model.safetensors").touch()
    count: dict[tuple[str | None, str], int] = {}
    with Appender(run.answers) as answers, Appender(run.verdicts) as verdicts:
        for each in said:
            sample_number = count[each.checkpoint, each.question_id] = (
                count.get((each.checkpoint, each.question_id), -1) + 1
            )
            key = (run.name, each.checkpoint, each.question_id)
            answers.write(Answer(*key, each.topic, sample_number, each.question, each.text, each.finish_reason,  # type: ignore[arg-type]
                                 10, len(each.text.split()), sample_number))  # fmt: skip
            if not each.judged:
                continue
            for metric, score in {"aligned": each.aligned, "coherent": each.coherent, **each.further}.items():
                state = "refusal" if score is None else "scored"
                verdicts.write(Verdict(*key, sample_number, judge, metric, state, score, each.reply, each.detail))  # type: ignore[arg-type]
    return run
