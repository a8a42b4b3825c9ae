"""The transaction protocol: mail is queued if and only if its transaction commits.

=================================== ===========================================================
call                                what happens
=================================== ===========================================================
``tpc_vote``                        the envelopes are stored, and cannot be claimed yet; an error
                                    votes no, before a one-phase database has committed
``tpc_finish``                      they are published
``abort``, ``tpc_abort`` before     what was stored is removed
every data manager has voted
the same where a one-phase          in doubt, as below: see failed_commit
database may have committed in
its vote, behind ours
the same after every data manager   in doubt: the mail is kept, because nothing tells whether the
has voted, before our finish        other resources committed
the same after our finish has begun publishing is completed
=================================== ===========================================================

``tpc_finish``, ``abort`` and ``tpc_abort`` never raise an Exception, and may be called in any
order, any number of times: ``transaction`` calls ``abort`` on finished managers if an after-commit
hook was added.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any, Protocol

from transaction.interfaces import IDataManagerSavepoint, ISavepointDataManager, NoTransaction
from zope.interface import implementer

from ..envelope import Envelope
from ..exceptions import NoActiveTransaction
from ..interfaces import IMailQueue, IStagedMail
from .failed_commit import has_voted, is_outcome_unknown, may_have_committed, not_voted

__all__ = [
    'MailDataManager',
    'Transaction',
    'TransactionManager',
    'TransactionalDelivery',
    'active_transaction',
    'join',
]

log = logging.getLogger(__name__)

_counter = count()
_OPEN = ('Active', 'Doomed')
_NONE = (
    'there is no active transaction that could send this mail with its commit: begin one '
    '(pyramid_tm does so for each request, "with request.tm:" elsewhere), or send at once with '
    'send_now()'
)


class Transaction(Protocol):
    """What is used of a transaction of the ``transaction`` package, which has no types."""

    status: object

    def join(self, resource: object) -> None: ...

    def data(self, owner: object) -> Any: ...

    def set_data(self, owner: object, data: object) -> None: ...

    def addAfterCommitHook(
        self, hook: Callable[..., object], args: tuple[object, ...] = ()
    ) -> None: ...


class TransactionManager(Protocol):
    """What is used of ``request.tm``: a transaction manager, thread-local or explicit."""

    def get(self) -> Transaction: ...


class TransactionalDelivery(Protocol):
    """What a data manager asks of a delivery: the queue, and hooks for the steps of a commit."""

    @property
    def queue(self) -> IMailQueue:
        """The queue that the mail is put into."""

    def on_joined(self, envelope: Envelope) -> None:
        """``send``: the transaction has taken an envelope. An exception is the caller's."""

    def on_vote(self) -> None:
        """The vote, before the mail is stored: the last step in which anything may raise."""

    def on_published(self, transaction: Transaction, staged: IStagedMail) -> None:
        """The commit: the mail can be claimed. Called twice after an interrupt."""

    def on_in_doubt(self) -> None:
        """The mail is in doubt, and kept."""


def active_transaction(
    tm: TransactionManager, environ: Mapping[str, object] | None = None
) -> Transaction:
    """Return the transaction that was begun in the manager; never begin one.

    Raises NoActiveTransaction if there is none, or if it takes no mail any more. A transaction
    that other code began implicitly looks like one that was begun explicitly.
    """
    # ``transaction.manager`` keeps one manager for each thread, as its ``manager``. Where a manager
    # is not explicit, get() would begin a transaction that is never committed: ``_txn`` is None if
    # none was begun (a private name, as of transaction 5.0; a test holds it).
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


def join(transaction: Transaction, delivery: TransactionalDelivery, envelope: Envelope) -> None:
    """Add an envelope to the transaction's mail for this delivery."""
    try:
        manager: MailDataManager = transaction.data(delivery)
    except KeyError:
        manager = MailDataManager(delivery)
        transaction.set_data(delivery, manager)
    manager.add(transaction, envelope)
    delivery.on_joined(envelope)


