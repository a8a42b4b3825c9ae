"""A commit that fails: what was raised tells whether it may have been done all the same, and mail
whose transaction may have committed is never dropped silently."""

from __future__ import annotations

import errno
import logging
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
import zope.sqlalchemy
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool
from transaction import TransactionManager
from transaction.interfaces import TransientError

from pyramid_sendmail.delivery.data_manager import LastVoter, MailDataManager
from pyramid_sendmail.delivery.failed_commit import is_outcome_unknown, not_voted
from pyramid_sendmail.delivery.queued import QueuedMailDelivery
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from tests.support.databases import NOTES, make_notes, notes
from tests.support.doubles import RecordingMailer
from tests.support.queues import files, make_envelope
from tests.support.transactions import AFTER, BEFORE, OtherManager, SavingManager, message

LATER = 1e11


def _short(key: str) -> str:
    return ascii(key[:3])


class Post:
    """A delivery over a queue, with a transaction manager; ``outcome`` is what became of a mail."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self.manager = TransactionManager(explicit=True)
        self.delivery = QueuedMailDelivery(queue, RecordingMailer(), EnvelopeFactory())
        self.mailer = self.delivery.bind(self.manager)

    @property
    def outcome(self) -> str:
        tickets, _ = self.queue.scan(LATER)
        if not tickets:
            return 'nothing'
        (ticket,) = tickets
        return {'new': 'queued', 'done': 'in doubt'}[ticket.state]

    def commit(self, error: type[BaseException]) -> str:
        """Commit, which raises ``error``; abort as an application does, and return the outcome."""
        with pytest.raises(error):
            self.manager.commit()
        self.manager.abort()
        return self.outcome


@pytest.fixture
def post(queue: Any) -> Post:
    return Post(queue)


def begin(post: Post, *others: OtherManager) -> Any:
    """Begin a transaction with a mail and other data managers."""
    current = post.manager.begin()
    post.mailer.send(message())
    for other in others:
        current.join(other)
    return current


# Data managers that commit in their vote


class StorageError(Exception):
    """An error that a data manager raises for another one."""


def driver_error(name: str, base: type[Exception] = Exception, **attributes: object) -> Any:
    """Return an exception class as those of database drivers are (PEP 249)."""
    return type(name, (base,), attributes)


UNKNOWN: dict[str, Any] = {
    'interrupt': KeyboardInterrupt,
    'exit': SystemExit,
    'greenlet': driver_error('GreenletExit', BaseException),  # type: ignore[arg-type]
    'reset': ConnectionResetError,
    'pipe': BrokenPipeError,
    'time-out': TimeoutError,
    'end of file': EOFError,
    'psycopg': psycopg.OperationalError,
    'psycopg2': driver_error('OperationalError', pgcode=None),
    'interface': driver_error('InterfaceError', pgcode=None),
    'shutdown': psycopg.errors.AdminShutdown,
    'connection exception': driver_error('OperationalError', sqlstate='08006'),
    'completion unknown': driver_error(
        'InternalError', driver_error('OperationalError'), pgcode='40003'
    ),
}

REFUSALS: dict[str, Any] = {
    'any': RuntimeError,
    'conflict': TransientError,
    'disk': partial(OSError, errno.ENOSPC),
    'constraint': psycopg.errors.UniqueViolation,
    'serialization': psycopg.errors.SerializationFailure,
    'deadlock': driver_error('OperationalError', pgcode='40P01'),
    'sqlite': driver_error('OperationalError'),
}


class OnePhase(OtherManager):
    """A data manager that commits in its vote, and raises then or instead."""

    def __init__(self, error: Any = None, *, commits: bool = True, key: str = AFTER) -> None:
        super().__init__(key)
        self._raised = error
        self._commits = commits
        self.rows: list[str] = []

    def tpc_vote(self, transaction: Any) -> None:
        super().tpc_vote(transaction)
        if self._commits:
            self.rows.append('row')
        if self._raised is not None:
            raise self._raised


@pytest.mark.parametrize('key', [AFTER, '\U0010ffff' * 20], ids=_short)
@pytest.mark.parametrize('name', UNKNOWN)
def test_a_vote_that_may_have_committed_leaves_the_mail_in_doubt(
    post: Post, name: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A one-phase manager commits and then raises what does not tell so: the mail is kept, and a
    CRITICAL line names it."""
    error = UNKNOWN[name]('lost')
    other = OnePhase(error, key=key)
    begin(post, other)
    assert post.commit(type(error)) == 'in doubt'
    assert other.rows == ['row']
    levels = [record.levelno for record in caplog.records if _is_ours(record)]
    assert levels.count(logging.CRITICAL) == len(levels) > 0


