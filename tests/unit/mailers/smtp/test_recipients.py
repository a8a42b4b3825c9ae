"""Mail to more recipients than one mail transaction may have (RFC 5321, 4.5.3.1.8 and 10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyramid_sendmail.envelope import Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.mailers.smtp.options import SessionOptions
from pyramid_sendmail.mailers.smtp.protocol.extensions import is_too_many_recipients
from tests.support.sessions import A, B, C, connect, envelope, idle, send, statuses
from tests.support.smtp.server import Action, ScriptedSMTPServer, drop, reply, reply_then_drop

PEOPLE = tuple(f'r{number}@example.org' for number in range(250))

FULL = {'452': reply(452, 'too many'), '452 4.5.3': reply(452, '4.5.3 too many')}
FULL |= {'552': reply(552, 'too many'), '552 5.5.3': reply(552, '5.5.3 too many')}


@pytest.fixture(params=['pipelining', 'lock-step'])
def server(request: pytest.FixtureRequest, smtp_server: ScriptedSMTPServer) -> Any:
    if request.param == 'lock-step':
        smtp_server.extensions = ('SIZE',)
    yield smtp_server
    assert not smtp_server.violations


def takes(most: int, action: Action) -> Callable[[Any], Action | None]:
    """Return an action that refuses each recipient beyond a number."""
    return lambda session: action if len(session.recipients) >= most else None


@pytest.mark.finding(110)
def test_a_hundred_at_a_time(server: ScriptedSMTPServer) -> None:
    """A mail to 250 recipients leaves in three mail transactions on one connection, once for each,
    and has one outcome."""
    server.always('RCPT', takes(100, reply(554, 'never more than a hundred')))
    session = connect(server)
    outcome, after = send(session, envelope(*PEOPLE), envelope(A))
    session.close()
    assert statuses(outcome) == dict.fromkeys(PEOPLE, 'delivered')
    assert tuple(outcome) == PEOPLE
    assert statuses(after) == {A: 'delivered'}
    assert [len(message.recipients) for message in server.messages] == [100, 100, 50, 1]
    assert server.connections == 1


@pytest.mark.parametrize('full', FULL)
def test_fewer_than_a_hundred(server: ScriptedSMTPServer, full: str) -> None:
    """Recipients that are one too many for the relay follow at once, in further mail transactions,
    by whichever code it says so."""
    server.always('RCPT', takes(60, FULL[full]))
    session = connect(server)
    [outcome] = send(session, envelope(*PEOPLE))
    session.close()
    assert statuses(outcome) == dict.fromkeys(PEOPLE, 'delivered')
    assert [server.accepted(each) for each in PEOPLE] == [1] * 250
    assert max(len(message.recipients) for message in server.messages) == 60


def test_too_many_even_alone(server: ScriptedSMTPServer) -> None:
    """A recipient that is refused as one too many even alone is deferred, by 552 as well."""
    for code in (452, 552):
        server.reset_script()
        server.always('RCPT', reply(code, 'too many'), match='<b@')
        session = connect(server)
        [outcome] = send(session, envelope(A, B, C))
        session.close()
        assert outcome[B] == Verdict('deferred', Reply(code, 'too many'))
        assert statuses(outcome) == {A: 'delivered', B: 'deferred', C: 'delivered'}


@pytest.mark.parametrize(
    ('answer', 'status'),
    [
        (reply(452, '4.2.2 mailbox full'), 'deferred'),
        (reply(552, '5.2.2 mailbox full'), 'failed'),
        (reply(550, 'too many'), 'failed'),
        (reply(451, 'too many'), 'deferred'),
    ],
)
def test_a_full_mailbox(server: ScriptedSMTPServer, answer: Action, status: str) -> None:
    """With another enhanced code the recipient is not asked about again."""
    server.always('RCPT', answer, match='<b@')
    session = connect(server)
    [outcome] = send(session, envelope(A, B))
    session.close()
    assert statuses(outcome) == {A: 'delivered', B: status}
    assert server.verbs().count('RCPT') == 2


def test_first_of_all_refused(server: ScriptedSMTPServer) -> None:
    """452 and 552 before any recipient was accepted are about that recipient."""
    server.script('RCPT', reply(552, 'too many'), reply(452, 'too many'))
    session = connect(server)
    [outcome] = send(session, envelope(A, B, C))
    session.close()
    assert statuses(outcome) == {A: 'failed', B: 'deferred', C: 'delivered'}


def test_each_transaction_is_marked(server: ScriptedSMTPServer) -> None:
    """before_final_dot is called before each final dot, with its recipients."""
    seen: list[tuple[str, ...]] = []
    session = connect(server, max_recipients=2)
    list(
        session.send(
            [envelope(A, B, C)], before_final_dot=lambda _, recipients: seen.append(recipients)
        )
    )
    session.close()
    assert seen == [(A, B), (C,)]


def test_queue_error_in_a_later_transaction(server: ScriptedSMTPServer) -> None:
    """If before_final_dot raises for the second transaction, the replies to the first one count."""
    seen: list[tuple[str, ...]] = []

    def before_final_dot(_mail: object, recipients: tuple[str, ...]) -> None:
        if seen:
            raise QueueError(28, 'no space is left', '/queue')
        seen.append(recipients)

    session = connect(server, max_recipients=2)
    outcomes = session.send([envelope(A, B, C)], before_final_dot=before_final_dot)
    assert statuses(next(outcomes)) == {A: 'delivered', B: 'delivered', C: 'deferred'}
    with pytest.raises(QueueError, match='no space is left'):
        next(outcomes)
    session.close()
    idle(server)
    assert server.accepted(C) == 0
    with pytest.raises(MailerUnavailable):
        send(session, envelope(A))


def second(verb: str, action: Action) -> Callable[[Any], Action | None]:
    """Return an action for the mail transaction of C only."""
    return lambda session: action if C in session.recipients else None


@pytest.mark.parametrize('code', [421, 450, 530, 550, 554])
@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'DATA', 'dot'])
def test_refused_the_second_time(server: ScriptedSMTPServer, verb: str, code: int) -> None:
    """A later mail transaction has replies of its own, and the earlier recipients keep theirs; even
    a session failure only defers the rest."""
    action = reply_then_drop(code, 'no') if code == 421 else reply(code, 'no')
    if verb == 'MAIL':
        server.always('MAIL', lambda session: action if session.server.messages else None)
    elif verb == 'RCPT':
        server.always('RCPT', action, match='<c@')
    else:
        server.always(verb, second(verb, action))
    session = connect(server, max_recipients=2)
    [outcome] = send(session, envelope(A, B, C))
    closed = code in (421, 530) and not (verb == 'dot' and code == 530)
    assert statuses(outcome) == {
        A: 'delivered',
        B: 'delivered',
        C: 'deferred' if code < 500 or closed else 'failed',
    }
    if closed:
        with pytest.raises(MailerUnavailable) as caught:
            send(session, envelope(A))
        assert caught.value.stale is (code == 421)
    session.close()
    assert server.accepted(A) == server.accepted(B) == 1
    assert server.accepted(C) == 0


@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'DATA', 'dot'])
@pytest.mark.parametrize('carried', [False, True], ids=['fresh', 'carried'])
def test_lost_the_second_time(server: ScriptedSMTPServer, verb: str, carried: bool) -> None:
    """If the connection is lost in a later transaction, the first recipients do not get the mail
    again."""
    session = connect(server, max_recipients=2)
    if carried:
        send(session, envelope(B))
    if verb == 'MAIL':
        already = len(server.messages)
        server.always(
            'MAIL', lambda session: drop() if len(session.server.messages) > already else None
        )
    elif verb == 'RCPT':
        server.always('RCPT', drop(), match='<c@')
    else:
        server.always(verb, second(verb, drop()))
    [outcome] = send(session, envelope(A, B, C))
    assert statuses(outcome) == {
        A: 'delivered',
        B: 'delivered',
        C: 'ambiguous' if verb == 'dot' else 'deferred',
    }
    with pytest.raises(MailerUnavailable) as caught:
        send(session, envelope(A))
    assert caught.value.stale
    session.close()


def test_lost_the_second_time_and_none_accepted(server: ScriptedSMTPServer) -> None:
    """A mail whose first transaction was refused is deferred when the connection is lost in the
    second: as untouched it would be sent again for ever, and block all others."""
    server.script('RCPT', reply(250, 'yes'), reply(452, 'too many'))
    server.script('DATA', reply(451, 'not now'))
    server.script('RSET', drop())
    session = connect(server)
    [outcome] = send(session, envelope(A, B))
    session.close()
    assert outcome[A] == Verdict('deferred', Reply(451, 'not now'))
    assert outcome[B].status == 'deferred'


def test_no_second_time_after_a_lost_dot(server: ScriptedSMTPServer) -> None:
    """Recipients whose final dot has left are ambiguous; the others, whose commands may have left
    with it, are deferred."""
    server.script('dot', drop())
    session = connect(server, max_recipients=2)
    [outcome] = send(session, envelope(A, B, C))
    session.close()
    assert statuses(outcome) == {A: 'ambiguous', B: 'ambiguous', C: 'deferred'}
    idle(server)
    assert server.accepted(C) == 0


@pytest.mark.parametrize(
    ('reply', 'expected'),
    [
        (Reply(452, 'too many recipients'), True),
        (Reply(552, 'too many recipients'), True),
        (Reply(452, '4.5.3 too many'), True),
        (Reply(552, '5.5.3 too many'), True),
        (Reply(452, '4.5.30 no such code'), False),
        (Reply(452, '4.3.1 disk full'), False),
        (Reply(552, '5.3.4 too big'), False),
        (Reply(452, ''), True),
        (Reply(451, '4.5.3 too many'), False),
        (Reply(250, '2.5.3'), False),
    ],
)
def test_is_too_many_recipients(reply: Reply, expected: bool) -> None:
    """The code counts, unless an enhanced code says otherwise (RFC 3463, 3.6)."""
    assert is_too_many_recipients(reply) is expected


def test_options_that_make_no_sense() -> None:
    """Wrong options are errors that name themselves."""
    with pytest.raises(ValueError, match='max_recipients=0: write 1 or more'):
        SessionOptions(max_recipients=0)
