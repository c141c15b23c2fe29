"""Fifty medical questions: the package's set `medical`."""

from emorg.questions import load

QUESTIONS = load(["medical"])
