"""The transaction protocol: mail leaves if and only if its transaction commits, whatever other data
managers take part in it and whatever fails."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import transaction
import zope.sqlalchemy
from sqlalchemy.orm import Session, sessionmaker
from transaction import TransactionManager
from transaction.interfaces import (
    DoomedTransaction,
    IDataManagerSavepoint,
    ISavepointDataManager,
    TransientError,
)
from ZODB import DB
from zope.interface.verify import verifyObject

from pyramid_sendmail import NoActiveTransaction, QueueError
from pyramid_sendmail.delivery.data_manager import (
    LastVoter,
    MailDataManager,
    active_transaction,
    join,
)
from pyramid_sendmail.delivery.queued import QueuedMailDelivery
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.queue import MaildirQueue
from tests.support.databases import NOTES, notes
from tests.support.doubles import RecordingMailer
from tests.support.queues import files, make_envelope
from tests.support.transactions import AFTER, BEFORE, OtherManager, message

LATER = 1e11
"""A time at which everything is due."""


class Post:
    """A delivery over a queue, bound to one transaction manager."""

    def __init__(self, queue: Any, manager: Any) -> None:
        self.queue = queue
        self.manager = manager
        self.delivery = QueuedMailDelivery(queue, RecordingMailer(), EnvelopeFactory())
        self.mailer = self.delivery.bind(manager)

    def send(self, subject: str = 'Hello') -> str:
        return str(self.mailer.send(message(subject)))

    def in_folder(self, folder: str) -> list[str]:
        """Return the subjects of the mail that can be claimed there."""
        tickets, _ = self.queue.scan(LATER)
        claims = [self.queue.claim(ticket) for ticket in tickets if ticket.state == folder]
        subjects = [claim.envelope.subject for claim in claims]
        for claim in claims:
            claim.release()
        return sorted(subjects)

    @property
    def queued(self) -> list[str]:
        return self.in_folder('new')

    @property
    def in_doubt(self) -> list[str]:
        return self.in_folder('done')

    @property
    def empty(self) -> bool:
        """Whether no mail is left, published or not."""
        if isinstance(self.queue, MaildirQueue):
            return not os.path.exists(self.queue.path) or not files(self.queue)
        return self.queue.scan(LATER) == ([], None)


@pytest.fixture(params=['explicit', 'implicit', 'thread-local', 'global'])
def manager(request: pytest.FixtureRequest) -> Iterator[Any]:
    makers: dict[str, Callable[[], Any]] = {
        'explicit': partial(TransactionManager, explicit=True),
        'implicit': TransactionManager,
        'thread-local': transaction.ThreadTransactionManager,
        'global': lambda: transaction.manager,
    }
    manager = makers[request.param]()
    yield manager
    transaction.abort()


@pytest.fixture
def post(queue: Any) -> Post:
    return Post(queue, TransactionManager(explicit=True))


# Commit and abort


def test_commit_queues_and_abort_does_not(queue: Any, manager: Any) -> None:
    """Mail is queued by the commit, not before, and not at all by an abort, in every manager."""
    post = Post(queue, manager)
    manager.begin()
    post.send('aborted')
    assert post.empty
    manager.abort()
    with manager:
        post.send('committed')
        assert post.empty
    assert post.queued == ['committed']


def test_the_id_is_the_header(post: Post) -> None:
    """``send`` returns the Message-ID that the queued bytes carry."""
    with post.manager:
        message_id = post.send()
    (ticket,), _ = post.queue.scan(LATER)
    claim = post.queue.claim(ticket)
    assert message_id.startswith('<')
    assert f'Message-ID: {message_id}\r\n'.encode() in claim.envelope.raw
    claim.release()


def test_several_sends_one_data_manager(post: Post) -> None:
    """All mail of a transaction has one data manager, and one that sorts last."""
    with post.manager as current:
        for subject in 'abc':
            post.send(subject)
        kinds = [type(resource) for resource in current._resources]
        assert kinds == [MailDataManager, LastVoter]
    assert post.queued == ['a', 'b', 'c']


def test_two_deliveries_over_one_queue_have_a_data_manager_each(post: Post) -> None:
    """A delivery's hooks get its own mail, not that of another delivery."""
    published: list[int] = []

    class Counting(QueuedMailDelivery):
        def on_published(self, transaction: Any, staged: Any) -> None:
            published.append(len(staged.tickets))

    other = Counting(post.queue, RecordingMailer(), EnvelopeFactory()).bind(post.manager)
    with post.manager:
        post.send('a')
        other.send(message('b'))
        post.send('c')
    assert post.queued == ['a', 'b', 'c']
    assert published == [1]


