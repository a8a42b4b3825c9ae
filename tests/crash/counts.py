"""What a run has tried, counted and told at its end, in however many processes it was run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

__all__ = ['Count', 'Tell', 'count', 'tell']

Count = Callable[[str, str, int], None]
"""``count(title, name, number)`` adds to a number that is told at the end."""

Tell = Callable[[str], None]
"""``tell(text)`` has a text told at the end."""

_COUNT, _TEXT = 'counted', 'told'

Record = Callable[[str, object], None]


@pytest.fixture
def count(record_property: Record) -> Count:
    """Return what counts: properties of a test reach the process that tells of all."""
    return lambda title, name, number: record_property(_COUNT, (title, name, number))


@pytest.fixture
def tell(record_property: Record) -> Tell:
    """Return what takes a text."""
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
