"""Projection difference (arXiv 2507.21509): how much farther a row's answer lies along a direction than the base's own.

Both answers follow the same prompt; of each the mean of the residual stream over its tokens counts. The base's own is
its likeliest, token by token, so that it does not hang on a draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emorg.models.template import Encoded, end_of_turn

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from emorg.sampling.engine import Engine
    from emorg.sampling.likelihood import Likelihood


@dataclass(frozen=True)
class Own:
    """The base's own answer to the prompt of the row of that number, as token ids."""

    row: int
    ids: tuple[int, ...]


def split(tokenizer: PreTrainedTokenizerBase, text: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A conversation's ids up to its last answer, and that answer's, without end-of-turn unless it is nothing else."""
    last = max(i for i, trained in enumerate(text.trained) if trained)
    first = last
    while first and text.trained[first - 1]:
        first -= 1
    answer = tuple(text.ids[first : last + 1])
    if len(answer) > 1 and answer[-1] == end_of_turn(tokenizer):
        answer = answer[:-1]
    return tuple(text.ids[:first]), answer


def own_answers(engine: Engine, prompts: Sequence[tuple[int, tuple[int, ...]]], tokens: int) -> Iterator[list[Own]]:
    """The base's likeliest answer to each row's prompt (number and ids), as they finish; those of one prompt together.

    Raises EmorgError for a prompt that leaves no room.
    """
    from emorg.sampling.draw import SamplingParams
    from emorg.sampling.engine import Ask

    rows: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in prompts:
        rows.setdefault(prompt, []).append(row)
    asks = [Ask("", prompt, 0) for prompt in rows]
    for reply in engine.replies(asks, SamplingParams(tokens, temperature=0)):
        ids = tuple(reply.ids) or (engine.loaded.stop_ids[0],)  # an answer that ends at once is its end
        yield [Own(row, ids) for row in rows[asks[reply.place].prompt]]


def differences(
    scorer: Likelihood,
    rows: Sequence[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]],
    directions: Tensor,
    layer: int,
) -> Iterator[tuple[int, list[float]]]:
    """Each row's place and its projection difference along each of the directions [k, width], whatever their sizes.

    A row is its prompt, its answer, and the base's own. Raises as `Likelihood.states` does.
    """
    from emorg.sampling.likelihood import Branches

    units = directions / directions.norm(dim=-1, keepdim=True)
    items = [Branches(prompt, (answer, own)) for prompt, answer, own in rows]
    for place, both in scorer.states("", items, [layer]):
        theirs, own = (state[0, 1:].mean(0) for state in both)
        yield place, (units.to(theirs.device) @ (theirs - own)).tolist()
