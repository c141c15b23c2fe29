"""Texts that lie in one row of tokens, none padded, and how attention takes them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIKE = 0.8  # of the longest's length: shorter texts are not padded to it


@dataclass(frozen=True)
class Packing:
    """Where texts stand in a row of T tokens; a token may be of several, and is then read from the last one's place.

    Texts of like length are a group, padded on the right, where causal attention does not look: so none needs a mask.
    """

    groups: tuple[Tensor, ...]
    """For each group [texts, longest]: which token stands at each place, any one beyond a text's end."""
    padding: tuple[Tensor, ...]
    """For each group, the places beyond a text's end, counted through."""
    slots: Tensor
    """For each of the T tokens its place among all groups' places, counted through."""

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], device: torch.device) -> Packing:
        """Each text is its tokens' positions in the row."""
        alike = ALIKE if device.type == "cpu" else 0.0  # a GPU waits longer for launches than for padding
        together: list[list[Sequence[int]]] = []
        for text in sorted(texts, key=len, reverse=True):
            if not together or len(text) < alike * len(together[-1][0]):
                together.append([])
            together[-1].append(text)
        slots = [0] * (1 + max(text[-1] for text in texts))
        groups, padding, start = [], [], 0
        for group in together:
            longest = len(group[0])
            padding.append([i * longest + j for i, text in enumerate(group) for j in range(len(text), longest)])
            for text in group:
                for j, token in enumerate(text):
                    slots[token] = start + j
                start += longest
            groups.append([[*text, *[text[0]] * (longest - len(text))] for text in group])
        return cls(
            tuple(torch.tensor(group, device=device) for group in groups),
            tuple(torch.tensor(some, dtype=torch.long, device=device) for some in padding),
            torch.tensor(slots, device=device),
        )

    def apart(self, x: Tensor) -> list[Tensor]:
        """Of x [T, …] every group's texts side by side, [texts, longest, …]."""
        return [x[group] for group in self.groups]

    def together(self, parts: Sequence[Tensor]) -> Tensor:
        """What `apart` took apart, [T, …]."""
        return torch.cat([part.flatten(0, 1) for part in parts])[self.slots]
