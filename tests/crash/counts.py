"""Counts of what a run has tried, printed at its end, from however many processes ran it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

__all__ = ['Count', 'Tell', 'count', 'tell']

Count = Callable[[str, str, int], None]
"""``count(title, name, number)`` adds to a number that is printed at the end."""

Tell = Callable[[str], None]
"""``tell(text)`` prints a text at the end."""

_COUNT, _TEXT = 'counted', 'text'

Record = Callable[[str, object], None]


@pytest.fixture
def count(record_property: Record) -> Count:
    """Return the function that counts. The properties of a test reach the process that prints."""
    return lambda title, name, number: record_property(_COUNT, (title, name, number))


@pytest.fixture
def tell(record_property: Record) -> Tell:
    """Return the function that keeps a text for the end."""
    return lambda text: record_property(_TEXT, text)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A hook of pytest."""
    numbers: dict[str, Counter[str]] = {}
    for what, value in _properties(terminalreporter.stats):
        if what == _COUNT:
            title, name, number = value
            numbers.setdefault(title, Counter())[name] += number
        elif what == _TEXT:
            terminalreporter.write_line(value)
    for title, counts in sorted(numbers.items()):
        terminalreporter.section(f'{title}: {counts.total()}')
        for name, number in sorted(counts.items()):
            terminalreporter.write_line(f'{number:7d}  {name}')


def _properties(stats: dict[str, list[Any]]) -> Iterator[tuple[str, Any]]:
    for reports in stats.values():
        for report in reports:
            if getattr(report, 'when', '') == 'call':
                yield from report.user_properties