@implementer(ISavepointDataManager)
class MailDataManager:
    """The mail of one transaction for one delivery.

    It sorts after ZODB and two-phase databases, whose finish must come before ours, and before
    zope.sqlalchemy's one-phase manager (``~sqlalchemy:``), which commits in its vote.

    A manager without a key, or whose key is no string, sorts before it.
    """

    transaction_manager = None

    def __init__(self, delivery: TransactionalDelivery) -> None:
        self._delivery = delivery
        self._envelopes: list[Envelope] = []
        self._staged: IStagedMail | None = None
        self._joined = False
        self._finishing = False
        self._key = _Key(f'~pyramid_sendmail:{next(_counter):012d}')
        self._last = LastVoter()
        self._in_doubt: bool | None = None
        self._behind: tuple[object, ...] | None = None
        """Those that had not voted when this manager has; None if that is not known."""

    def add(self, transaction: Transaction, envelope: Envelope) -> None:
        # A rollback to a savepoint before the first mail removes both data managers; join again.
        if not self._joined:
            transaction.join(self)
            transaction.join(self._last)
            self._joined = True
        self._envelopes.append(envelope)

    def sortKey(self) -> str:
        return self._key

    def savepoint(self) -> Savepoint:
        return Savepoint(self._envelopes)

    def tpc_begin(self, transaction: Transaction) -> None:
        """Do nothing before the vote."""

    def commit(self, transaction: Transaction) -> None:
        """Do nothing before the vote."""

    def tpc_vote(self, transaction: Transaction) -> None:
        # An interrupt in a failing savepoint may leave this manager joined twice: store the mail
        # once.
        if self._envelopes and self._staged is None:
            self._delivery.on_vote()
            self._behind = not_voted(transaction)
            self._staged = self._delivery.queue.put(tuple(self._envelopes))

    def tpc_finish(self, transaction: Transaction) -> None:
        self._finishing = True
        self._finish(transaction)

    def abort(self, transaction: Transaction) -> None:
        # After the vote: another manager's abort was interrupted, and what had failed before is
        # not known any more.
        self._abort(transaction, None)

    def tpc_abort(self, transaction: Transaction) -> None:
        # ``transaction`` calls this while it handles what was raised.
        self._abort(transaction, sys.exc_info()[1])

    def _abort(self, transaction: Transaction, error: BaseException | None) -> None:
        if self._finishing:
            self._finish(transaction)
            return
        self._joined = False
        self._envelopes.clear()
        self._drop(transaction, error)

    # Clear ``_staged`` last: a call after an interrupt completes the rest.

    def _finish(self, transaction: Transaction) -> None:
        staged = self._staged
        if staged is None:
            return
        staged.publish()
        try:
            self._delivery.on_published(transaction, staged)
        except Exception:
            log.exception('the mail is queued, but sending it could not be started')
        self._staged = None

    def _drop(self, transaction: Transaction, error: BaseException | None) -> None:
        staged = self._staged
        if staged is None:
            return
        if self._in_doubt is None:
            self._in_doubt = self._may_be_committed(transaction, error)
        if self._in_doubt:
            staged.keep_in_doubt()
            try:
                self._delivery.on_in_doubt()
            except Exception:
                log.exception(
                    'the mail is in doubt and kept, but its error event could not be started'
                )
        else:
            staged.discard()
            log.info(
                'mail is not sent, since the commit of its transaction was refused (%s)',
                type(error).__name__ if error is not None else 'aborted',
            )
        self._staged = None

    def _may_be_committed(self, transaction: Transaction, error: BaseException | None) -> bool:
        """Whether another resource may have committed, though the transaction failed."""
        if self._behind is None:
            return self._last.voted or (error is not None and is_outcome_unknown(error))
        voted = partial(has_voted, transaction)
        others = [each for each in self._behind if not isinstance(each, _OURS)]
        if self._last.voted and all(map(voted, others)):
            return True
        if any(may_have_committed(each, voted=voted(each)) for each in others):
            return True
        ours = [each for each in self._behind if isinstance(each, MailDataManager)]
        if all(map(voted, others)) or not all(map(voted, ours)):
            # A manager of ours has failed, or was interrupted; they vote in a row.
            return False
        return is_outcome_unknown(error)


@implementer(ISavepointDataManager)
class LastVoter:
    """Sorts last, whatever the keys of others are: its vote means that the votes are over."""

    transaction_manager = None
    voted = False

    def sortKey(self) -> str:
        return _LAST_KEY

    def savepoint(self) -> Savepoint:
        return Savepoint([])

    def tpc_vote(self, transaction: Transaction) -> None:
        self.voted = True

    def tpc_begin(self, transaction: Transaction) -> None:
        """Do nothing."""

    abort = commit = tpc_finish = tpc_abort = tpc_begin


class _Key(str):
    """A key that is greater than whatever is no string.

    A data manager may have a number as its key, or none: ``transaction`` sorts it by None.
    """

    __slots__ = ()

    def __lt__(self, other: object) -> bool:
        return isinstance(other, _LastKey) or (isinstance(other, str) and str.__lt__(self, other))

    def __gt__(self, other: object) -> bool:
        return not isinstance(other, str) or str.__gt__(self, other)


class _LastKey(_Key):
    """A key that is greater than every other."""

    __slots__ = ()

    def __lt__(self, other: object) -> bool:
        return False

    def __gt__(self, other: object) -> bool:
        return not isinstance(other, _LastKey)


_LAST_KEY = _LastKey('~~pyramid_sendmail')
_OURS = (MailDataManager, LastVoter)


@implementer(IDataManagerSavepoint)
class Savepoint:
    """The number of envelopes at its time; ``rollback`` removes those that were added since."""

    def __init__(self, envelopes: list[Envelope]) -> None:
        self._envelopes = envelopes
        self._length = len(envelopes)

    def rollback(self) -> None:
        del self._envelopes[self._length :]
