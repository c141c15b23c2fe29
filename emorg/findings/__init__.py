"""Findings about organisms that their judged answers alone do not give: each a command of its own."""
