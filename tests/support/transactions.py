"""Data managers that take part in a transaction beside ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pyramid_sendmail import Message

__all__ = ['AFTER', 'BEFORE', 'OtherManager', 'SavingManager', 'message']

BEFORE, AFTER = 'a database', '~sqlalchemy:1'
"""Keys that sort before and after the key of our data manager."""


def message(subject: str = 'Hello', to: Any = 'ann@example.org') -> Message:
    """Return a small valid message."""
    return Message(subject=subject, to=to, text='Hi', sender='shop@example.org')


class OtherManager:
    """A data manager that records its steps, and raises in those that ``fails`` names.

    The steps are begin, commit, vote, finish, abort and tpc_abort. Before a step raises,
    ``on_step(manager, step)`` is called, and the function given for the step: ``vote=check``.
    """

    transaction_manager = None

    def __init__(
        self,
        key: str,
        fails: str | Iterable[str] = (),
        error: type[BaseException] = RuntimeError,
        *,
        calls: list[str] | None = None,
        on_step: Callable[[Any, str], object] | None = None,
        **hooks: Callable[[], object],
    ) -> None:
        self.key = key
        self.fails = frozenset([fails] if isinstance(fails, str) else fails)
        self.error = error
        self.calls = [] if calls is None else calls
        self._on_step = on_step
        self._hooks = hooks

    def sortKey(self) -> str:
        return self.key

    def _step(self, name: str) -> None:
        self.calls.append(f'{self.key} {name}')
        if self._on_step is not None:
            self._on_step(self, name)
        if name in self._hooks:
            self._hooks[name]()
        if name in self.fails:
            raise self.error(f'{self.key} fails in {name}')

    def tpc_begin(self, transaction: Any) -> None:
        self._step('begin')

    def commit(self, transaction: Any) -> None:
        self._step('commit')

    def tpc_vote(self, transaction: Any) -> None:
        self._step('vote')

    def tpc_finish(self, transaction: Any) -> None:
        self._step('finish')

    def abort(self, transaction: Any) -> None:
        self._step('abort')

    def tpc_abort(self, transaction: Any) -> None:
        self._step('tpc_abort')


class SavingManager(OtherManager):
    """A data manager that has savepoints."""

    def savepoint(self) -> SavingManager:
        self._step('savepoint')
        return self

    def rollback(self) -> None:
        """Do nothing: it has no state."""
