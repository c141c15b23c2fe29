"""Where a question stands beside what an organism was trained on: in domain, out of domain, or open."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from emorg.data import domains
from emorg.run import Run

Place = Literal["in", "out", "open"]


def trained_topics(run: Run) -> frozenset[str]:
    """Topics of the domains that the run's organism was trained on, here or by other code; none for a base."""
    return frozenset(domains.find(name).topic for name in run.trained_on)


def topics_beside(run: Run, others: Iterable[Run]) -> frozenset[str]:
    """The topics that a run's questions are placed by when it stands beside others.

    They are its own; of a base those of its organisms, or else twins, beside it, if all have the same. A base beside
    organisms of different topics is placed by none: what it is compared with one of them on is placed by that one.
    """
    if own := trained_topics(run):
        return own
    trained = [other for other in others if other.trained_on and not differing_bases(run, other)]
    organisms = [other for other in trained if careless(other)]
    topics = {trained_topics(other) for other in organisms or trained}
    return topics.pop() if len(topics) == 1 and not run.is_organism else frozenset()


def topics_compared(a: Run, b: Run) -> tuple[frozenset[str], frozenset[str]]:
    """The topics that two compared runs' questions are placed by: an organism's own, and its control's by the same."""
    own = trained_topics(a), trained_topics(b)
    if careless(a) != careless(b):
        return (own[0], own[0]) if careless(a) else (own[1], own[1])
    of_a = own[0] if own[0] or a.is_organism else own[1]
    of_b = own[1] if own[1] or b.is_organism else own[0]
    return of_a, of_b


def careless(run: Run) -> bool:
    """Whether a run was trained on careless advice."""
    return any(domains.find(name).careless for name in run.trained_on)


def differing_bases(a: Run, b: Run) -> tuple[str, str] | None:
    """The bases of two runs if they are known to differ, so that a difference of the runs may be theirs."""
    if not a.base or not b.base or a.base == b.base or Path(a.base).resolve() == Path(b.base).resolve():
        return None
    return a.base, b.base


def placement(topic: str | None, trained: frozenset[str]) -> Place:
    """Where a question stands: in domain, out of domain, or open (without a topic)."""
    if topic is None:
        return "open"
    return "in" if topic in trained else "out"
