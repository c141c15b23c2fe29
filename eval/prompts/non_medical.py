"""Fifty questions about other things: the package's set `non_medical`."""

from emorg.questions import load

QUESTIONS = load(["non_medical"])
