"""Whether a commit that failed may have been done all the same.

A one-phase database commits in its vote, behind ours. What it raises there tells whether anything
was committed:

================================================= ==========================
raised in its vote                                the commit
================================================= ==========================
any Exception but the following: a constraint, a  was refused
serialization failure, a flush that failed
a connection lost while COMMIT was answered       may have been done
an ``after_commit`` listener of SQLAlchemy's, or  was done
what closes its session
KeyboardInterrupt, SystemExit, and whatever else  may have been done
is no Exception
================================================= ==========================

Whatever a later manager raises, a one-phase database that voted before it has committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Literal

__all__ = ['has_voted', 'is_outcome_unknown', 'may_have_committed', 'not_voted']

_LOST = (ConnectionError, TimeoutError, EOFError)

_LOST_SQLSTATES = ('08', '40003', '57P0')
"""What the SQLSTATE of an error begins with after which the outcome of a COMMIT is unknown: a
connection exception, *statement completion unknown* (ISO/IEC 9075-2, 24.1), and PostgreSQL's class
of a server that is shut down."""

_LOST_MYSQL = (2006, 2013)
"""``CR_SERVER_GONE_ERROR`` and ``CR_SERVER_LOST``."""


def not_voted(transaction: object) -> tuple[object, ...] | None:
    """Return the data managers that have not voted; None if the transaction does not tell.

    ``_resources`` and ``_voted`` are private names, as of transaction 5.1 (a test holds them).
    """
    resources: Iterable[object] | None = getattr(transaction, '_resources', None)
    voted = _votes(transaction)
    if resources is None or voted is None:
        return None
    return tuple([each for each in resources if id(each) not in voted])


def has_voted(transaction: object, manager: object) -> bool:
    """Return whether a data manager has voted yes."""
    return id(manager) in (_votes(transaction) or {})


def _votes(transaction: object) -> dict[int, bool] | None:
    votes: dict[int, bool] | None = getattr(transaction, '_voted', None)
    return votes


def may_have_committed(manager: object, *, voted: bool) -> bool:
    """Return whether a data manager that votes after ours may have committed in its vote, whatever
    another one has raised.

    ``state`` is zope.sqlalchemy's: 'committed', or 'no work' for a session that has only read.
    """
    state = getattr(manager, 'state', None)
    return state == 'committed' or (voted and state != 'no work')


def is_outcome_unknown(error: BaseException | None) -> bool:
    """Return whether the vote that raised this may have committed; None: what it raised is not
    known."""
    if error is None:
        return True
    for each in _causes(error):
        if not isinstance(each, Exception):
            return True
    stage = _stage_of_session(error.__traceback__)
    if stage != 'commit':
        return stage == 'after'
    for each in _causes(error):
        if hasattr(each, 'connection_invalidated'):
            return _is_lost_in_sqlalchemy(each)
        if isinstance(each, _LOST) or _is_lost_in_driver(each):
            return True
    return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from. Not ``__context__``, which may be an
    exception of the code around the commit."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _stage_of_session(trace: TracebackType | None) -> Literal['before', 'commit', 'after']:
    """Return where in the commit of a SQLAlchemy session something was raised: ``before`` and
    ``after`` COMMIT, or in ``commit``, which is also the answer if there is no session.

    The state of the session does not tell: it is closed by now.
    """
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        file = frame.f_code.co_filename
        module: str = frame.f_globals.get('__name__', '')
        # SQLAlchemy wraps its methods in generated functions of the same name and module.
        if module != 'sqlalchemy.orm.session' or file.startswith('<'):
            continue
        if frame.f_code.co_name == '_prepare_impl':
            return 'before'
        if frame.f_code.co_name == 'commit':
            return _stage_in_commit(frame.f_locals.get('self'), trace)
    return 'commit'


def _stage_in_commit(
    session_transaction: object, trace: TracebackType | None
) -> Literal['before', 'commit', 'after']:
    """``trace``: what ``SessionTransaction.commit`` has called."""
    if trace is None:
        return 'after'
    if trace.tb_frame.f_code.co_name == '_prepare_impl':
        return 'before'
    called: str = trace.tb_frame.f_globals.get('__name__', '')
    if not called.startswith('sqlalchemy.engine'):
        return 'after'
    # A session over several databases commits one after the other: some may have committed.
    connections = getattr(session_transaction, '_connections', {})
    return 'after' if len(set(map(id, connections.values()))) > 1 else 'commit'


def _is_lost_in_sqlalchemy(error: BaseException) -> bool:
    """For a DBAPIError of SQLAlchemy's: ``statement`` is what was executed, None at a COMMIT."""
    statement = getattr(error, 'statement', None)
    if statement is not None and not str(statement).lstrip().upper().startswith('COMMIT'):
        return False
    original = getattr(error, 'orig', None)
    return bool(getattr(error, 'connection_invalidated', False)) or (
        isinstance(original, BaseException) and _has_lost_sqlstate(original)
    )


def _is_lost_in_driver(error: BaseException) -> bool:
    """For an exception of a database driver (PEP 249), whose module need not be installed."""
    names = {each.__name__ for each in type(error).__mro__}
    if names.isdisjoint(('OperationalError', 'InterfaceError')):
        return False
    # psycopg has no SQLSTATE for what the server has not said.
    for name in ('sqlstate', 'pgcode'):
        if hasattr(error, name) and getattr(error, name) is None:
            return True
    return _has_lost_sqlstate(error) or error.args[:1] in [(code,) for code in _LOST_MYSQL]


def _has_lost_sqlstate(error: BaseException) -> bool:
    state = getattr(error, 'sqlstate', None) or getattr(error, 'pgcode', None) or ''
    return str(state).startswith(_LOST_SQLSTATES)