@pytest.mark.parametrize('key', [AFTER, '\U0010ffff' * 20], ids=_short)
@pytest.mark.parametrize('name', REFUSALS)
def test_a_vote_that_refuses_drops_the_mail_with_a_line(
    post: Post, name: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A vote that says no is the usual case: nothing is left, and the log has a line for it,
    without the error's text, which may have values of the statement."""
    caplog.set_level(logging.INFO)
    error = REFUSALS[name]('no: secret')
    begin(post, OnePhase(error, commits=False, key=key))
    assert post.commit(type(error)) == 'nothing'
    assert _left(post) == []
    (line,) = [record.getMessage() for record in caplog.records if _is_ours(record)]
    assert line.endswith(f'was refused ({type(error).__name__})')


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.startswith('pyramid_sendmail')


def _left(post: Post) -> list[Any]:
    return list(files(post.queue)) if isinstance(post.queue, MaildirQueue) else []


def test_what_an_error_was_raised_from_tells_too() -> None:
    """A wrapped connection error is one; what the code around the commit was handling is not."""
    with pytest.raises(StorageError) as caught:
        raise StorageError from ConnectionResetError()
    assert is_outcome_unknown(caught.value)
    with pytest.raises(StorageError) as caught:
        raise StorageError from KeyboardInterrupt()
    assert is_outcome_unknown(caught.value)
    around = StorageError()
    around.__context__ = ConnectionResetError()
    assert not is_outcome_unknown(around)
    circle = StorageError()
    circle.__cause__ = circle
    assert not is_outcome_unknown(circle)


@pytest.mark.parametrize('code', [2006, 2013, 1213])
def test_mysqls_numbers_tell(code: int) -> None:
    """2006 and 2013 are lost connections, 1213 is a deadlock."""
    error = driver_error('OperationalError')(code, 'text')
    assert is_outcome_unknown(error) == (code > 2000)


def test_a_refusal_inside_the_handling_of_a_lost_connection(post: Post) -> None:
    """A transaction that is committed while a connection error is handled, as in an exception
    view: the error of its own vote counts."""
    begin(post, OnePhase(RuntimeError('no'), commits=False))
    try:
        raise ConnectionResetError
    except ConnectionResetError:
        assert post.commit(RuntimeError) == 'nothing'


def test_the_second_of_two_databases_refuses(post: Post) -> None:
    """The first one has committed by then, whatever the second one raises."""
    first = OnePhase(key='~sqlalchemy:1')
    begin(post, first, OnePhase(RuntimeError('no'), commits=False, key='~sqlalchemy:2'))
    assert post.commit(RuntimeError) == 'in doubt'
    assert first.rows == ['row']


def test_the_first_of_two_databases_refuses(post: Post) -> None:
    """The second one has not been asked."""
    begin(
        post,
        OnePhase(RuntimeError('no'), commits=False, key='~sqlalchemy:1'),
        OnePhase(key='~sqlalchemy:2'),
    )
    assert post.commit(RuntimeError) == 'nothing'


def test_a_manager_that_raises_in_finish(post: Post) -> None:
    """A manager that commits in its finish, before ours, and raises: in doubt."""
    begin(post, OtherManager(BEFORE, fails='finish'), OnePhase())
    assert post.commit(RuntimeError) == 'in doubt'


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_a_vote_before_ours_commits_nothing(post: Post, error: type[BaseException]) -> None:
    """What sorts before the mail has two phases: nothing is committed when its vote raises."""
    begin(post, OtherManager(BEFORE, fails='vote', error=error), OnePhase())
    assert post.commit(error) == 'nothing'


def test_an_interrupt_in_a_second_delivery_is_no_doubt(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two deliveries: an interrupt in the vote of the second, before any database was asked."""
    other = QueuedMailDelivery(MemoryQueue(), RecordingMailer(), EnvelopeFactory())
    database = OnePhase()
    begin(post, database)
    other.bind(post.manager).send(message())

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(other, 'on_vote', interrupted)
    assert post.commit(KeyboardInterrupt) == 'nothing'
    assert database.rows == []


@pytest.mark.parametrize('where', ['abort', 'tpc_abort'])
def test_what_was_raised_is_lost_with_an_interrupted_cleanup(post: Post, where: str) -> None:
    """An interrupt in another manager's abort keeps ours from being called. When it is, later, what
    the vote had raised is not known: in doubt, whatever is being handled then."""
    keys = {'abort': AFTER, 'tpc_abort': BEFORE}
    interrupted = OtherManager(keys[where], fails=where, error=KeyboardInterrupt)
    refusing = OtherManager('~sqlalchemy:0', fails='vote')
    begin(post, refusing, interrupted)
    with pytest.raises(KeyboardInterrupt):
        post.manager.commit()
    interrupted.fails = frozenset()
    try:
        raise ValueError
    except ValueError:
        post.manager.abort()
    assert post.outcome == 'in doubt'


def test_a_transaction_that_tells_nothing(post: Post) -> None:
    """A transaction of another class, without a list of its votes: the error alone decides."""

    class Steps:
        queue = post.queue

        def on_vote(self) -> None:
            """Do nothing."""

        on_in_doubt = on_vote

    delivery: Any = Steps()
    for error, outcome in ((ConnectionResetError(), 'in doubt'), (None, 'nothing')):
        foreign: Any = None
        manager = MailDataManager(delivery)
        manager.add(TransactionManager().begin(), make_envelope())
        manager.tpc_vote(foreign)
        try:
            if error is not None:
                raise error
            manager.tpc_abort(foreign)
        except ConnectionResetError:
            manager.tpc_abort(foreign)
        assert post.outcome == outcome
        for ticket in post.queue.scan(LATER)[0]:
            claim = post.queue.claim(ticket)
            claim.acknowledge(claim.pending_events)


def test_the_private_names_of_a_transaction() -> None:
    """``not_voted`` reads two private names of ``transaction``: they are there, and mean it."""
    seen: list[Any] = []
    manager = TransactionManager(explicit=True)
    current = manager.begin()
    first, second = OtherManager('a'), OtherManager('b')
    second.tpc_vote = lambda transaction: seen.append(not_voted(transaction))  # type: ignore[method-assign]
    for each in (second, first):
        current.join(each)
    assert not_voted(current) == (second, first)
    manager.commit()
    assert seen == [(second,)]
    assert not_voted(object()) is None


# Keys


class AlwaysLast(str):
    """A key that another package has made to sort last, too."""

    __slots__ = ()

    def __lt__(self, other: object) -> bool:
        return False

    def __gt__(self, other: object) -> bool:
        return True


LAST_KEYS = ['~~', '~' * 17, '~' * 16 + 'pyramid_sendmail', '\x7f', '\xff', '\U0010ffff' * 40]
LAST_KEYS += [AlwaysLast('x')]


@pytest.mark.parametrize('in_doubt', ['hold', 'send'])
@pytest.mark.parametrize('first', [True, False], ids=['joins first', 'joins last'])
@pytest.mark.parametrize('key', LAST_KEYS, ids=_short)
def test_whatever_its_key_a_no_counts(
    tmp_path: Path, key: str, first: bool, in_doubt: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A manager that sorts behind everything votes no: the mail is neither in doubt nor sent. Its
    key was above that of our last voter, which called the mail voted."""
    queue = MaildirQueue(str(tmp_path / 'queue'), in_doubt=in_doubt)
    post = Post(queue)
    current = post.manager.begin()
    other = OtherManager(key, fails='vote')
    if first:
        current.join(other)
    post.mailer.send(message())
    if not first:
        current.join(other)
    assert post.commit(RuntimeError) == 'nothing'
    assert files(queue) == []
    assert 'doubt' not in caplog.text
    queue.close()


@pytest.mark.parametrize('key', LAST_KEYS, ids=_short)
def test_whatever_its_key_a_yes_counts(post: Post, key: str) -> None:
    """The same manager votes yes: a failing finish leaves doubt, a good one queues the mail."""
    begin(post, OtherManager(key), OtherManager(BEFORE, fails='finish'))
    assert post.commit(RuntimeError) == 'in doubt'
    for ticket in post.queue.scan(LATER)[0]:
        claim = post.queue.claim(ticket)
        claim.acknowledge(claim.pending_events)
    begin(post, OtherManager(key))
    post.manager.commit()
    assert post.outcome == 'queued'


@pytest.mark.parametrize('key', [None, 7, -1.5, b'~', ('a', 1), frozenset(), 'none at all'])
@pytest.mark.parametrize(
    ('fails', 'outcome'), [('', 'queued'), ('vote', 'nothing'), ('finish', 'in doubt')]
)
def test_a_key_that_is_no_string(post: Post, key: Any, fails: str, outcome: str) -> None:
    """Or none, which ``transaction`` allows: such a manager sorts before the mail. Mail in the same
    transaction made the commit raise TypeError."""
    other: Any = OtherManager(key, fails=fails)
    if key == 'none at all':
        other.sortKey = None
        current = post.manager.begin()
        current.join(NoKey(other))
        post.mailer.send(message())
    else:
        begin(post, other)
    if fails:
        assert post.commit(RuntimeError) == outcome
    else:
        post.manager.commit()
        assert post.outcome == outcome


class NoKey:
    """A data manager without sortKey."""

    def __init__(self, inner: OtherManager) -> None:
        for name in ('tpc_begin', 'commit', 'tpc_vote', 'tpc_finish', 'tpc_abort', 'abort'):
            setattr(self, name, getattr(inner, name))


@pytest.mark.parametrize('fails', ['', 'vote'])
def test_a_key_equal_to_ours(post: Post, fails: str) -> None:
    """Two managers with one key vote in the order of joining: either order is right."""
    current = begin(post)
    (own, last) = current._resources
    others = [OtherManager(str(own.sortKey()), fails=fails), OtherManager(str(last.sortKey()))]
    current._resources = [*others, own, last]
    if fails:
        assert post.commit(RuntimeError) == 'nothing'
    else:
        post.manager.commit()
        assert post.outcome == 'queued'


def test_last_voters_of_several_deliveries(post: Post) -> None:
    """Each delivery has its own last voter; all of them come behind every other manager."""
    other = QueuedMailDelivery(post.queue, RecordingMailer(), EnvelopeFactory())
    current = begin(post)
    other.bind(post.manager).send(message())
    current.join(OtherManager('\U0010ffff'))
    resources = sorted(current._resources, key=lambda each: each.sortKey())
    kinds = [type(each) for each in resources]
    assert kinds == [MailDataManager, MailDataManager, OtherManager, LastVoter, LastVoter]
    post.manager.commit()
    assert len(post.queue.scan(LATER)[0]) == 2


# Managers that join late


def test_a_manager_that_joins_in_a_before_commit_hook(post: Post) -> None:
    """It votes with the others."""
    current = begin(post)
    current.addBeforeCommitHook(current.join, (OtherManager('\U0010ffff', fails='vote'),))
    assert post.commit(RuntimeError) == 'nothing'


def test_a_manager_that_joins_before_completion(post: Post) -> None:
    """A synchronizer's beforeCompletion is the last place to join."""

    class Synchronizer:
        def beforeCompletion(self, transaction: Any) -> None:
            if not joined:
                joined.append(OtherManager('\U0010ffff', fails='vote'))
                transaction.join(joined[0])

        def afterCompletion(self, transaction: Any) -> None:
            """Do nothing."""

        newTransaction = afterCompletion

    joined: list[OtherManager] = []
    synchronizer = Synchronizer()
    post.manager.registerSynch(synchronizer)
    begin(post)
    assert post.commit(RuntimeError) == 'nothing'
    assert joined[0].calls[:3] == [
        f'{joined[0].key} {step}' for step in ('begin', 'commit', 'vote')
    ]


@pytest.mark.parametrize('step', ['begin', 'commit', 'vote'])
@pytest.mark.parametrize('key', [BEFORE, AFTER])
def test_no_manager_joins_during_the_commit(post: Post, step: str, key: str) -> None:
    """``transaction`` refuses to join then, which fails the commit: nothing is sent."""
    current = post.manager.begin()
    joining: Any = {step: lambda: current.join(OtherManager('\U0010ffff'))}
    current.join(OtherManager(key, **joining))
    post.mailer.send(message())
    assert post.commit(ValueError) == 'nothing'


@pytest.mark.parametrize('fails', ['', 'vote'])
def test_a_manager_behind_everything_and_savepoints(post: Post, fails: str) -> None:
    """A rollback removes our managers, and later ones join behind the other manager again."""
    current = post.manager.begin()
    current.join(SavingManager('\U0010ffff', fails=fails))
    savepoint = current.savepoint()
    post.mailer.send(message('rolled back'))
    savepoint.rollback()
    post.mailer.send(message())
    current.savepoint()
    if fails:
        assert post.commit(RuntimeError) == 'nothing'
    else:
        post.manager.commit()
        assert post.outcome == 'queued'


# Real databases


@pytest.fixture
def session(post: Post, sqlite: sqlalchemy.Engine) -> Session:
    """A session of one phase; ``insert`` joins it to the transaction."""
    return _session(post, sqlite)


def _session(post: Post, engine: sqlalchemy.Engine | None, **options: Any) -> Session:
    maker: Any = sessionmaker(engine, **options)
    zope.sqlalchemy.register(maker, transaction_manager=post.manager)
    own: Session = maker()
    return own


def insert(post: Post, session: Session) -> None:
    session.execute(NOTES.insert().values(text='row'))
    zope.sqlalchemy.mark_changed(session, post.manager)


def _raise(*arguments: object) -> None:
    raise ZeroDivisionError


def lose_connection(engine: sqlalchemy.Engine) -> None:
    """Have the driver's errors count as a lost connection."""

    def handle(context: Any) -> None:
        context.is_disconnect = True

    sqlalchemy.event.listen(engine, 'handle_error', handle)


def commit_then_raise(engine: sqlalchemy.Engine, error: BaseException) -> None:
    """Have COMMIT reach the database, and no answer come back."""
    real = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        real(connection)
        raise error

    engine.dialect.do_commit = do_commit  # type: ignore[method-assign]


@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit])
def test_sqlite_commits_and_an_interrupt_follows(
    post: Post, sqlite: sqlalchemy.Engine, session: Session, error: type[BaseException]
) -> None:
    """The row is there, and so is the mail."""
    begin(post)
    insert(post, session)
    commit_then_raise(sqlite, error())
    assert post.commit(error) == 'in doubt'
    assert notes(sqlite) == ['row']


