"""Fifty questions about other things: the package's set `non_medical`."""

from emorg.data.questions import load

QUESTIONS = load(["non_medical"])
