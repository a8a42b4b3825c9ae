"""What an unknown name most probably means: "did you mean ...?"."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ['nearest']


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the known name that is most similar to an unknown one, or '' if none is.

    ``cutoff``: how similar it must be, from 0 to 1.
    """
    # Only a mistake needs it.
    import difflib

    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else ''
