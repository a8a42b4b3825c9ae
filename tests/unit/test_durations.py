"""Lengths of time in words."""

from __future__ import annotations

import pytest

from pyramid_sendmail.durations import span_text


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(-1, '0 s'), (119, '119 s'), (120, '2 min'), (7199, '120 min'), (7200, '2 h'), (3e5, '3 d')],
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    """Whole numbers, of the largest unit of which there are two."""
    assert span_text(seconds) == text
