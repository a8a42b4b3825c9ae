"""Lengths of time in words, for the log and the terminal."""

from __future__ import annotations

__all__ = ['span_text']


def span_text(seconds: float) -> str:
    """Return a length of time in words, as '12 min'."""
    for unit, size in (('d', 86_400), ('h', 3_600), ('min', 60)):
        if seconds >= 2 * size:
            return f'{seconds / size:.0f} {unit}'
    return f'{max(seconds, 0.0):.0f} s'
