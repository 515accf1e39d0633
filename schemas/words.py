"""The word that somebody probably meant."""

import difflib


def nearest(word: str, allowed: list[str]) -> str | None:
    """The allowed word that `word` was probably meant to be."""
    found = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return found[0] if found else None
