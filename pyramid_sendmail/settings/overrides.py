"""Settings that a command line gives while it loads the application: they win over its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ['current_overrides', 'is_processor_loading', 'overriding']

_overrides: ContextVar[Mapping[str, str] | None] = ContextVar('mail settings', default=None)


@contextmanager
def overriding(settings: Mapping[str, str]) -> Iterator[None]:
    """Have the applications that are loaded meanwhile take these settings, by their names.

    An application reads its settings when it includes the package, far below the program that
    loads it: no argument leads there.
    """
    token = _overrides.set(settings)
    try:
        yield
    finally:
        _overrides.reset(token)


def current_overrides() -> Mapping[str, str]:
    """Return the settings of the ``overriding`` that is in force."""
    return _overrides.get() or {}


def is_processor_loading() -> bool:
    """Return whether ``psendmail-qp`` loads the application: it looks at the queue itself, and ends
    with a status of its own where the queue cannot be used."""
    return _overrides.get() is not None