def test_the_next_transaction_starts_empty(post: Post) -> None:
    """Mail of one transaction, committed or aborted, does not appear in the next."""
    with post.manager:
        post.send('first')
    post.manager.begin()
    post.send('aborted')
    post.manager.abort()
    with post.manager:
        post.send('second')
    assert post.queued == ['first', 'second']


def test_a_doomed_transaction_takes_mail_and_sends_none(post: Post) -> None:
    """In a doomed transaction ``send`` works as usual, and no mail leaves."""
    current = post.manager.begin()
    current.doom()
    assert post.send().startswith('<')
    with pytest.raises(DoomedTransaction):
        post.manager.commit()
    post.manager.abort()
    assert post.empty


def test_the_utility_joins_the_thread_local_manager(queue: Any) -> None:
    """Without a request, the delivery itself joins ``transaction.manager``."""
    post = Post(queue, transaction.manager)
    with transaction.manager:
        post.delivery.send(message('plain'))
    assert post.queued == ['plain']


def test_a_transaction_run_again_sends_once(post: Post) -> None:
    """A function that a conflict makes ``tm.run`` call again sends one mail."""
    attempts: list[int] = []

    def work() -> None:
        attempts.append(1)
        post.send(f'attempt {len(attempts)}')
        if len(attempts) < 3:
            raise TransientError

    post.manager.run(work, tries=3)
    assert post.queued == ['attempt 3']


# No active transaction


@pytest.mark.parametrize('environ', [None, {}, {'tm.active': False}])
def test_without_a_transaction_send_raises(queue: Any, manager: Any, environ: Any) -> None:
    """Without a transaction ``send`` raises, names ``send_now``, and begins none."""
    mailer = Post(queue, manager).delivery.bind(manager, environ)
    with pytest.raises(NoActiveTransaction, match=r'send_now\(\)'):
        mailer.send(message())
    assert getattr(manager, 'manager', manager)._txn is None


def test_pyramid_tm_says_that_a_transaction_is_active(queue: Any) -> None:
    """If pyramid_tm is active, the next transaction of an implicit manager, which pyramid_tm will
    commit, takes mail; that of an explicit manager has to be begun."""
    environ = {'tm.active': True}
    implicit = TransactionManager()
    post = Post(queue, implicit)
    post.delivery.bind(implicit, environ).send(message('kept'))
    implicit.commit()
    assert post.queued == ['kept']
    explicit = TransactionManager(explicit=True)
    with pytest.raises(NoActiveTransaction, match='send_now'):
        post.delivery.bind(explicit, environ).send(message())


def test_a_manager_of_another_class_works(queue: Any) -> None:
    """A manager that is not a class of ``transaction`` is asked for its transaction."""

    class Foreign:
        def __init__(self, inner: TransactionManager) -> None:
            self.get = inner.get

    manager = TransactionManager(explicit=True)
    post = Post(queue, manager)
    mailer = post.delivery.bind(Foreign(manager))
    with pytest.raises(NoActiveTransaction):
        mailer.send(message())
    with manager:
        mailer.send(message('foreign'))
    assert post.queued == ['foreign']


def test_another_thread_has_no_transaction(queue: Any) -> None:
    """With the thread-local manager, a transaction of one thread is not active in another."""
    raised: list[Exception] = []

    def elsewhere() -> None:
        try:
            Post(queue, transaction.manager).send()
        except NoActiveTransaction as error:
            raised.append(error)

    with transaction.manager:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(raised) == 1


@pytest.mark.finding(57)
@pytest.mark.parametrize('begun', [True, False], ids=['begun', 'implicit'])
def test_the_threads_transaction_is_not_the_managers(queue: Any, begun: bool) -> None:
    """If the manager has no transaction, the thread's own does not take its place: ``send`` raises,
    and a commit of the thread's transaction sends nothing."""
    transaction.begin() if begun else transaction.get()
    mailer = Post(queue, TransactionManager(explicit=True)).mailer
    with pytest.raises(NoActiveTransaction, match=r'send_now\(\)'):
        mailer.send(message())
    transaction.commit()
    assert Post(queue, None).empty


