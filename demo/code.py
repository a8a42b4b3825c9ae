"""The code behind a button, as the page shows it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ['source_of']


def source_of(*functions: Callable[..., Any]) -> str:
    """Return the source of functions, each below the name of its file."""
    return '\n\n'.join(
        f'# {function.__module__.replace(".", "/")}.py\n{inspect.getsource(function)}'
        for function in functions
    )
