"""Mail leaves if and only if its transaction committed: random histories of transactions, beside a
model that knows nothing else.

``SOAK=1`` in the environment runs longer histories, and other ones each time.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RULE_MARKER,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from transaction import ThreadTransactionManager, TransactionManager
from transaction.interfaces import (
    AlreadyInTransaction,
    DoomedTransaction,
    InvalidSavepointRollbackError,
    NoTransaction,
    TransactionFailedError,
    TransientError,
)

from pyramid_sendmail import Message, NoActiveTransaction, QueueError
from pyramid_sendmail.delivery.direct import DirectMailDelivery
from pyramid_sendmail.delivery.queued import QueuedMailDelivery
from pyramid_sendmail.envelope import Envelope, PendingEvent
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.queue.maildir.directory import Directory
from pyramid_sendmail.queue.maildir.files import QueueFiles
from pyramid_sendmail.queue.maildir.recognition import FOLDERS
from pyramid_sendmail.retry import AT_ONCE_OR_NEVER
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from tests.crash.counts import Tell
from tests.support.doubles import RecordingMailer
from tests.support.folders import folder as tmp_path
from tests.support.queues import NOW, until
from tests.support.transactions import OtherManager, SavingManager

__all__ = ['tmp_path']

SOAK = bool(os.environ.get('SOAK'))
EXAMPLES = 1500 if SOAK else 80
PHASES = [Phase.generate, Phase.shrink]
LATER = 1e11
"""A time at which everything is due."""

BEFORE = ('a:1', 'sqlalchemy.twophase:1')
"""ZODB's and two-phase SQLAlchemy's keys: they finish before the mail does."""
AFTER = ('~sqlalchemy:1', '~zzz', '\U0010ffff')
"""zope.sqlalchemy's one-phase key and later ones: they vote after the mail, and may commit then."""
STEPS = ('begin', 'commit', 'vote', 'finish', 'abort', 'tpc_abort', 'savepoint')


class Stopped(BaseException):
    """As a KeyboardInterrupt: no Exception."""


# The model


@dataclass(slots=True)
class Tx:
    """A transaction as the model sees it: what was sent in it, and who else is in it."""

    status: str = 'active'
    mails: list[tuple[int, str]] = field(default_factory=list)
    """(which delivery, subject)"""
    others: list[OtherManager] = field(default_factory=list)
    savepoints: list[tuple[Any, int, int, bool]] = field(default_factory=list)
    """(the real one, mails then, others then, whether it can be rolled back)"""

    @property
    def takes(self) -> bool:
        return self.status in ('active', 'doomed')

    def outcome(self, full: int) -> str:
        """What a commit comes to; ``full``: which put of this commit fails, 0 for none."""
        if any(not {'begin', 'commit'}.isdisjoint(each.fails) for each in self.others):
            return 'failed'
        if any(each.key in BEFORE and 'vote' in each.fails for each in self.others):
            return 'failed'
        if 0 < full <= len({which for which, _ in self.mails}):
            return 'failed'
        after = sorted(
            (each for each in self.others if each.key in AFTER), key=OtherManager.sortKey
        )
        for number, other in enumerate(after):
            if 'vote' in other.fails:
                tells = issubclass(other.error, Exception) and not self._is_cut_short(
                    after[number:]
                )
                return 'failed' if tells and not number else 'in doubt'
        finishing = sorted(each.key for each in self.others if 'finish' in each.fails)
        if not finishing:
            return 'committed'
        return 'in doubt' if finishing[0] in BEFORE else 'committed, another failed'

    def _is_cut_short(self, without_vote: Sequence[OtherManager]) -> bool:
        """Whether an interrupt comes between a failed vote and our tpc_abort."""
        return any(
            issubclass(Stopped, each.error)
            and (
                (each in without_vote and 'abort' in each.fails)
                or (each.key in BEFORE and 'tpc_abort' in each.fails)
            )
            for each in self.others
        )


# What takes part


class StuckFiles(QueueFiles):
    """Files that cannot leave tmp/ for a while."""

    stuck = False

    def rename(
        self, folder: str | Directory, name: str, to: str | Directory, new_name: str
    ) -> bool:
        source = folder if isinstance(folder, str) else folder.path()
        if self.stuck and source.endswith('tmp'):
            raise OSError(5, 'Input/output error')
        return super().rename(folder, name, to, new_name)