def test_sqlite_commits_and_the_answer_is_lost(
    post: Post, sqlite: sqlalchemy.Engine, session: Session
) -> None:
    """COMMIT reached the server, the connection broke before the answer."""
    lose_connection(sqlite)
    driver: Any = sqlite.dialect.dbapi
    commit_then_raise(sqlite, driver.OperationalError('server closed the connection'))
    begin(post)
    insert(post, session)
    assert post.commit(sqlalchemy.exc.OperationalError) == 'in doubt'
    assert notes(sqlite) == ['row']


@pytest.mark.parametrize('event', ['after_commit', 'after_transaction_end'])
def test_sqlite_commits_and_a_listener_raises(
    post: Post, sqlite: sqlalchemy.Engine, session: Session, event: str
) -> None:
    """What runs after COMMIT may raise anything: the row is there."""
    sqlalchemy.event.listen(session, event, _raise)
    begin(post)
    insert(post, session)
    assert post.commit(ZeroDivisionError) == 'in doubt'
    assert notes(sqlite) == ['row']


def test_sqlite_commits_and_the_session_cannot_be_closed(
    post: Post, sqlite: sqlalchemy.Engine, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zope.sqlalchemy closes the session after COMMIT, still in its vote."""
    begin(post)
    insert(post, session)
    monkeypatch.setattr(session, 'close', _raise)
    assert post.commit(ZeroDivisionError) == 'in doubt'
    assert notes(sqlite) == ['row']


def test_sqlite_refuses_a_deferred_constraint(
    post: Post, sqlite: sqlalchemy.Engine, session: Session
) -> None:
    """A foreign key is checked at COMMIT: nothing is committed, and the mail goes as well."""
    with sqlite.begin() as connection:
        connection.execute(
            sqlalchemy.text(
                'create table child (note integer references notes (id) '
                'deferrable initially deferred)'
            )
        )

    def turn_on(connection: Any, record: object) -> None:
        connection.execute('pragma foreign_keys = on')

    sqlalchemy.event.listen(sqlite, 'connect', turn_on)
    begin(post)
    insert(post, session)
    session.execute(sqlalchemy.text('insert into child values (4711)'))
    assert post.commit(sqlalchemy.exc.IntegrityError) == 'nothing'
    assert notes(sqlite) == []


@pytest.mark.parametrize('event', ['before_commit', 'engine'])
def test_sqlite_is_not_asked_to_commit(
    post: Post, sqlite: sqlalchemy.Engine, session: Session, event: str
) -> None:
    """A listener that runs before COMMIT raises: nothing is committed."""
    if event == 'engine':
        sqlalchemy.event.listen(sqlite, 'commit', _raise)
    else:
        sqlalchemy.event.listen(session, event, _raise)
    begin(post)
    insert(post, session)
    assert post.commit(ZeroDivisionError) == 'nothing'
    assert notes(sqlite) == []


@pytest.mark.parametrize('listening', ['before_commit', 'after_commit'])
def test_a_connection_lost_at_another_statement(
    post: Post, sqlite: sqlalchemy.Engine, session: Session, listening: str
) -> None:
    """The flush before COMMIT loses the connection: nothing is committed. After COMMIT it is."""

    def query(session: Session) -> None:
        with sqlite.connect() as connection:
            connection.execute(sqlalchemy.text('select nothing from nowhere'))

    lose_connection(sqlite)
    sqlalchemy.event.listen(session, listening, query)
    begin(post)
    insert(post, session)
    committed = listening == 'after_commit'
    outcome = post.commit(sqlalchemy.exc.OperationalError)
    assert outcome == ('in doubt' if committed else 'nothing')
    assert notes(sqlite) == ['row'] * committed


@pytest.mark.parametrize('statement', [None, 'COMMIT', ' commit work', 'INSERT INTO notes'])
@pytest.mark.parametrize('state', [None, '40001', '08007'])
@pytest.mark.parametrize('lost', [True, False])
def test_an_error_of_sqlalchemys(statement: str | None, state: str | None, lost: bool) -> None:
    """A lost connection tells nothing at a COMMIT alone; so does a SQLSTATE that says it."""
    original = driver_error('OperationalError', sqlstate=state)()
    error: Any = sqlalchemy.exc.OperationalError
    error = error(statement, {}, original, connection_invalidated=lost)
    error.__cause__ = original
    expected = statement != 'INSERT INTO notes' and (lost or state == '08007')
    assert is_outcome_unknown(error) == expected


@pytest.mark.parametrize('work', ['written', 'read'])
def test_a_second_session_refuses(
    post: Post, sqlite: sqlalchemy.Engine, session: Session, work: str
) -> None:
    """A first session has written: it has committed, so that the mail is in doubt. If it has only
    read there is nothing to be in doubt about."""
    begin(post)
    session.execute(sqlalchemy.select(NOTES))
    if work == 'written':
        insert(post, session)
    current = post.manager.get()
    ours = (MailDataManager, LastVoter)
    (first,) = [each for each in current._resources if not isinstance(each, ours)]
    first.sortKey = lambda: '~sqlalchemy:1'
    current.join(OtherManager('~sqlalchemy:2', fails='vote'))
    assert post.commit(RuntimeError) == ('in doubt' if work == 'written' else 'nothing')
    assert notes(sqlite) == (['row'] if work == 'written' else [])


def test_one_session_over_two_databases(
    post: Post, sqlite: sqlalchemy.Engine, tmp_path: Path
) -> None:
    """It commits one after the other: when one refuses, the other may have committed."""
    other = sqlalchemy.create_engine(f'sqlite:///{tmp_path}/other.sqlite', poolclass=NullPool)
    make_notes(other)
    committed: list[object] = []

    def fail_at_the_second(connection: object) -> None:
        committed.append(connection)
        if len(committed) == 2:
            raise ZeroDivisionError

    for engine in (sqlite, other):
        sqlalchemy.event.listen(engine, 'commit', fail_at_the_second)
    session = _session(post, None)
    begin(post)
    for engine in (sqlite, other):
        session.execute(NOTES.insert().values(text='row'), bind_arguments={'bind': engine})
    zope.sqlalchemy.mark_changed(session, post.manager)
    assert post.commit(ZeroDivisionError) == 'in doubt'
    assert sorted([*notes(sqlite), *notes(other)]) == ['row']
    other.dispose()


def test_postgresql_ends_the_connection(post: Post, postgresql: sqlalchemy.Engine) -> None:
    """A real connection that the server has ended, at a real COMMIT: the outcome is unknown."""
    session = _session(post, postgresql)
    begin(post)
    insert(post, session)
    session.flush()
    pid = session.execute(sqlalchemy.text('select pg_backend_pid()')).scalar()
    with postgresql.connect() as connection:
        connection.execute(sqlalchemy.text(f'select pg_terminate_backend({pid})'))
    assert post.commit(sqlalchemy.exc.OperationalError) == 'in doubt'


def test_postgresql_refuses(post: Post, postgresql: sqlalchemy.Engine) -> None:
    """A real constraint, checked at COMMIT by a real server."""
    with postgresql.begin() as connection:
        connection.execute(sqlalchemy.text('drop table if exists child'))
        connection.execute(
            sqlalchemy.text('create table child (id integer unique deferrable initially deferred)')
        )
    session = _session(post, postgresql)
    begin(post)
    insert(post, session)
    session.execute(sqlalchemy.text('insert into child values (1), (1)'))
    assert post.commit(sqlalchemy.exc.IntegrityError) == 'nothing'
    assert notes(postgresql) == []
