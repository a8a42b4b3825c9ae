"""The transaction protocol: mail is put into the queue if and only if its transaction commits.

=================================== ===========================================================
call                                what happens
=================================== ===========================================================
``tpc_vote``                        the envelopes are stored, not yet to be claimed; an error
                                    votes no, before a one-phase database has committed
``tpc_finish``                      they are published
``abort``, ``tpc_abort`` before     what was stored is removed
everybody has voted
the same after everybody has voted  in doubt: kept, for nobody can tell whether the other
and before our finish               resources committed
the same after our finish has begun the publishing is completed
=================================== ===========================================================

``tpc_finish``, ``abort`` and ``tpc_abort`` never raise an Exception, and may come in any order,
any number of times: ``transaction`` calls ``abort`` on finished managers wherever somebody has
added an after-commit hook.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import count
from typing import Any, Protocol

from transaction.interfaces import IDataManagerSavepoint, ISavepointDataManager, NoTransaction
from zope.interface import implementer

from ..envelope import Envelope
from ..exceptions import NoActiveTransaction
from ..interfaces import IMailQueue

__all__ = ['Committing', 'MailDataManager', 'active_transaction', 'join']

log = logging.getLogger(__name__)

_counter = count()
_OPEN = ('Active', 'Doomed')
_NONE = (
    'there is no active transaction that could send this mail with its commit: begin one '
    '(pyramid_tm does so for each request, "with request.tm:" elsewhere), or send at once with '
    'send_now()'
)


def active_transaction(tm: Any, environ: Mapping[str, Any] | None = None) -> Any:
    """The transaction that somebody has begun in the manager, without beginning one.

    Raises NoActiveTransaction where there is none, or where it takes nothing any more. A
    transaction that other code began implicitly cannot be told from one that was begun.
    """
    manager = getattr(tm, 'manager', tm)
    begun = getattr(manager, '_txn', manager) is not None
    if not begun and not (environ and environ.get('tm.active')):
        raise NoActiveTransaction(_NONE)
    try:
        transaction = tm.get()
    except NoTransaction as error:
        raise NoActiveTransaction(_NONE) from error
    status = str(getattr(transaction.status, 'value', transaction.status))
    if status not in _OPEN:
        raise NoActiveTransaction(
            f'the transaction takes no mail any more ({status.lower()}), and nothing would ever '
            f'send it: call send before the commit begins, or send at once with send_now()'
        )
    return transaction


class Committing(Protocol):
    """A delivery, as its transactions see it."""

    @property
    def queue(self) -> IMailQueue:
        """Where the mail is put."""

    def voting(self) -> None:
        """The vote: the last moment at which anything may raise."""

    def published(self, transaction: Any, put: Any) -> None:
        """The commit: the mail of an IStagedMail can be claimed; twice, after an interrupt."""

    def doubted(self) -> None:
        """The mail is in doubt, and kept."""


def join(transaction: Any, delivery: Committing, envelope: Envelope) -> None:
    """Add an envelope to the transaction's mail for this delivery."""
    try:
        manager = transaction.data(delivery)
    except KeyError:
        manager = MailDataManager(delivery)
        transaction.set_data(delivery, manager)
    manager.add(transaction, envelope)


@implementer(ISavepointDataManager)
class MailDataManager:
    """The mail of one transaction for one delivery.

    Sorts after ZODB and two-phase databases, whose finish must come before ours, and before
    zope.sqlalchemy's one-phase manager (``~sqlalchemy:``), which commits in its vote.
    """

    transaction_manager = None

    def __init__(self, delivery: Committing) -> None:
        self._delivery = delivery
        self._envelopes: list[Envelope] = []
        self._put: Any = None
        self._joined = False
        self._finishing = False
        self._key = f'~pyramid_sendmail:{next(_counter):012d}'
        self._last = LastVoter()

    def add(self, transaction: Any, envelope: Envelope) -> None:
        # A rollback to a savepoint from before the first mail has un-joined both.
        if not self._joined:
            transaction.join(self)
            transaction.join(self._last)
            self._joined = True
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
        # An interrupt in a failing savepoint may leave it joined twice: it votes once.
        if self._envelopes and self._put is None:
            self._delivery.voting()
            queue: Any = self._delivery.queue
            self._put = queue.put(tuple(self._envelopes))

    def tpc_finish(self, transaction: Any) -> None:
        self._finishing = True
        self._finish(transaction)

    def abort(self, transaction: Any) -> None:
        if self._finishing:
            self._finish(transaction)
            return
        self._joined = False
        self._envelopes.clear()
        if self._put is not None:
            self._drop()

    tpc_abort = abort

    # What was put is forgotten last: an interrupt before that leaves the rest to the next call.

    def _finish(self, transaction: Any) -> None:
        if self._put is None:
            return
        self._put.publish()
        try:
            self._delivery.published(transaction, self._put)
        except Exception:
            log.exception('mail was published, and its sending could not be started')
        self._put = None

    def _drop(self) -> None:
        if self._last.voted:
            self._put.keep_in_doubt()
            try:
                self._delivery.doubted()
            except Exception:
                log.exception('mail is in doubt, and nobody could be told')
        else:
            self._put.discard()
        self._put = None


@implementer(ISavepointDataManager)
class LastVoter:
    """Sorts last, so that its vote tells that everybody has voted."""

    transaction_manager = None
    voted = False

    def sortKey(self) -> str:
        return f'{"~" * 16}pyramid_sendmail'

    def savepoint(self) -> Savepoint:
        return Savepoint([])

    def tpc_vote(self, transaction: Any) -> None:
        self.voted = True

    def tpc_begin(self, transaction: Any) -> None:
        """Nothing to do."""

    abort = commit = tpc_finish = tpc_abort = tpc_begin


@implementer(IDataManagerSavepoint)
class Savepoint:
    """The length of the list at its time."""

    def __init__(self, envelopes: list[Envelope]) -> None:
        self._envelopes = envelopes
        self._length = len(envelopes)

    def rollback(self) -> None:
        del self._envelopes[self._length :]