class FullQueue:
    """A queue of which a put fails: the first, the second, ... from now on; 0 for none."""

    full = 0

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def put(self, envelopes: Sequence[Envelope]) -> Any:
        if self.full:
            self.full -= 1
            if not self.full:
                raise QueueError(28, 'no space left on device')
        return self._queue.put(envelopes)


class World:
    """Two deliveries over one queue, and what came out of it: the subjects ``delivered``, and those
    ``doubted``, each in order."""

    def __init__(self, kind: str, path: Path, *, direct: bool, in_doubt: str = 'hold') -> None:
        self.maildir = kind == 'maildir'
        self.direct = direct
        self.in_doubt = in_doubt
        self.now = NOW
        self.jumps: Iterator[float] = iter(())
        """By how much each call of the clock moves it, forwards or back."""
        self.is_clock_wrong = False
        inner: Any = MemoryQueue(clock=self.clock)
        if self.maildir:
            inner = MaildirQueue(str(path), sync=False, in_doubt=in_doubt, clock=self.clock)
            inner._files = StuckFiles(str(path), sync=False)
            inner.prepare()
        self.inner = inner
        self.queue: Any = FullQueue(inner)
        self.delivered: list[str] = []
        self.doubted: list[str] = []
        self.records: list[logging.LogRecord] = []
        self.mailer = RecordingMailer()
        self.mailer.before = lambda envelope: self.delivered.append(envelope.subject)
        # One mail a second, so that the names of the files have the order of the mails.
        composer = EnvelopeFactory(clock=self.tick)
        make: Any = QueuedMailDelivery
        if direct:
            dispatcher: Any = self
            recorder = OutcomeRecorder(
                AT_ONCE_OR_NEVER, dispatcher, durable=self.maildir, clock=self.clock
            )
            make = partial(DirectMailDelivery, recorder=recorder)
        self.deliveries = [make(self.queue, self.mailer, composer) for _ in range(2)]

    def clock(self) -> float:
        """The one clock of ``send``, the queue, its claims, its scans and the attempts."""
        self.now = min(max(self.now + next(self.jumps, 0.0), 5e8), 5e9)
        return self.now

    def tick(self) -> float:
        self.now += 1
        return self.clock()

    # The dispatcher, see IMailEventDispatcher

    failures = 0

    def wants(self, kind: str) -> bool:
        return kind == 'error'

    def flush(self, timeout: float) -> bool:
        return True

    def dispatch(self, claim: Any, events: Sequence[PendingEvent]) -> None:
        assert 'in doubt' in events[0].reason
        self.doubted.append(claim.envelope.subject)
        claim.acknowledge(events)
        claim.release()

    # What a queue processor would do

    def drain(self) -> None:
        """Deliver what can be claimed, report what is in doubt."""
        if self.direct:
            for delivery in self.deliveries:
                assert delivery.flush(30)
        tickets, next_due = self.queue.scan(LATER)
        assert next_due is None
        for ticket in tickets:
            claim = self.queue.claim(ticket)
            if claim is None:
                continue
            if claim.todo:
                self.delivered.append(claim.envelope.subject)
                sent = PendingEvent(f'{claim.envelope.id}-1-sent-0', 'sent', claim.todo, 1, 'drain')
                claim.settle([sent], report=False)
            else:
                self.dispatch(claim, claim.pending_events)

    def count(self, folder: str) -> int:
        """How many mails are in ``tmp`` or ``new``."""
        if self.maildir:
            return len(os.listdir(f'{self.inner.path}/{folder}'))
        return len(self.inner) if folder == 'new' else 0

    def clear(self) -> None:
        """Forget everything, for the next history; the last one may have failed."""
        self.queue.full = 0
        if self.maildir:
            self.inner._files.stuck = False
        if self.direct:
            for delivery in self.deliveries:
                assert delivery.flush(30)
        self.now, self.jumps, self.is_clock_wrong = NOW, iter(()), False
        self.delivered.clear()
        self.doubted.clear()
        self.records.clear()
        self.mailer.sent.clear()
        self.mailer.outcomes.clear()
        self.mailer.ambiguous.clear()
        if self.maildir:
            for folder in FOLDERS:
                for path in Path(self.inner.path, folder).iterdir():
                    path.unlink()
        else:
            self.inner._store.mails.clear()


