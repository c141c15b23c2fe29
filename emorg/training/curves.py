"""The training-curve figure of a run: loss, learning rate, gradient norm and tokens a second, by step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from emorg.records import read_lines
from emorg.run import Run


def draw(run: Run) -> None:
    """Write training.png and training.svg from the run's metrics."""
    from matplotlib.figure import Figure

    lines = [line for _, line in read_lines(run.metrics)]
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    (loss, rate), (norm, speed) = panels
    loss.plot(steps, [line["loss"] for line in lines], color="#0072B2", lw=1, label="trained")
    if held := [line for line in lines if "eval_loss" in line]:
        loss.plot([line["step"] for line in held], [line["eval_loss"] for line in held], "o-", ms=4, color="#D55E00",
                  label="held out")  # fmt: skip
        loss.legend(frameon=False)
    rate.plot(steps, [line["lr"] for line in lines], color="#0072B2", lw=1)
    norm.plot(steps, [line["grad_norm"] for line in lines], color="#0072B2", lw=1)
    speed.plot(*_speeds(lines), color="#0072B2", lw=1)
    titles = ("loss, nats a trained token", "learning rate", "gradient norm, before clipping", "tokens a second")
    for panel, title in zip(panels.flat, titles, strict=True):
        panel.set_title(title, fontsize=10, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(bottom=0)
    for panel in panels[1]:
        panel.set_xlabel("optimizer step")
    figure.suptitle(run.title)
    for ending in ("png", "svg"):
        figure.savefig(run.folder / f"training.{ending}", dpi=120)


def _speeds(lines: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Tokens a second of each step; where a stopped run went on, its clock began anew."""
    speeds = {
        after["step"]: (after["tokens"] - before["tokens"]) / (after["seconds"] - before["seconds"])
        for before, after in pairwise(lines)
        if after["seconds"] > before["seconds"]
    }
    return list(speeds), list(speeds.values())