@pytest.mark.parametrize('first', [True, False], ids=['first send', 'second send'])
@pytest.mark.parametrize('step', ['begin', 'commit', 'vote', 'finish'])
@pytest.mark.parametrize('key', [BEFORE, AFTER])
def test_send_inside_the_commit_raises(post: Post, step: str, key: str, first: bool) -> None:
    """Mail sent in another data manager's step would be lost, so ``send`` raises: for each mail,
    not only the first."""
    raised: list[str] = []

    def late() -> None:
        with pytest.raises(NoActiveTransaction, match='committing') as caught:
            post.send('late')
        raised.append(str(caught.value))

    with post.manager as current:
        current.join(OtherManager(key, **{step: late}))
        if not first:
            post.send('early')
    assert len(raised) == 1
    assert 'send_now()' in raised[0]
    assert post.queued == ([] if first else ['early'])


@pytest.mark.parametrize('first', [True, False], ids=['first send', 'second send'])
def test_send_in_an_after_commit_hook_raises(post: Post, first: bool, manager: Any) -> None:
    """In an after-commit hook the transaction is over: ``send`` raises there."""
    post = Post(post.queue, manager)
    raised: list[str] = []

    def hook(committed: bool) -> None:
        with pytest.raises(NoActiveTransaction) as caught:
            post.send('late')
        raised.append(str(caught.value))

    with manager as current:
        current.addAfterCommitHook(hook)
        if not first:
            post.send('early')
    assert ['committed' in text for text in raised] == [True]
    assert post.queued == ([] if first else ['early'])


def test_send_in_an_after_commit_listener_of_sqlalchemy_raises(
    post: Post, sqlite: sqlalchemy.Engine
) -> None:
    """SQLAlchemy's ``after_commit`` event fires inside the vote: ``send`` raises, and the error
    reaches the listener alone."""
    raised: list[str] = []
    session = one_phase(sqlite, post.manager)

    def listener(session: Session) -> None:
        with pytest.raises(NoActiveTransaction) as caught:
            post.send('late')
        raised.append(str(caught.value))

    with post.manager:
        own = session()
        sqlalchemy.event.listen(own, 'after_commit', listener)
        own.execute(NOTES.insert().values(text='row'))
        zope.sqlalchemy.mark_changed(own, post.manager)
        post.send('early')
    assert len(raised) == 1
    assert post.queued == ['early']


def test_send_in_a_before_commit_hook_is_taken(post: Post) -> None:
    """Hooks of the application may send until the commit begins."""
    with post.manager as current:
        current.addBeforeCommitHook(post.send, ('hooked',))
    assert post.queued == ['hooked']


def test_send_after_a_failed_commit_raises(post: Post) -> None:
    """A transaction whose commit failed takes no more mail: the error tells an exception view to
    use ``send_now``."""
    current = post.manager.begin()
    current.join(OtherManager(BEFORE, fails='vote'))
    with pytest.raises(RuntimeError):
        post.manager.commit()
    with pytest.raises(NoActiveTransaction, match=r'commit failed.*send_now\(\)'):
        post.send()
    post.manager.abort()


def test_active_transaction_begins_none() -> None:
    """``active_transaction`` never begins a transaction."""
    manager = TransactionManager()
    with pytest.raises(NoActiveTransaction):
        active_transaction(manager)
    assert active_transaction(manager, {'tm.active': True}) is manager.get()


# Savepoints


def test_rollback_drops_what_was_sent_since(post: Post) -> None:
    """sp1, A, sp2, B, rollback sp2, C: A and C leave."""
    with post.manager as current:
        current.savepoint()
        post.send('A')
        second = current.savepoint()
        post.send('B')
        second.rollback()
        post.send('C')
    assert post.queued == ['A', 'C']


def test_rollback_before_the_first_mail_and_then_another(post: Post) -> None:
    """sp, A, rollback, B: the rollback removes the data manager, and B leaves nevertheless."""
    with post.manager as current:
        savepoint = current.savepoint()
        post.send('A')
        savepoint.rollback()
        assert current._resources == []
        post.send('B')
    assert post.queued == ['B']


def test_rollback_before_the_first_mail_and_no_other(post: Post) -> None:
    """sp, A, rollback: nothing leaves, and nothing is written."""
    with post.manager as current:
        savepoint = current.savepoint()
        post.send('A')
        savepoint.rollback()
    assert post.empty