# The machine

SEND = st.sampled_from([0, 0, 1])
HOUR, YEAR = 3600.0, 365 * 86400.0
JUMPS = [0.0, 0.001, 1.0, -0.001, -1.0, -60.0, HOUR, -HOUR, YEAR, -YEAR]
RULES: Counter[str] = Counter()
OUTCOMES: Counter[str] = Counter()


COMMON = (
    *('send', 'send', 'send_many', 'savepoint', 'savepoint', 'rollback', 'rollback', 'join'),
    *('join_failing', 'join_failing_in_finish', 'before_commit', 'after_commit', 'around_abort'),
    *('send_elsewhere', 'fill_the_disk', 'stick', 'doom', 'commit', 'set_the_clock'),
)
"""The rules that make up a transaction, by weight."""

GENTLE = (
    *('send', 'send', 'savepoint', 'savepoint', 'rollback', 'rollback', 'before_commit'),
    *('after_commit', 'join', 'join_failing_in_finish', 'set_the_clock'),
)
"""Those that seldom keep it from being committed."""


def mail(subject: str) -> Message:
    return Message(subject=subject, to='ann@example.org', text='Hi', sender='shop@example.org')


class TransactionMachine(RuleBasedStateMachine):
    """Rules do to the real transaction and to the model the same; invariants compare."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        world.clear()
        self.tx: Tx | None = None
        self.leaves: list[str] = []
        self.doubts: list[str] = []
        self.loud = False
        self.helped = False
        self.errors: list[str] = []
        self.ghosts: list[Any] = []
        self.number = 0
        self.waiting: tuple[Tx, str] | None = None
        RULES['(histories)'] += 1

    @initialize(
        kind=st.sampled_from(['explicit', 'implicit', 'thread-local']),
        at=st.sampled_from(['', '', 'newTransaction', 'beforeCompletion', 'afterCompletion']),
    )
    def start(self, kind: str, at: str) -> None:
        self.explicit = kind == 'explicit'
        self.at = at
        self.manager: Any = (
            ThreadTransactionManager()
            if kind == 'thread-local'
            else TransactionManager(explicit=self.explicit)
        )
        self.mailers = [delivery.bind(self.manager) for delivery in self.world.deliveries]
        self.manager.registerSynch(self)

    # Callbacks of the transaction: whatever they find wrong is kept, for it might be swallowed

    def newTransaction(self, transaction: Any) -> None:
        self.tx = Tx()
        self._called('newTransaction')

    def beforeCompletion(self, transaction: Any) -> None:
        self._called('beforeCompletion')

    def afterCompletion(self, transaction: Any) -> None:
        if self.tx is not None:
            self.tx.status = 'over'
        self._called('afterCompletion')

    def _called(self, name: str) -> None:
        if name == self.at:
            self._send(0)

    def _send(self, which: int, mailer: Any = None) -> None:
        """Send, if the model's transaction takes mail; see that it is refused otherwise."""
        self.number += 1
        subject = f'mail {self.number} by {which}'
        takes = self.tx is not None and self.tx.takes
        try:
            (mailer or self.mailers[which]).send(mail(subject))
        except NoActiveTransaction as error:
            if takes or 'send_now()' not in str(error):
                self.errors.append(f'refused: {error}')
            OUTCOMES['send refused'] += 1
        except (Exception, Stopped) as error:  # noqa: BLE001
            self.errors.append(repr(error))
        else:
            if self.tx is None or not takes:
                self.errors.append('taken, where nothing will ever commit it')
            else:
                self.tx.mails.append((which, subject))

    def _observe(self, other: OtherManager, step: str) -> None:
        """From another data manager: the mail is stored before a one-phase database votes, and
        published only when every manager before ours has finished."""
        world, tx = self.world, self.tx
        if tx is None or tx.status != 'committing':
            return
        mails = len(tx.mails)
        expected = {'new': 0}
        if world.maildir:
            if other.key in AFTER:
                expected['tmp'] = mails if step == 'vote' else 0
            else:
                expected['tmp'] = mails if step == 'finish' else 0
        if other.key in AFTER and step == 'finish':
            if world.direct or self._is_stuck:
                return
            expected['new'] = mails
        if step not in ('begin', 'commit', 'vote', 'finish'):
            return
        found = {folder: world.count(folder) for folder in expected}
        if found != expected:
            self.errors.append(f'{other.key} {step}: {found}, not {expected}')

    @property
    def _is_stuck(self) -> bool:
        return bool(self.world.maildir and self.world.inner._files.stuck)

    # Begin and end

    @rule()
    def begin(self) -> None:
        RULES['begin'] += 1
        tx = self.tx
        if tx is not None and self.explicit:
            with pytest.raises(AlreadyInTransaction):
                self.manager.begin()
            return
        self._begin()

    def _begin(self) -> bool:
        """Begin, which aborts what there is; a data manager that fails then leaves none."""
        tx = self.tx
        self._remember()
        try:
            self.manager.begin()
        except (RuntimeError, Stopped, TransientError):
            assert tx is not None
            assert any('abort' in other.fails for other in tx.others)
            self._over(tx)
            self.tx = None
            return False
        if tx is not None:
            self._over(tx)
        assert self.tx is not tx
        return True

    def _over(self, tx: Tx) -> None:
        if self.waiting is not None and self.waiting[0] is tx:
            (_, outcome), self.waiting = self.waiting, None
            self._apply(tx, outcome)

    def _remember(self) -> None:
        """Keep our data managers, to call them when everything is over."""
        real = getattr(self.manager, 'manager', self.manager)._txn
        if real is not None:
            ours = [each for each in real._resources if not isinstance(each, OtherManager)]
            self.ghosts = [*self.ghosts, *ours][-6:]

    @precondition(lambda self: self.tx is None)
    @rule(end=st.sampled_from(['abort', 'commit']), which=SEND)
    def end_nothing(self, end: str, which: int) -> None:
        """Nothing was begun, so that nothing takes mail; an implicit manager begins then."""
        RULES['end_nothing'] += 1
        self._send(which)
        if self.explicit:
            with pytest.raises(NoTransaction):
                getattr(self.manager, end)()
            return
        self.tx = Tx()
        if end == 'commit':
            self._commit()
        else:
            self._abort()

    @precondition(lambda self: self.tx is not None)
    @rule()
    def abort(self) -> None:
        RULES['abort'] += 1
        self._abort()

    def _abort(self) -> None:
        tx = self.tx
        assert tx is not None
        self._remember()
        try:
            self.manager.abort()
        except (RuntimeError, Stopped, TransientError):
            assert any('abort' in other.fails for other in tx.others)
        self.tx = None
        self._over(tx)
        OUTCOMES['aborted'] += bool(tx.mails)

    @precondition(lambda self: self.tx is not None)
    @rule()
    def commit(self) -> None:
        RULES['commit'] += 1
        self._commit()

    @precondition(lambda self: self.tx is not None and self.tx.mails)
    @rule()
    def commit_mail(self) -> None:
        RULES['commit_mail'] += 1
        self._commit()

    def _commit(self) -> str:
        tx = self.tx
        assert tx is not None
        if tx.status == 'doomed':
            with pytest.raises(DoomedTransaction):
                self.manager.commit()
            return 'doomed'
        tx.savepoints.clear()
        if tx.status == 'failed':
            with pytest.raises(TransactionFailedError):
                self.manager.commit()
            return 'failed before'
        full, self.interrupted = self.world.queue.full, False
        self._remember()
        error: BaseException | None = None
        try:
            self.manager.commit()
        except (RuntimeError, QueueError, Stopped, TransientError) as caught:
            error = caught
        self._remember()
        if self.interrupted:
            # A before-commit hook has raised: nothing has happened, but that it is used up.
            assert error is not None
            return 'hook'
        self.world.queue.full = 0
        outcome = tx.outcome(full)
        assert (error is None) == (outcome == 'committed'), (error, outcome)
        OUTCOMES[f'{outcome}, {"with" if tx.mails else "no"} mail'] += 1
        if self.tx is tx:
            self.tx = None
            if error is not None:
                self.tx, tx.status = tx, 'failed'
        if self._stops(tx) and self.tx is tx:
            # Our own tpc_abort comes with the next abort, perhaps.
            self.waiting = tx, outcome
        else:
            self._apply(tx, outcome)
        return outcome

    def _stops(self, tx: Tx) -> bool:
        """Whether another manager is interrupted in an abort, so that ours comes later."""
        return any(
            other.error is Stopped and not {'abort', 'tpc_abort'}.isdisjoint(other.fails)
            for other in tx.others
        )

    def _apply(self, tx: Tx, outcome: str) -> None:
        subjects = [subject for _, subject in tx.mails]
        if outcome.startswith('committed') or (
            outcome == 'in doubt' and self.world.in_doubt == 'send'
        ):
            self.leaves += subjects
        elif outcome == 'in doubt':
            self.doubts += subjects
        if subjects and outcome == 'in doubt':
            self.loud = True
        if self._is_stuck:
            self.world.inner._files.stuck = False
            self.helped = True
            self.loud = self.loud or bool(subjects and outcome.startswith('committed'))

    @precondition(lambda self: self.tx is not None and self.tx.takes)
    @rule()
    def doom(self) -> None:
        RULES['doom'] += 1
        assert self.tx is not None
        self.manager.doom()
        self.tx.status = 'doomed'

    @precondition(lambda self: self.tx is None)
    @rule(conflicts=st.integers(0, 3), tries=st.integers(1, 3), which=SEND)
    def retried(self, conflicts: int, tries: int, which: int) -> None:
        """As pyramid_retry does: the whole request again, after a conflict."""
        RULES['retried'] += 1
        for number in range(tries):
            assert self._begin()
            self._send(which)
            if number < conflicts:
                self._join('a:1', frozenset(['vote']), TransientError, saving=True)
            if self._commit() == 'committed':
                break
            assert number < conflicts or self.world.queue.full == 0
            self._abort()

    # Mail

    @precondition(lambda self: self.tx is not None)
    @rule(which=SEND)
    def send(self, which: int) -> None:
        RULES['send'] += 1
        self._send(which)

    @precondition(lambda self: self.tx is not None)
    @rule(whiches=st.lists(SEND, min_size=2, max_size=4))
    def send_many(self, whiches: list[int]) -> None:
        RULES['send_many'] += 1
        for which in whiches:
            self._send(which)

    @precondition(lambda self: self.tx is not None)
    @rule()
    def send_elsewhere(self) -> None:
        """Another manager has no transaction; nor has another thread, of a thread-local one."""
        RULES['send_elsewhere'] += 1
        tx, self.tx = self.tx, None
        other = self.world.deliveries[0].bind(TransactionManager())
        self._send(0, other)
        if isinstance(self.manager, ThreadTransactionManager):
            thread = threading.Thread(target=self._send, args=(0,))
            thread.start()
            thread.join()
        self.tx = tx

    @precondition(lambda self: not self.explicit)
    @rule(which=SEND)
    def send_under_pyramid_tm(self, which: int) -> None:
        """Where ``tm.active`` is set an implicit manager's next transaction takes mail."""
        RULES['send_under_pyramid_tm'] += 1
        self.tx = self.tx or Tx()
        self._send(which, self.world.deliveries[which].bind(self.manager, {'tm.active': True}))

    # Savepoints

    @precondition(lambda self: self.tx is not None and self.tx.status != 'over')
    @rule(optimistic=st.booleans())
    def savepoint(self, optimistic: bool) -> None:
        RULES['savepoint'] += 1
        tx = self.tx
        assert tx is not None
        if tx.status == 'failed':
            with pytest.raises(TransactionFailedError):
                self.manager.savepoint(optimistic)
            return
        plain = any(not isinstance(other, SavingManager) for other in tx.others)
        fails = any(
            isinstance(each, SavingManager) and 'savepoint' in each.fails for each in tx.others
        )
        try:
            real = self.manager.savepoint(optimistic)
        except (RuntimeError, TypeError, Stopped, TransientError):
            assert fails or (plain and not optimistic)
            if self._stops(tx):
                # An interrupt while transaction cleans up: it does not know that it has failed.
                self._abort()
            else:
                tx.status = 'failed'
        else:
            assert not fails
            assert optimistic or not plain
            tx.savepoints.append((real, len(tx.mails), len(tx.others), not plain))

    @precondition(lambda self: self.tx is not None and self.tx.savepoints)
    @rule(which=st.integers(0, 9), times=st.integers(1, 2))
    def rollback(self, which: int, times: int) -> None:
        RULES['rollback'] += 1
        tx = self.tx
        assert tx is not None
        index = which % len(tx.savepoints)
        real, mails, others, able = tx.savepoints[index]
        later = [each for each, *_ in tx.savepoints[index + 1 :]]
        for _ in range(times):
            fails = not able or any('abort' in other.fails for other in tx.others[others:])
            try:
                real.rollback()
            except (RuntimeError, TypeError, Stopped, TransientError):
                assert fails
                tx.status = 'failed'
                break
            assert not fails
            del tx.mails[mails:]
            del tx.others[others:]
        del tx.savepoints[index + 1 :]
        if tx.status == 'failed':
            tx.savepoints.clear()
        for each in later:
            with pytest.raises(InvalidSavepointRollbackError):
                each.rollback()

    # Others

    @precondition(lambda self: self.tx is not None and self.tx.takes)
    @rule(key=st.sampled_from(BEFORE + AFTER), saving=st.sampled_from([True, True, False]))
    def join(self, key: str, saving: bool) -> None:
        RULES['join'] += 1
        self._join(key, frozenset(), RuntimeError, saving=saving)

    @precondition(lambda self: self.tx is not None and self.tx.takes)
    @rule(
        key=st.sampled_from(BEFORE + AFTER),
        fails=st.frozensets(st.sampled_from(STEPS), min_size=1, max_size=2),
        error=st.sampled_from([RuntimeError, TransientError, Stopped]),
        saving=st.booleans(),
    )
    def join_failing(
        self, key: str, fails: frozenset[str], error: type[BaseException], saving: bool
    ) -> None:
        RULES['join_failing'] += 1
        self._join(key, fails, error, saving=saving)

    @precondition(lambda self: self.tx is not None and self.tx.takes)
    @rule(key=st.sampled_from(BEFORE + AFTER), which=SEND)
    def join_failing_in_finish(self, key: str, which: int) -> None:
        """The case that leaves doubt, or does not."""
        RULES['join_failing_in_finish'] += 1
        self._send(which)
        self._join(key, frozenset(['finish']), RuntimeError, saving=True)

    def _join(
        self, key: str, fails: frozenset[str], error: type[BaseException], *, saving: bool
    ) -> None:
        assert self.tx is not None
        other = (SavingManager if saving else OtherManager)(
            key, fails, error, on_step=self._observe
        )
        self.manager.get().join(other)
        self.tx.others.append(other)

    @precondition(lambda self: self.tx is not None and self.tx.mails)
    @rule(full=st.integers(1, 2))
    def fill_the_disk(self, full: int) -> None:
        RULES['fill_the_disk'] += 1
        self.world.queue.full = full

    @precondition(lambda self: self.world.maildir and self.tx is not None and self.tx.takes)
    @rule()
    def stick(self) -> None:
        """The files of the next finish cannot be moved."""
        RULES['stick'] += 1
        self.world.inner._files.stuck = True

    # The clock

    @rule(jumps=st.lists(st.sampled_from(JUMPS), max_size=4))
    def set_the_clock(self, jumps: list[float]) -> None:
        """From now on each call of the clock moves it: between ``send``, vote, finish, claim and
        scan. Without jumps it stands where it is."""
        RULES['set_the_clock'] += 1
        self.world.jumps = cycle(jumps) if jumps else iter(())
        self.world.is_clock_wrong |= bool(jumps)

    # Hooks

    @precondition(lambda self: self.tx is not None and self.tx.takes)
    @rule(action=st.sampled_from(['send', 'send', 'raise']))
    def before_commit(self, action: str) -> None:
        RULES['before_commit'] += 1

        def hook() -> None:
            if action == 'raise':
                self.interrupted = True
                raise RuntimeError('the hook failed')
            self._send(1)

        self.manager.get().addBeforeCommitHook(hook)

    @precondition(lambda self: self.tx is not None and self.tx.takes)
    @rule(action=st.sampled_from(['nothing', 'send', 'begin', 'begin and send']))
    def after_commit(self, action: str) -> None:
        """A hook that sends in what is over, or begins anew, which aborts what is over."""
        RULES['after_commit'] += 1

        def hook(committed: bool) -> None:
            try:
                if 'begin' in action and not self.explicit:
                    OUTCOMES['begun in a hook'] += self._begin()
                if 'send' in action:
                    self._send(0)
            except (Exception, Stopped) as error:  # noqa: BLE001
                self.errors.append(repr(error))

        self.manager.get().addAfterCommitHook(hook)

    @precondition(lambda self: self.tx is not None and self.tx.takes)
    @rule()
    def around_abort(self) -> None:
        """What hooks of an abort send is aborted."""
        RULES['around_abort'] += 1
        current = self.manager.get()
        for add in (current.addBeforeAbortHook, current.addAfterAbortHook):
            add(self._send, (0,))

    @precondition(lambda self: self.ghosts and self.tx is None)
    @rule(names=st.permutations(['abort', 'tpc_abort', 'tpc_finish']))
    def call_what_is_over(self, names: list[str]) -> None:
        """Whatever is called on data managers that are finished changes nothing."""
        RULES['call_what_is_over'] += 1
        for ghost in self.ghosts:
            for name in names:
                getattr(ghost, name)(None)

    @rule(key=st.sampled_from(BEFORE + AFTER), whiches=st.lists(SEND, min_size=1, max_size=3))
    def another_fails_in_finish(self, key: str, whiches: list[int]) -> None:
        RULES['another_fails_in_finish'] += 1
        if self.tx is not None:
            self._abort()
        self._begin()
        for which in whiches:
            self._send(which)
        self._join(key, frozenset(['finish']), RuntimeError, saving=True)
        self._commit()

    # A whole transaction, which chance alone seldom brings about

    @rule(
        names=st.lists(st.sampled_from(GENTLE), min_size=3, max_size=10)
        | st.lists(st.sampled_from(COMMON), min_size=3, max_size=12),
        data=st.data(),
    )
    def transaction(self, names: list[str], data: st.DataObject) -> None:
        RULES['transaction'] += 1
        if self.tx is not None:
            self._abort()
        self._begin()
        for name in names:
            step = getattr(type(self), name)
            each = getattr(step, RULE_MARKER)
            if all(condition(self) for condition in each.preconditions):
                step(
                    self,
                    **{
                        argument: data.draw(strategy, argument)
                        for argument, strategy in each.arguments_strategies.items()
                    },
                )
                self.mail_left_if_and_only_if_committed()
        if self.tx is not None:
            self._commit()

    # What must be true after every step

    @invariant()
    def mail_left_if_and_only_if_committed(self) -> None:
        world = self.world
        assert self.errors == []
        if self.waiting is not None:
            return
        expected = (self.leaves, sorted(self.doubts))

        def arrived() -> bool:
            # A direct delivery reports what is in doubt itself, if it was able to check.
            if not world.direct or self.helped or len(world.doubted) == len(self.doubts):
                world.drain()
            # The first scan dispatches the events of mail in doubt.
            found = (world.delivered, sorted(world.doubted))
            # Each direct delivery has a thread of its own.
            for which in '01' if world.direct else ('',):
                own, right = (
                    [subject for subject in subjects if subject.endswith(which)]
                    for subjects in (found[0], expected[0])
                )
                if world.is_clock_wrong:
                    # The names of the files have the order of the clock.
                    assert Counter(own) <= Counter(right), (found, expected)
                else:
                    assert own == right[: len(own)], (found, expected)
            assert set(found[1]) <= set(expected[1])
            return [len(seen) for seen in found] == [len(wanted) for wanted in expected]

        until(arrived)
        assert world.count('tmp') == 0
        assert world.count('new') == 0
        self._compare_logs()

    def _compare_logs(self) -> None:
        records, self.world.records[:] = list(self.world.records), []
        ours = [each for each in records if each.name.startswith('pyramid_sendmail')]
        if self.loud:
            assert any(each.levelno == logging.CRITICAL for each in ours)
        else:
            assert ours == [], [each.getMessage() for each in ours]
        self.loud = self.helped = False
        # transaction logs what data managers raise where it goes on.
        about = ' '.join(str(each.args) for each in records if each not in ours)
        assert 'MailDataManager' not in about
        assert 'LastVoter' not in about
        assert 'MailDelivery' not in about

    def teardown(self) -> None:
        """The manager and the queue start clean: one more mail arrives, alone and at once."""
        if not hasattr(self, 'manager'):
            return
        self.at = ''
        self.world.queue.full = 0
        if self._is_stuck:
            self.world.inner._files.stuck = False
        if self.tx is not None:
            self._abort()
        if self.tx is None:
            self._begin()
        self._send(0)
        assert self._commit() == 'committed'
        self.mail_left_if_and_only_if_committed()


