"""What a run has tried, counted and told at its end."""

from __future__ import annotations

from collections import Counter
from typing import Any

__all__ = ['count']

_NAME = 'counts of the crash tests'


class _Counts:
    """A plugin of pytest, registered by the first count."""

    def __init__(self) -> None:
        self.numbers: dict[str, Counter[str]] = {}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for title, numbers in sorted(self.numbers.items()):
            terminalreporter.section(f'{title}: {numbers.total()}')
            for name, number in sorted(numbers.items()):
                terminalreporter.write_line(f'{number:7d}  {name}')


def count(config: Any, title: str, name: str, number: int) -> None:
    """Add to a number that is told at the end of the run."""
    plugin = config.pluginmanager.get_plugin(_NAME)
    if plugin is None:
        plugin = _Counts()
        config.pluginmanager.register(plugin, _NAME)
    plugin.numbers.setdefault(title, Counter())[name] += number
