"""The transaction protocol: mail is put into the queue if and only if its transaction commits.

=================================== ===========================================================
call                                what happens
=================================== ===========================================================
``tpc_vote``                        the envelopes are stored, not yet to be claimed; an error
                                    votes no, before a one-phase database has committed
``tpc_finish``                      they are published
``abort``, ``tpc_abort`` before     what was stored is removed
everybody has voted
``tpc_abort`` after everybody has   in doubt: kept, for nobody can tell whether the other
voted and before our finish         resources committed
``tpc_abort`` after our finish has  the publishing is completed
begun
=================================== ===========================================================

``tpc_finish``, ``abort`` and ``tpc_abort`` never raise an Exception, and may come in any order,
any number of times: ``transaction`` calls ``abort`` on finished managers wherever somebody has
added an after-commit hook.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from transaction.interfaces import IDataManagerSavepoint, ISavepointDataManager, NoTransaction
from zope.interface import implementer

from .envelope import Envelope
from .exceptions import NoActiveTransaction
from .interfaces import IMailQueue

__all__ = ['MailDataManager', 'active_transaction', 'join']

log = logging.getLogger(__name__)

_counter = count()
_OPEN = ('ACTIVE', 'DOOMED')


def active_transaction(tm: Any, environ: Mapping[str, Any] | None = None) -> Any:
    """The transaction that somebody has begun in the manager, without beginning one.

    Raises NoActiveTransaction where there is none, or where it takes nothing any more. A
    transaction that other code began implicitly cannot be told from one that was begun.
    """
    manager = getattr(tm, 'manager', tm)
    begun = getattr(manager, '_txn', manager) is not None
    if not begun and not (environ and environ.get('tm.active')):
        raise NoActiveTransaction(
            'there is no active transaction that could send this mail with its commit: begin one '
            '(pyramid_tm does so for each request, "with request.tm:" elsewhere), or send at once '
            'with send_now()'
        )
    try:
        transaction = tm.get()
    except NoTransaction as error:
        raise NoActiveTransaction(
            'there is no active transaction that could send this mail with its commit: begin one '
            'with "with request.tm:", or send at once with send_now()'
        ) from error
    status = getattr(transaction.status, 'name', transaction.status)
    if status not in _OPEN:
        raise NoActiveTransaction(
            f'the transaction takes no mail any more ({status.lower()}), and nothing would ever '
            f'send it: call send before the commit begins, or send at once with send_now()'
        )
    return transaction


def join(
    transaction: Any,
    queue: IMailQueue,
    envelope: Envelope,
    *,
    voting: Callable[[], None],
    published: Callable[[Any, Any], None],
) -> None:
    """Add an envelope to the transaction's mail for this queue.

    ``voting`` is called in the vote and may raise; ``published(transaction, put)`` is called in
    finish.
    """
    try:
        manager = transaction.data(queue)
    except KeyError:
        manager = MailDataManager(queue, voting, published)
        transaction.set_data(queue, manager)
    manager.add(transaction, envelope)


@implementer(ISavepointDataManager)
class MailDataManager:
    """The mail of one transaction for one queue.

    Sorts after ZODB and two-phase databases, whose finish must come before ours, and before
    zope.sqlalchemy's one-phase manager (``~sqlalchemy:``), which commits in its vote.
    """

    transaction_manager = None

    def __init__(
        self,
        queue: IMailQueue,
        voting: Callable[[], None],
        published: Callable[[Any, Any], None],
    ) -> None:
        self._queue: Any = queue
        self._voting = voting
        self._published = published
        self._envelopes: list[Envelope] = []
        self._put: Any = None
        self._joined = False
        self._finishing = False
        self._key = f'~pyramid_sendmail:{next(_counter):012d}'
        self._last = LastVoter()

    def add(self, transaction: Any, envelope: Envelope) -> None:
        # A rollback to a savepoint from before the first mail has un-joined either manager.
        if not self._joined:
            transaction.join(self)
            self._joined = True
        if not self._last.joined:
            transaction.join(self._last)
            self._last.joined = True
        self._envelopes.append(envelope)

    def sortKey(self) -> str:
        return self._key

    def savepoint(self) -> Savepoint:
        return Savepoint(self._envelopes)

    def tpc_begin(self, transaction: Any) -> None:
        """Nothing is done before the vote."""

    def commit(self, transaction: Any) -> None:
        """Nothing is done before the vote."""

    def tpc_vote(self, transaction: Any) -> None:
        if self._envelopes:
            self._voting()
            self._put = self._queue.put(tuple(self._envelopes))

    def tpc_finish(self, transaction: Any) -> None:
        self._finishing = True
        self._finish(transaction)

    def _finish(self, transaction: Any) -> None:
        put = self._put
        if put is None:
            return
        put.publish()
        self._put = None
        try:
            self._published(transaction, put)
        except Exception:
            log.exception('mail was published, and its sending could not be started')

    def abort(self, transaction: Any) -> None:
        if self._finishing:
            return
        self._joined = False
        self._envelopes.clear()
        self._discard()

    def tpc_abort(self, transaction: Any) -> None:
        if self._finishing:
            self._finish(transaction)
        elif self._last.voted:
            put, self._put = self._put, None
            if put is not None:
                put.doubt()
        else:
            self.abort(transaction)

    def _discard(self) -> None:
        put, self._put = self._put, None
        if put is not None:
            put.discard()


@implementer(ISavepointDataManager)
class LastVoter:
    """Sorts last, so that its vote tells that everybody has voted."""

    transaction_manager = None

    def __init__(self) -> None:
        self.joined = False
        self.voted = False

    def sortKey(self) -> str:
        return f'{"~" * 16}pyramid_sendmail'

    def savepoint(self) -> Savepoint:
        return Savepoint([])

    def tpc_vote(self, transaction: Any) -> None:
        self.voted = True

    def abort(self, transaction: Any) -> None:
        self.joined = False

    def tpc_begin(self, transaction: Any) -> None:
        """Nothing to do."""

    commit = tpc_finish = tpc_abort = tpc_begin


@implementer(IDataManagerSavepoint)
class Savepoint:
    """The length of the list at its time."""

    def __init__(self, envelopes: list[Envelope]) -> None:
        self._envelopes = envelopes
        self._length = len(envelopes)

    def rollback(self) -> None:
        del self._envelopes[self._length :]