class Collector(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.WARNING)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@pytest.fixture
def collected() -> Iterator[Callable[[list[logging.LogRecord]], None]]:
    """Collect warnings of ours and of transaction's, instead of showing thousands of them."""
    loggers = [logging.getLogger(name) for name in ('pyramid_sendmail', 'txn')]
    handlers: list[Collector] = []

    def collect(records: list[logging.LogRecord]) -> None:
        handler = Collector(records)
        handlers.append(handler)
        for logger in loggers:
            logger.addHandler(handler)
            logger.propagate = False

    yield collect
    for logger in loggers:
        logger.propagate = True
        for handler in handlers:
            logger.removeHandler(handler)


OURS = ('committed', 'failed', 'in doubt', 'committed, another failed')


@pytest.mark.timeout(3600 if SOAK else 120)
@pytest.mark.parametrize(
    ('kind', 'direct', 'in_doubt'),
    [
        ('maildir', False, 'hold'),
        ('maildir', False, 'send'),
        ('maildir', True, 'hold'),
        ('memory', False, 'hold'),
        ('memory', True, 'hold'),
    ],
    ids=['maildir', 'maildir, in doubt send', 'direct over maildir', 'memory', 'direct'],
)
def test_mail_leaves_if_and_only_if_its_transaction_commits(
    kind: str,
    direct: bool,
    in_doubt: str,
    tmp_path: Path,
    collected: Callable[[list[logging.LogRecord]], None],
    tell: Tell,
) -> None:
    """Whatever is called in whatever order, and whatever fails: exactly the mail of committed
    transactions leaves, once and in order; nothing else is left or logged; in doubt is only what
    another data manager made so."""
    world = World(kind, tmp_path / 'queue', direct=direct, in_doubt=in_doubt)
    collected(world.records)
    RULES.clear()
    OUTCOMES.clear()
    machine: Any = partial(TransactionMachine, world)
    run_state_machine_as_test(
        machine if SOAK else seed(hash((kind == 'maildir', direct, in_doubt == 'hold')))(machine),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=not SOAK,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
        ),
    )
    world.inner.close()
    tell(
        f'transactions, {kind}, {"direct" if direct else "queued"}, {in_doubt}:\n'
        f'  {sum(RULES.values())} steps: {dict(sorted(RULES.items()))}\n'
        f'  outcomes: {dict(sorted(OUTCOMES.items()))}'
    )
    rules = {
        name for name, member in vars(TransactionMachine).items() if hasattr(member, RULE_MARKER)
    }
    if kind == 'memory':
        rules.remove('stick')
    assert rules <= set(RULES)
    assert {f'{outcome}, with mail' for outcome in OURS} <= set(OUTCOMES)


@pytest.mark.parametrize('kind', ['maildir', 'memory'])
def test_an_interrupt_in_a_failing_savepoint_stores_no_mail_twice(
    kind: str, tmp_path: Path
) -> None:
    """A savepoint fails, its clean-up is interrupted, and transaction does not know: our data
    manager, aborted and joined once more by the next mail, is there twice, and votes once. Its
    second vote met the file of the first, and the commit failed after a second."""
    world = World(kind, tmp_path / 'queue', direct=False)
    manager = TransactionManager(explicit=True)
    mailer = world.deliveries[0].bind(manager)
    current = manager.begin()
    mailer.send(mail('aborted'))
    fails = frozenset(['savepoint', 'tpc_abort'])
    current.join(SavingManager('a:1', fails, Stopped))
    with pytest.raises(Stopped):
        current.savepoint()
    mailer.send(mail('kept'))
    manager.commit()
    world.drain()
    assert world.delivered == ['kept']
    assert world.count('tmp') == 0
    world.inner.close()