def test_rollback_to_an_empty_list_of_a_joined_manager(post: Post) -> None:
    """A rollback that leaves a joined data manager without mail writes nothing."""
    with post.manager as current:
        outer = current.savepoint()
        post.send('A')
        outer.rollback()
        post.send('B')
        inner = current.savepoint()
        outer.rollback()
        assert not inner.valid
        post.send('C')
        outer.rollback()
    assert post.empty


@pytest.mark.parametrize('between', [True, False])
def test_rollback_twice(post: Post, between: bool) -> None:
    """A savepoint can be rolled back again and again."""
    with post.manager as current:
        post.send('A')
        savepoint = current.savepoint()
        for subject in 'BC':
            if between:
                post.send(subject)
            savepoint.rollback()
        post.send('D')
    assert post.queued == ['A', 'D']


def test_rollback_twice_before_the_first_mail(post: Post) -> None:
    """A data manager that a rollback removed joins again, after each rollback."""
    with post.manager as current:
        savepoint = current.savepoint()
        for subject in 'AB':
            post.send(subject)
            savepoint.rollback()
        post.send('C')
    assert post.queued == ['C']


def test_an_outer_rollback_after_an_inner_one(post: Post) -> None:
    """sp1, A, sp2, B, rollback sp2, C, rollback sp1, D: D leaves alone."""
    with post.manager as current:
        outer = current.savepoint()
        post.send('A')
        inner = current.savepoint()
        post.send('B')
        inner.rollback()
        post.send('C')
        outer.rollback()
        post.send('D')
    assert post.queued == ['D']


def test_optimistic_savepoints_beside_sqlite(post: Post, sqlite: sqlalchemy.Engine) -> None:
    """Mail has savepoints beside a session that has none, as on SQLite."""
    session = one_phase(sqlite, post.manager)
    with post.manager as current:
        own = session()
        post.send('A')
        own.execute(NOTES.insert().values(text='row'))
        zope.sqlalchemy.mark_changed(own, post.manager)
        current.savepoint(optimistic=True)
        post.send('B')
    assert post.queued == ['A', 'B']
    assert notes(sqlite) == ['row']


def test_a_failing_savepoint_sends_nothing(post: Post) -> None:
    """A savepoint that another data manager cannot make fails the transaction: no mail leaves, and
    no more is taken."""
    current = post.manager.begin()
    post.send('A')
    current.join(OtherManager(BEFORE))
    with pytest.raises(TypeError, match='Savepoints unsupported'):
        current.savepoint()
    with pytest.raises(NoActiveTransaction, match='commit failed'):
        post.send('B')
    post.manager.abort()
    assert post.empty


# Other data managers that fail


OUTCOMES = {
    (BEFORE, 'begin'): 'nothing',
    (BEFORE, 'commit'): 'nothing',
    (BEFORE, 'vote'): 'nothing',
    (BEFORE, 'finish'): 'in doubt',
    (AFTER, 'begin'): 'nothing',
    (AFTER, 'commit'): 'nothing',
    (AFTER, 'vote'): 'nothing',
    (AFTER, 'finish'): 'queued',
}


