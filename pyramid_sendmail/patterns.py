"""Regular expressions that are compiled when they are first used.

Python takes longer to compile one than to import a module, and most are for mail that a process may
never see.
"""

from __future__ import annotations

import re
from typing import Any, AnyStr, cast

__all__ = ['pattern']


def pattern(text: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]:
    """Return what is as good as ``re.compile(text, flags)``, and as fast from its second use on."""
    return cast('re.Pattern[AnyStr]', _Pattern(text, flags))


class _Pattern:
    def __init__(self, text: Any, flags: int) -> None:
        self.pattern = text
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        # Called for a method that was not asked for before.
        found = getattr(re.compile(self.pattern, self._flags), name)
        setattr(self, name, found)
        return found
