"""Fifty medical questions: the package's set `medical`."""

from emorg.data.questions import load

QUESTIONS = load(["medical"])