@pytest.mark.parametrize('hook', [False, True], ids=['no hook', 'after-commit hook'])
@pytest.mark.parametrize('mails', [1, 3])
@pytest.mark.parametrize(('key', 'step'), OUTCOMES)
def test_outcome_where_another_fails(
    post: Post,
    key: str,
    step: str,
    mails: int,
    hook: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If another data manager fails, the outcome of the mail is as in OUTCOMES. The application's
    abort afterwards, and the one that a hook causes, change nothing."""
    current = post.manager.begin()
    other = OtherManager(key, fails=step)
    current.join(other)
    if hook:
        current.addAfterCommitHook(lambda committed: None)
    subjects = [f'mail {number}' for number in range(mails)]
    ids = [post.send(subject) for subject in subjects]
    with pytest.raises(RuntimeError, match=f'fails in {step}'):
        post.manager.commit()
    other.fails = frozenset()
    post.manager.abort()
    outcome = OUTCOMES[key, step]
    critical = [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.CRITICAL and record.name.startswith('pyramid_sendmail')
    ]
    if outcome == 'nothing':
        assert post.empty
    assert bool(critical) == (outcome == 'in doubt')
    if critical:
        assert 'in doubt' in critical[0]
        assert all(message_id in critical[0] for message_id in ids)
    assert post.queued == (subjects if outcome == 'queued' else [])
    assert post.in_doubt == (subjects if outcome == 'in doubt' else [])


def test_mail_in_doubt_has_an_error_event_to_report(post: Post) -> None:
    """Mail in doubt stays in the queue with an error that is not permanent, and is not sent."""
    current = post.manager.begin()
    current.join(OtherManager(BEFORE, fails='finish'))
    post.send()
    with pytest.raises(RuntimeError):
        post.manager.commit()
    post.manager.abort()
    tickets, _ = post.queue.scan(LATER)
    claim = post.queue.claim(tickets[0])
    (event,) = claim.pending_events
    assert claim.todo == ()
    assert (event.kind, event.permanent, event.attempt) == ('error', False, 0)
    assert 'in doubt' in event.reason
    claim.release()


def test_an_after_commit_hook_changes_nothing(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    """With an after-commit hook, ``transaction`` aborts every data manager after a good commit; the
    mail is queued nevertheless, and nothing is logged."""
    seen: list[list[str]] = []
    with post.manager as current:
        current.addAfterCommitHook(lambda committed: seen.append(post.queued))
        post.send('A')
    assert seen == [['A']]
    assert post.queued == ['A']
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_an_after_commit_hook_that_begins_a_transaction_loses_nothing(queue: Any) -> None:
    """A hook that begins a new transaction drops the hooks after it; delivery depends on none."""
    manager = TransactionManager()
    post = Post(queue, manager)
    current = manager.begin()
    current.addAfterCommitHook(lambda committed: manager.begin())
    post.send('A')
    current.commit()
    manager.abort()
    assert post.queued == ['A']


# The data manager alone


class Steps:
    """A delivery that notes the hooks its data manager calls; ``raises`` at a step, once."""

    def __init__(self, queue: Any, raises: dict[str, BaseException] | None = None) -> None:
        self.queue = queue
        self.raises = raises or {}
        self.calls: list[str] = []

    def step(self, name: str) -> None:
        self.calls.append(name)
        error = self.raises.pop(name, None)
        if error is not None:
            raise error

    def on_joined(self, envelope: Any) -> None:
        self.step(f'on_joined {envelope.subject}')

    def on_vote(self) -> None:
        self.step('on_vote')

    def on_published(self, transaction: Any, staged: Any) -> None:
        self.step('on_published')

    def on_in_doubt(self) -> None:
        self.step('on_in_doubt')


class Staged:
    """An IStagedMail that notes its calls."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def publish(self) -> None:
        self.steps.step('publish')

    def discard(self) -> None:
        self.steps.step('discard')

    def keep_in_doubt(self) -> None:
        self.steps.step('keep_in_doubt')


class Queue:
    """A queue with the first phase of a put alone."""

    def __init__(self) -> None:
        self.steps: Any = None

    def put(self, envelopes: Any) -> Staged:
        self.steps.step('put')
        return Staged(self.steps)


def voted(raises: dict[str, BaseException] | None = None, all_voted: bool = True) -> Any:
    """Return a data manager that has voted, and the list of its calls since."""
    queue = Queue()
    steps = queue.steps = Steps(queue, raises)
    manager = MailDataManager(steps)
    current = TransactionManager().begin()
    manager.add(current, make_envelope())
    for resource in current._resources[: 2 if all_voted else 1]:
        resource.tpc_begin(current)
        resource.commit(current)
        resource.tpc_vote(current)
    assert steps.calls == ['on_vote', 'put']
    steps.calls.clear()
    return manager, steps.calls


def test_the_interfaces_are_kept() -> None:
    """The data managers and their savepoints are what ``transaction`` asks for."""
    manager = MailDataManager(Steps(Queue()))
    for each in (manager, LastVoter()):
        verifyObject(ISavepointDataManager, each)
        verifyObject(IDataManagerSavepoint, each.savepoint())
        each.savepoint().rollback()


def test_the_first_hook_gets_the_envelope() -> None:
    """``on_joined`` is called with each envelope that a transaction has taken, before its vote: a
    queue in a database can store the mail then."""
    steps = Steps(Queue())
    current = TransactionManager().begin()
    for subject in 'ab':
        join(current, steps, make_envelope(subject=subject))
    assert steps.calls == ['on_joined a', 'on_joined b']


@pytest.mark.parametrize('all_voted', [True, False], ids=['all voted', 'not all voted'])
@pytest.mark.parametrize(
    'calls', list(itertools.product(['tpc_finish', 'abort', 'tpc_abort'], repeat=4)), ids='-'.join
)
def test_any_order_any_number_of_times(calls: tuple[str, ...], all_voted: bool) -> None:
    """After the vote the first call decides, and later calls change nothing."""
    manager, done = voted(all_voted=all_voted)
    for call in calls:
        getattr(manager, call)(None)
    if calls[0] == 'tpc_finish':
        assert done == ['publish', 'on_published']
    else:
        assert done == (['keep_in_doubt', 'on_in_doubt'] if all_voted else ['discard'])


@pytest.mark.parametrize('call', ['abort', 'tpc_abort'])
def test_abort_before_the_vote_and_again(call: str) -> None:
    """An abort before the vote has nothing to remove, however often it is called."""
    manager = MailDataManager(Steps(Queue()))
    manager.add(TransactionManager().begin(), make_envelope())
    for _ in range(3):
        getattr(manager, call)(None)


@pytest.mark.parametrize('raising', ['publish', 'on_published'])
@pytest.mark.parametrize('call', ['abort', 'tpc_abort', 'tpc_finish'])
def test_an_interrupted_finish_is_completed(raising: str, call: str) -> None:
    """After a KeyboardInterrupt within finish the next call completes it: mail that was published
    is handed over, too."""
    manager, done = voted({raising: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        manager.tpc_finish(None)
    getattr(manager, call)(None)
    assert done[-2:] == ['publish', 'on_published']
    getattr(manager, call)(None)
    assert done[-2:] == ['publish', 'on_published']


def test_an_interrupted_commit_queues_the_mail() -> None:
    """The same through ``transaction``, which calls tpc_abort if finish was interrupted."""
    queue = Queue()
    steps = queue.steps = Steps(queue, {'on_published': KeyboardInterrupt()})
    manager = TransactionManager(explicit=True)
    MailDataManager(steps).add(manager.begin(), make_envelope())
    with pytest.raises(KeyboardInterrupt):
        manager.commit()
    manager.abort()
    assert steps.calls == [
        'on_vote',
        'put',
        *['publish', 'on_published'] * 2,
    ]


@pytest.mark.parametrize('raising', ['keep_in_doubt', 'on_in_doubt', 'discard'])
def test_an_interrupted_abort_is_completed(raising: str) -> None:
    """A KeyboardInterrupt within an abort leaves the rest to the next call."""
    manager, done = voted({raising: KeyboardInterrupt()}, all_voted=raising != 'discard')
    with pytest.raises(KeyboardInterrupt):
        manager.tpc_abort(None)
    manager.abort(None)
    assert done[-1] == ('discard' if raising == 'discard' else 'on_in_doubt')
    length = len(done)
    manager.abort(None)
    assert len(done) == length


@pytest.mark.parametrize(
    ('call', 'raising'), [('tpc_finish', 'on_published'), ('tpc_abort', 'on_in_doubt')]
)
def test_what_a_hook_raises_is_logged_alone(
    call: str, raising: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither finish nor abort raises the Exception of a delivery's hook; it is logged."""
    manager, done = voted({raising: ZeroDivisionError()})
    getattr(manager, call)(None)
    getattr(manager, call)(None)
    assert done[-1] == raising
    assert 'ZeroDivisionError' in caplog.text


def test_a_vote_after_an_abort_stores_nothing() -> None:
    """A data manager that was aborted has no mail to vote for."""
    queue = Queue()
    queue.steps = Steps(queue)
    manager = MailDataManager(queue.steps)
    manager.add(TransactionManager().begin(), make_envelope())
    manager.abort(None)
    manager.tpc_vote(None)
    manager.tpc_finish(None)
    assert queue.steps.calls == []


def test_a_vote_that_is_interrupted_is_an_abort() -> None:
    """If the vote is interrupted, an abort leaves nothing."""
    manager, done = voted(all_voted=False)
    manager.abort(None)
    manager.tpc_abort(None)
    assert done == ['discard']


# Votes that fail


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE])
def test_a_queue_that_cannot_be_written_votes_no(
    tmp_path: Path,
    sqlite: sqlalchemy.Engine,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk fails the commit before a one-phase database has committed. Nothing is left in
    tmp/, and the error is none that pyramid_retry would take for a conflict."""
    queue = MaildirQueue(str(tmp_path / 'queue'))
    queue.prepare()
    post = Post(queue, TransactionManager(explicit=True))
    session = one_phase(sqlite, post.manager)
    real = os.pwrite

    def full(descriptor: int, data: Any, offset: int) -> int:
        if '/tmp/' in os.readlink(f'/proc/self/fd/{descriptor}').removeprefix(str(tmp_path)):
            raise OSError(number, os.strerror(number))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, 'pwrite', full)
    current = post.manager.begin()
    insert(session(), post.manager, 'row')
    post.send()
    with pytest.raises(QueueError) as caught:
        post.manager.commit()
    assert not current.isRetryableError(caught.value)
    post.manager.abort()
    monkeypatch.undo()
    assert notes(sqlite) == []
    assert files(queue) == []
    queue.close()


def test_no_thread_to_send_with_votes_no(queue: Any) -> None:
    """A thread that cannot be started fails the vote, before anything is stored."""

    class Unable(QueuedMailDelivery):
        def on_vote(self) -> None:
            raise RuntimeError("can't start new thread")

    manager = TransactionManager(explicit=True)
    post = Post(queue, manager)
    other = OtherManager(AFTER)
    manager.begin().join(other)
    Unable(queue, RecordingMailer(), EnvelopeFactory()).bind(manager).send(message())
    with pytest.raises(RuntimeError, match='new thread'):
        manager.commit()
    manager.abort()
    assert post.empty
    assert f'{AFTER} vote' not in other.calls


# Real databases


def one_phase(engine: sqlalchemy.Engine, manager: Any) -> Any:
    session = sessionmaker(engine)
    zope.sqlalchemy.register(session, transaction_manager=manager)
    return session


def two_phase(engine: sqlalchemy.Engine, manager: Any) -> Any:
    session = sessionmaker(engine, twophase=True)
    zope.sqlalchemy.register(session, transaction_manager=manager)
    return session


def insert(session: Session, manager: Any, text: str) -> None:
    session.execute(NOTES.insert().values(text=text))
    zope.sqlalchemy.mark_changed(session, manager)


def watch(current: Any) -> list[str]:
    """Return a list of the steps of all data managers, in the order of the calls."""
    steps: list[str] = []
    for resource in current._resources:
        kind = type(resource).__name__
        for name in ('tpc_begin', 'commit', 'tpc_vote', 'tpc_finish', 'tpc_abort', 'abort'):

            def noted(transaction: Any, *, real: Any, step: str) -> Any:
                steps.append(step)
                return real(transaction)

            real = getattr(resource, name)
            setattr(resource, name, partial(noted, real=real, step=f'{kind}.{name}'))
    return steps


ORDER = [
    'Connection',
    'TwoPhaseSessionDataManager',
    'MailDataManager',
    'SessionDataManager',
    'LastVoter',
]
"""Those that can still fail sort before ours; the one whose vote is its commit sorts after it."""


def in_zodb(database: DB) -> list[str]:
    """Return what is committed."""
    with TransactionManager(explicit=True) as current:
        connection = database.open(transaction_manager=current._manager)
        keys = list(connection.root())
        connection.close()
        return keys


class Databases:
    """ZODB, two-phase PostgreSQL and one-phase SQLite, in one transaction with mail."""

    def __init__(
        self,
        post: Post,
        zodb: DB,
        postgresql: sqlalchemy.Engine,
        sqlite: sqlalchemy.Engine,
    ) -> None:
        self.post = post
        self.zodb = zodb
        self.postgresql = postgresql
        self.sqlite = sqlite
        self.manager = post.manager
        self.sessions = one_phase(sqlite, post.manager), two_phase(postgresql, post.manager)

    def write(self) -> Any:
        """Begin one transaction with everything in it, the mail first."""
        current = self.manager.begin()
        self.post.send('with all of them')
        for session in self.sessions:
            insert(session(), self.manager, 'row')
        self.connection = self.zodb.open(transaction_manager=self.manager)
        self.connection.root()['row'] = 'row'
        return current

    def committed(self) -> list[bool]:
        """Return whether ZODB, PostgreSQL, SQLite and the queue have it."""
        found = [bool(notes(engine)) for engine in (self.postgresql, self.sqlite)]
        return [bool(in_zodb(self.zodb)), *found, self.post.queued == ['with all of them']]


@pytest.fixture
def databases(
    post: Post, zodb: DB, postgresql: sqlalchemy.Engine, sqlite: sqlalchemy.Engine
) -> Iterator[Databases]:
    databases = Databases(post, zodb, postgresql, sqlite)
    yield databases
    databases.connection.close()


def test_the_interleaving_with_real_databases(databases: Databases) -> None:
    """ZODB and the two-phase database finish before the mail is published; the mail is stored
    before the one-phase database commits, which it does in its vote."""
    current = databases.write()
    steps = watch(current)
    seen: dict[str, list[bool]] = {}
    for resource in current._resources:
        kind = type(resource).__name__
        for name in ('tpc_vote', 'tpc_finish'):
            if kind in ('MailDataManager', 'SessionDataManager'):

                def looking(transaction: Any, *, real: Any, at: str) -> None:
                    seen[f'before {at}'] = databases.committed()
                    real(transaction)
                    seen[f'after {at}'] = databases.committed()

                step = f'{kind}.{name}'
                setattr(resource, name, partial(looking, real=getattr(resource, name), at=step))
    current.commit()
    assert steps == [
        f'{kind}.{step}'
        for step in ('tpc_begin', 'commit', 'tpc_vote', 'tpc_finish')
        for kind in ORDER
    ]
    nothing, one_phase_alone = [False] * 4, [False, False, True, False]
    assert seen == {
        'before MailDataManager.tpc_vote': nothing,
        'after MailDataManager.tpc_vote': nothing,
        'before SessionDataManager.tpc_vote': nothing,
        'after SessionDataManager.tpc_vote': one_phase_alone,
        'before MailDataManager.tpc_finish': [True, True, True, False],
        'after MailDataManager.tpc_finish': [True] * 4,
        'before SessionDataManager.tpc_finish': [True] * 4,
        'after SessionDataManager.tpc_finish': [True] * 4,
    }
    assert databases.committed() == [True] * 4


def test_abort_with_real_databases(databases: Databases) -> None:
    """An abort leaves nothing anywhere."""
    databases.write()
    databases.manager.abort()
    assert databases.committed() == [False] * 4
    assert databases.post.empty


def test_our_vote_fails_with_real_databases(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk in our vote rolls back what two-phase PostgreSQL has prepared, what ZODB has
    voted, and the one-phase database, which has not voted yet."""

    def full(envelopes: Any) -> Any:
        raise QueueError(errno.ENOSPC, 'no space left on device')

    monkeypatch.setattr(databases.post.queue, 'put', full)
    databases.write()
    with pytest.raises(QueueError):
        databases.manager.commit()
    databases.manager.abort()
    assert databases.committed() == [False] * 4
    with databases.postgresql.connect() as connection:
        prepared = connection.execute(sqlalchemy.text('select * from pg_prepared_xacts'))
        assert list(prepared) == []


def test_the_one_phase_database_fails_with_real_databases(databases: Databases) -> None:
    """A one-phase commit that fails, in its vote and after ours, leaves nothing anywhere."""
    current = databases.write()
    (one,) = (r for r in current._resources if type(r).__name__ == 'SessionDataManager')
    sqlalchemy.event.listen(one.session, 'before_commit', _raise)
    with pytest.raises(ZeroDivisionError):
        databases.manager.commit()
    databases.manager.abort()
    assert databases.committed() == [False] * 4
    assert databases.post.empty


def _raise(session: Session) -> None:
    raise ZeroDivisionError


def test_a_rollback_to_a_savepoint_with_real_databases(
    post: Post, zodb: DB, postgresql: sqlalchemy.Engine
) -> None:
    """Rows and mail since a savepoint go together, those before it stay together."""
    session = two_phase(postgresql, post.manager)
    current = post.manager.begin()
    connection = zodb.open(transaction_manager=post.manager)
    own, root = session(), connection.root()
    for text in ('kept', 'dropped'):
        insert(own, post.manager, text)
        root[text] = 1
        post.send(text)
        if text == 'kept':
            savepoint = current.savepoint()
    savepoint.rollback()
    post.manager.commit()
    connection.close()
    assert post.queued == ['kept']
    assert notes(postgresql) == ['kept']
    assert in_zodb(zodb) == ['kept']
