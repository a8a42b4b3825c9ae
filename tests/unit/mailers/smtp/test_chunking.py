"""CHUNKING (RFC 3030) with several mails in flight: outcomes agree with what arrived."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyramid_sendmail.envelope import BLOCK_SIZE, Envelope, Outcome, Reply, Tally
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.mailers.smtp.connection import ConnectionLost
from pyramid_sendmail.mailers.smtp.lmtp import LMTPMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import SessionOptions, Timeouts
from pyramid_sendmail.mailers.smtp.protocol.flight import MAX_BYTES_IN_FLIGHT
from pyramid_sendmail.mailers.smtp.protocol.state import MAX_PIPELINED_COMMANDS
from pyramid_sendmail.mailers.smtp.session import SMTPSession
from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.format import decode
from pyramid_sendmail.retry import RetryPolicy
from pyramid_sendmail.sending.attempt import attempt
from pyramid_sendmail.sending.outcome import OutcomeRecorder
from pyramid_sendmail.sending.relay_connection import RelayConnection
from tests.support.doubles import RecordingMailer
from tests.support.pipelining import (
    ANSWERS,
    Fault,
    RecordingConnection,
    mails,
    outcomes_of,
    script_actions,
)
from tests.support.processors import RecordingDispatcher
from tests.support.queues import NOW, Clock, files, forked, make_envelope, reap, until
from tests.support.sessions import (
    CLOSED,
    LOST,
    RAW,
    TINY,
    connect,
    envelope,
    idle,
    send,
    session_on,
    statuses,
)
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    Session,
    delay,
    drop,
    hang,
    hold,
    reply,
    reply_then_drop,
)

CHUNKING = ('PIPELINING', '8BITMIME', 'SIZE', 'CHUNKING')

PLACES = ['MAIL', 'RCPT 1', 'RCPT 2', 'RCPT 3', 'dot']

REPLIES = [
    name
    for name, action in ANSWERS.items()
    if name not in CLOSED and name not in LOST and name not in ('354', '199', '454', '299')
]
"""Answers that are about a mail, and leave the connection what it is."""

CROWDED = ('452 ', '452 many')


@pytest.fixture
def server(smtp_server: ScriptedSMTPServer) -> ScriptedSMTPServer:
    smtp_server.extensions = CHUNKING
    return smtp_server


def one(number: int, **changes: Any) -> Envelope:
    """Return the mail of that number, to one recipient."""
    return envelope(to(number), id=f'{number:032x}', **changes)


def to(number: int) -> str:
    return f'r@{number}.example.org'


def some(count: int, **changes: Any) -> list[Envelope]:
    return [one(number, **changes) for number in range(count)]


# The reply matrix.


@pytest.mark.parametrize('answer', REPLIES)
@pytest.mark.parametrize('place', PLACES)
def test_the_same_outcomes(place: str, answer: str) -> None:
    """A reply has the outcome that it has in lock-step, for the first mail and for one that leaves
    with others, and the same mail arrives. The number of transactions may differ: a limit of
    recipients is learned too late for mail that has left."""
    # 452 at MAIL is about the session, once it has carried a mail.
    for number in (0, 2)[: 1 if place == 'MAIL' and answer in CROWDED else 2]:
        faults = [(number, place, answer)]
        lock_step = outcomes_of(('8BITMIME', 'SIZE'), faults)
        assert outcomes_of(CHUNKING, faults, window=8)[:-1] == lock_step[:-1]


FAULTS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(PLACES), st.sampled_from(REPLIES)).filter(
        lambda fault: fault[1] != 'MAIL' or fault[2] not in CROWDED
    ),
    min_size=2,
    max_size=8,
    unique_by=lambda fault: fault[:2],
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(faults=FAULTS, window=st.integers(2, 5))
def test_the_same_outcomes_of_many_answers(faults: list[Fault], window: int) -> None:
    """So do several replies at any place of any mail, with windows of any size."""
    lock_step = outcomes_of(('8BITMIME', 'SIZE'), faults)
    assert outcomes_of(CHUNKING, faults, window=window)[:-1] == lock_step[:-1]


def true_of(outcomes: dict[str, str], copies: Counter[tuple[str, str]]) -> None:
    """Check outcomes against the server: delivered arrived once; failed, deferred and untouched did
    not arrive."""
    for recipient, status in outcomes.items():
        count = sum(n for (_, each), n in copies.items() if each == recipient)
        allowed = {'delivered': (1,), 'ambiguous': (0, 1)}.get(status, (0,))
        assert count in allowed, (recipient, status, count)


def found_by(
    server: ScriptedSMTPServer, each: list[Envelope], place: Any = None
) -> tuple[dict[str, str], MailerUnavailable | None]:
    """Return each recipient's status after one session; 'untouched' without an outcome."""
    found = {recipient: 'untouched' for mail in each for recipient in mail.recipients}
    trouble = None
    session = None
    try:
        session = connect(place or server, window=8)
        for outcome in session.send(each):
            found |= statuses(outcome)
    except MailerUnavailable as error:
        trouble = error
    if session is not None:
        session.close()
    idle(server)
    return found, trouble


ENDS = [name for name in ANSWERS if name not in REPLIES and name not in ('199', '299')]


@pytest.mark.parametrize('answer', ENDS)
@pytest.mark.parametrize('place', PLACES)
def test_an_end_in_the_middle(place: str, answer: str) -> None:
    """After a session failure or a lost connection at any place, the first mails have their
    outcomes, and those of the others are true of what arrived."""
    for number in (0, 1, 3):
        with ScriptedSMTPServer(extensions=CHUNKING) as server:
            script_actions(server, [(number, place, answer)])
            found, _ = found_by(server, mails())
            true_of(found, server.pairs())
            for earlier in range(number):
                assert found[f'r1@{earlier}.example.org'] == 'delivered'
            assert not server.violations, server.dump()


@pytest.mark.parametrize('verb', ['MAIL', 'RCPT'])
@pytest.mark.parametrize('code', [530, 534, 535, 538, 454])
def test_a_session_failure_for_all(server: ScriptedSMTPServer, verb: str, code: int) -> None:
    """If no mail behind it was accepted either, a session failure counts no attempt."""
    server.script(verb, reply(250, 'yes'), reply(250, 'yes'))
    server.always(verb, reply(code, '4.7.0 who are you?'))
    found, trouble = found_by(server, some(8))
    assert [*found.values()] == [*['delivered'] * 2, *['untouched'] * 6]
    assert trouble is not None
    assert not trouble.stale
    assert f'{verb} was answered {code}' in str(trouble)
    assert not server.violations


def test_a_session_failure_for_one(server: ScriptedSMTPServer) -> None:
    """If a mail behind it was accepted, the mail with the session failure is deferred. The session
    ends, as in lock-step."""
    server.always('RCPT', reply(530, '5.7.0 who are you?'), match='@2.')
    found, trouble = found_by(server, some(20))
    assert [found[to(n)] for n in range(5)] == [
        *('delivered', 'delivered', 'deferred', 'delivered', 'delivered')
    ]
    assert found[to(19)] == 'untouched'
    true_of(found, server.pairs())
    assert trouble is not None
    assert not trouble.stale


def test_a_session_failure_behind_a_recipient(server: ScriptedSMTPServer) -> None:
    """After a session failure at the second RCPT the accepted recipient gets the mail, and the
    other is deferred."""
    server.always('RCPT', reply(530, '5.7.0 who are you?'), match='<c@')
    mail = envelope('a@example.org', 'c@example.org', id='a' * 32)
    found, trouble = found_by(server, [one(0), mail])
    assert found == {
        to(0): 'delivered',
        'a@example.org': 'delivered',
        'c@example.org': 'deferred',
    }
    assert trouble is None


@pytest.mark.parametrize('end', [reply_then_drop(421, 'closing'), reply(421, 'closing')])
@pytest.mark.parametrize('verb', ['RSET', 'MAIL', 'RCPT'])
def test_a_relay_that_says_that_it_closes(
    server: ScriptedSMTPServer, verb: str, end: Action
) -> None:
    """Mail behind a 421 is untouched if the relay hangs up; if it goes on, its replies count."""
    server.script(verb, *[reply(250, 'yes')] * (1 if verb == 'RSET' else 2), end)
    found, trouble = found_by(server, some(8))
    true_of(found, server.pairs())
    behind = 'untouched' if end.then else 'delivered'  # type: ignore[union-attr]
    assert found[to(7)] == behind
    if end.then:  # type: ignore[union-attr]
        assert trouble is not None
        assert trouble.stale
        assert [*found.values()].count('untouched') == 6


def test_a_relay_that_says_that_it_closes_and_is_silent(server: ScriptedSMTPServer) -> None:
    """If the relay is silent after its 421, mail that has left is ambiguous."""
    server.script('MAIL', reply(250, 'yes'), reply(421, 'closing', then=hang()))
    session = connect(server, TINY, window=8)
    outcomes = send(session, *some(3))
    assert [statuses(outcome) for outcome in outcomes] == [
        {to(0): 'delivered'},
        {to(1): 'ambiguous'},
        {to(2): 'ambiguous'},
    ]
    session.close()


def test_a_full_session(server: ScriptedSMTPServer) -> None:
    """452 to MAIL means a stale connection; no mail is deferred."""
    server.script('MAIL', *[reply(250, 'yes')] * 3)
    server.always('MAIL', reply(452, '4.5.3 enough for now'))
    found, trouble = found_by(server, some(8))
    assert [*found.values()] == [*['delivered'] * 3, *['untouched'] * 5]
    assert trouble is not None
    assert trouble.stale


def test_a_lost_connection(server: ScriptedSMTPServer) -> None:
    """After a lost connection all mail in flight is ambiguous, except for refused recipients; the
    rest is untouched."""
    server.script('dot', reply(250, 'yes'), reply(250, 'yes'), drop())
    server.always('MAIL', reply(550, '5.7.1 not you'), match='<strange@')
    each = some(12)
    each[1] = one(1, sender='strange@example.org')
    found, trouble = found_by(server, each)
    assert [found[to(n)] for n in range(3)] == ['delivered', 'failed', 'delivered']
    assert set(found.values()) == {'delivered', 'failed', 'ambiguous', 'untouched'}
    assert 6 <= [*found.values()].count('ambiguous') <= 8
    assert trouble is not None
    assert trouble.stale


def test_a_connection_that_died_in_silence(server: ScriptedSMTPServer) -> None:
    """If the relay hung up while nothing was sent, every mail is untouched."""
    session = connect(server, window=8)
    send(session, *some(3))
    server.always('MAIL', drop())
    with pytest.raises(MailerUnavailable) as caught:
        send(session, *some(8))
    assert caught.value.stale
    session.close()


@pytest.mark.finding(109)
@pytest.mark.parametrize('how', ['rst', 'fin'])
@pytest.mark.parametrize('side', ['client', 'server'])
def test_cut_at_every_byte_of_four_mails(
    server: ScriptedSMTPServer, cutting_proxy: Callable[..., Any], side: str, how: str
) -> None:
    """With several mails in flight, wherever the connection is cut: delivered arrived; untouched
    and deferred did not."""
    four = some(4)
    found_by(server, four)
    size = len(server.raw(1) if side == 'client' else server.sent(1))
    proxy = cutting_proxy(server.port, after=0, side=side, how=how)
    seen = set()
    for after in (*range(0, size, 1 if how == 'fin' else 7), size):
        proxy.after = after
        before = {to(n): server.accepted(to(n)) for n in range(4)}
        found, _ = found_by(server, four, proxy)
        seen |= set(found.items())
        for each, status in found.items():
            copies = server.accepted(each) - before[each]
            assert copies in {'delivered': (1,), 'ambiguous': (0, 1)}.get(status, (0,)), after
    assert {(to(3), 'untouched'), (to(3), 'ambiguous'), (to(3), 'delivered')} <= seen


# What leaves when.


def recorded(server: ScriptedSMTPServer, **options: Any) -> tuple[RecordingConnection, SMTPSession]:
    wire = RecordingConnection(server)
    capped = Timeouts().capped(10)
    return wire, session_on(wire, 'PIPELINING', 'CHUNKING', timeouts=capped, **options)


def test_the_window_leaves_in_one_go(server: ScriptedSMTPServer) -> None:
    """The first mail waits for RCPT; its text leaves with as many mails as there is room for, byte
    for byte and without dot stuffing."""
    wire, session = recorded(server, window=3)
    outcomes = send(session, *some(3))
    session.close()

    def opening(number: int, *, reset: bool) -> bytes:
        mail = f'MAIL FROM:<from@example.org>\r\nRCPT TO:<{to(number)}>\r\n'.encode()
        return b'RSET\r\n' * reset + mail

    chunk = b'BDAT %d LAST\r\n' % len(RAW) + RAW
    assert wire.writes == [
        opening(0, reset=False),
        chunk + opening(1, reset=True) + chunk + opening(2, reset=True) + chunk,
        b'QUIT\r\n',
    ]
    assert [statuses(each) for each in outcomes] == [{to(n): 'delivered'} for n in range(3)]
    assert [message.data for message in server.messages] == [RAW] * 3
    assert not server.violations


@pytest.mark.parametrize(
    'raw', [b'', b'x', b'.', b'\r\n.\r\n', 'x: y\r\n\r\nGrüße'.encode(), b'.\r\n' * 999]
)
def test_texts_arrive_as_they_are(server: ScriptedSMTPServer, raw: bytes) -> None:
    """Text that would end DATA is plain text for BDAT, and nothing is added."""
    each = [one(0), one(1, raw=raw), one(2)]
    found, _ = found_by(server, each)
    assert set(found.values()) == {'delivered'}
    assert [message.data for message in server.messages] == [RAW, raw, RAW]
    assert ('BODY=8BITMIME' in server.messages[1].mail_arguments) == (not raw.isascii())
    assert f'SIZE={len(raw)}' in server.messages[1].mail_arguments


def test_the_window_is_as_wide_as_was_asked(server: ScriptedSMTPServer) -> None:
    """Mail is pulled when it can leave, and one more that waits; no other."""
    pulled: list[int] = []

    def source() -> Iterator[Envelope]:
        for each in some(20):
            pulled.append(len(server.messages))
            yield each

    session = connect(server, window=4)
    yielded = 0
    for _ in session.send(source()):
        yielded += 1
        assert len(pulled) <= yielded + 4
    session.close()
    assert yielded == 20


def test_a_mail_is_refused_with_another_behind(server: ScriptedSMTPServer) -> None:
    """RSET stands in front of each mail, whose predecessor has no reply yet."""
    joined = threading.Event()
    server.script('RSET', hold(joined, reply(250, 'yes')))
    server.always('RCPT', reply(550, 'no'), match='@1.')

    def source() -> Iterator[Envelope]:
        yield from some(2)
        joined.set()
        yield one(2)
        yield one(3)

    session = connect(server, window=2)
    outcomes = list(session.send(source()))
    session.close()
    assert [next(iter(statuses(outcome).values())) for outcome in outcomes] == [
        *('delivered', 'failed', 'delivered', 'delivered')
    ]
    assert not server.violations


def test_few_bytes_are_in_flight(server: ScriptedSMTPServer) -> None:
    """The bytes in flight are bounded, however wide the window."""
    wire, session = recorded(server, window=100)
    raw = RAW + b'x\r\n' * (BLOCK_SIZE // 3 - 100)
    outcomes = send(session, *some(12, raw=raw))
    session.close()
    assert {*map(str, map(statuses, outcomes))} == {str({to(n): 'delivered'}) for n in range(12)}
    assert max(map(len, wire.writes)) <= MAX_BYTES_IN_FLIGHT + 2_000


def test_few_commands_are_in_flight(server: ScriptedSMTPServer) -> None:
    """A relay that replies slowly and at length never has more commands to answer than its buffers
    allow."""
    server.always('RCPT', delay(0.0005, reply(250, 'x' * 500)))
    wire, session = recorded(server, window=100)
    each = [
        envelope(*(f'r{n}@{number}.example.org' for n in range(20)), id=f'{number:032x}')
        for number in range(20)
    ]
    outcomes = send(session, *each)
    session.close()
    assert all(set(statuses(outcome).values()) == {'delivered'} for outcome in outcomes)
    assert MAX_PIPELINED_COMMANDS // 2 < wire.most <= MAX_PIPELINED_COMMANDS
    assert len(server.messages) == 20


@pytest.mark.parametrize(
    'heavy',
    [
        one(5, raw=RAW + b'x\r\n' * BLOCK_SIZE),
        envelope(*(f'r{n}@5.example.org' for n in range(MAX_PIPELINED_COMMANDS)), id=f'{5:032x}'),
    ],
)
def test_large_mail_goes_alone(server: ScriptedSMTPServer, heavy: Envelope) -> None:
    """A large mail, and a mail to many recipients, goes by DATA while nothing is in flight."""
    each = [*some(5), heavy, *(one(number) for number in range(6, 9))]
    found, _ = found_by(server, each)
    assert set(found.values()) == {'delivered'}
    assert [message.recipients for message in server.messages] == [mail.recipients for mail in each]
    verbs = server.verbs()
    assert verbs.count('DATA') == 1
    assert verbs.count('BDAT') == 8
    assert not server.violations


def test_rejected_mail_in_the_window(server: ScriptedSMTPServer) -> None:
    """A mail that this relay cannot be asked about has its outcome in order, alone or among
    others."""
    bad = envelope('no address', id='b' * 32)
    session = connect(server, window=8)
    outcomes = send(session, bad, one(0), bad, bad, one(1), bad)
    assert [next(iter(statuses(outcome).values())) for outcome in outcomes] == [
        *('failed', 'delivered', 'failed', 'failed', 'delivered', 'failed')
    ]
    session.close()


def test_many_recipients_one_by_one(server: ScriptedSMTPServer) -> None:
    """Recipients that were one too many get the mail when nothing is in flight; the outcomes keep
    their order."""
    many = reply(452, '4.5.3 too many')

    def crowded(session: Session) -> Action | None:
        return many if len(session.recipients) == 2 else None

    server.always('RCPT', crowded)
    each = [
        envelope(*(f'r{n}@{number}.example.org' for n in range(5)), id=f'{number:032x}')
        for number in range(3)
    ]
    session = connect(server, window=8)
    outcomes = send(session, one(7), *each, one(8))
    session.close()
    assert [tuple(outcome) for outcome in outcomes] == [
        (to(7),),
        *(mail.recipients for mail in each),
        (to(8),),
    ]
    assert all(set(statuses(outcome).values()) == {'delivered'} for outcome in outcomes)
    assert all(server.accepted(to) == 1 for mail in each for to in mail.recipients)
    assert not server.violations


def test_many_recipients_and_no_mark(server: ScriptedSMTPServer) -> None:
    """If the rest of a mail cannot be marked ambiguous, all mail in flight has its outcome before
    the error is raised."""
    server.script('RCPT', *[reply(250, 'yes')] * 2, reply(452, '4.5.3 too many'))
    server.script('RCPT', *[reply(250, 'yes')], reply(452, '4.5.3 too many'))
    mail = envelope('a@example.org', 'b@example.org', id='a' * 32)
    other = envelope('c@example.org', 'd@example.org', id='b' * 32)
    left = [1, 1, 1]

    def before_final_dot(mail: Envelope, recipients: Any) -> None:
        if not left:
            raise QueueError(28, 'no space')
        left.pop()

    session = connect(server, window=8)
    outcomes: list[Outcome] = []
    with pytest.raises(QueueError):
        outcomes.extend(session.send([one(0), mail, other], before_final_dot=before_final_dot))
    session.close()
    assert [statuses(outcome) for outcome in outcomes] == [
        {to(0): 'delivered'},
        {'a@example.org': 'delivered', 'b@example.org': 'deferred'},
        {'c@example.org': 'delivered', 'd@example.org': 'deferred'},
    ]


def test_many_recipients_and_a_lost_connection(server: ScriptedSMTPServer) -> None:
    """Recipients that were one too many are deferred when the connection is lost: they certainly
    have not got the mail."""
    server.script('RCPT', *[reply(250, 'yes')] * 2, reply(452, '4.5.3 too many'))
    server.script('dot', reply(250, 'yes'), reply(250, 'yes'), drop())
    mail = envelope('a@example.org', 'b@example.org', id='a' * 32)
    found, trouble = found_by(server, [one(0), mail, one(1)])
    assert found == {
        to(0): 'delivered',
        'a@example.org': 'delivered',
        'b@example.org': 'deferred',
        to(1): 'ambiguous',
    }
    assert trouble is None


# When before_final_dot is called.


def test_mails_are_marked_before_their_text(server: ScriptedSMTPServer) -> None:
    """before_final_dot is called for the accepted recipients of the first mail, and for all
    recipients of the others."""
    server.always('RCPT', reply(550, 'no'), match='<x@')
    ambiguous: list[tuple[str, tuple[str, ...], int]] = []

    def before_final_dot(mail: Envelope, recipients: Any) -> None:
        ambiguous.append((mail.id, tuple(recipients), len(server.messages)))

    each = [envelope('x@example.org', to(n), id=f'{n:032x}') for n in range(3)]
    session = connect(server, window=8)
    list(session.send(each, before_final_dot=before_final_dot))
    session.close()
    assert ambiguous == [
        (each[0].id, (to(0),), 0),
        (each[1].id, ('x@example.org', to(1)), 0),
        (each[2].id, ('x@example.org', to(2)), 0),
    ]


@pytest.mark.parametrize('where', [0, 1, 3])
def test_a_mark_that_cannot_be_written(server: ScriptedSMTPServer, where: int) -> None:
    """If before_final_dot raises, mail in flight has its replies first, and the mail itself does
    not leave."""

    def before_final_dot(mail: Envelope, recipients: Any) -> None:
        if mail.id == f'{where:032x}':
            raise QueueError(28, 'no space')

    session = connect(server, window=8)
    outcomes: list[Outcome] = []
    with pytest.raises(QueueError):
        outcomes.extend(session.send(some(6), before_final_dot=before_final_dot))
    session.close()
    idle(server)
    assert [statuses(outcome) for outcome in outcomes] == [
        {to(n): 'delivered'} for n in range(where)
    ]
    assert len(server.messages) == where


def test_a_source_that_fails(server: ScriptedSMTPServer) -> None:
    """An exception of the iterable comes through, and the connection is closed without QUIT."""

    def source() -> Iterator[Envelope]:
        yield from some(2)
        raise ZeroDivisionError

    session = connect(server, window=8)
    with pytest.raises(ZeroDivisionError):
        list(session.send(source()))
    session.close()
    idle(server)
    assert b'QUIT' not in server.raw(1)


def test_a_bug_in_the_middle(server: ScriptedSMTPServer) -> None:
    """An exception while replies are read closes the connection without QUIT, too."""
    server.script('dot', reply(250, 'yes'), hang())
    wire, session = recorded(server, window=3)
    outcomes = session.send(some(3))
    next(outcomes)
    wire.receive = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError):
        list(outcomes)
    session.close()
    idle(server)
    assert b'QUIT' not in server.raw(1)


def test_an_unfinished_send(server: ScriptedSMTPServer) -> None:
    """The next call of send does not read replies that belong to an unfinished one."""
    session = connect(server, window=8)
    outcomes = session.send(some(4))
    next(outcomes)
    outcomes.close()
    with pytest.raises(MailerUnavailable) as caught:
        send(session, one(9))
    assert caught.value.stale
    session.close()
    idle(server)
    assert server.accepted(to(9)) == 0


class Narrow:
    """A connection that breaks in the second write: ``unsent`` bytes of it have certainly not
    left."""

    lost = secure = False

    def __init__(self, unsent: int, *received: Reply) -> None:
        self._unsent = unsent
        self._writes = 0
        self._received = iter([Reply(250, ''), Reply(250, ''), *received])

    def write(self, data: bytes) -> None:
        self._writes += 1
        if self._writes == 2:
            raise ConnectionLost('while sending: Broken pipe', unsent=self._unsent)

    def receive(self, deadline: float, timeout: float) -> bytes:
        reply = next(self._received, None)
        return b'' if reply is None else f'{reply.code} {reply.text}\r\n'.encode()

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ('unsent', 'received', 'expected'),
    [
        (0, (), ['ambiguous'] * 3),
        (1, (), ['ambiguous'] * 2),
        (len(RAW) + 200, (Reply(250, 'yes'),), ['delivered']),
        (1, (Reply(250, 'yes'), *[Reply(250, '')] * 3, Reply(550, 'no')), ['delivered', 'failed']),
        (0, (Reply(421, 'closing'),), ['deferred']),
    ],
)
def test_a_write_that_fails(unsent: int, received: tuple[Reply, ...], expected: list[str]) -> None:
    """Replies before the failure count. A text whose last byte has not left has not arrived, nor
    has a mail behind a 421."""
    session = session_on(
        Narrow(unsent, *received), 'PIPELINING', 'CHUNKING', timeouts=TINY, window=8
    )
    outcomes: list[Outcome] = []
    try:
        outcomes.extend(session.send(some(3)))
    except MailerUnavailable:
        assert len(expected) < 3
    assert [next(iter(statuses(outcome).values())) for outcome in outcomes] == expected


# With claims of a queue.


@pytest.fixture
def queue(tmp_path: Path) -> MaildirQueue:
    queue = MaildirQueue(str(tmp_path / 'queue'), sync=False, clock=Clock())
    queue.prepare()
    queue.put([make_envelope(to(n), due=NOW + n / 1000 - 1) for n in range(8)]).publish()
    return queue


def letters(queue: MaildirQueue) -> list[str]:
    """Return the state and marks of each mail on disk."""
    found = []
    for file in files(queue):
        block = decode((Path(queue.path) / file).read_bytes())
        found.append(''.join([block.state, *block.letters]))
    return found


def drained(queue: MaildirQueue, server: ScriptedSMTPServer, **options: Any) -> Tally:
    """Send what is due, over as many connections as it takes."""
    mailer = SMTPMailer(
        server.host,
        server.port,
        hostname='web.example.org',
        timeouts=Timeouts().capped(10),
        options=SessionOptions(window=8),
    )
    tally, connection = Tally(), RelayConnection(mailer)
    attempts = OutcomeRecorder(
        RetryPolicy(jitter=0.0), RecordingDispatcher(), clock=Clock(), **options
    )
    tickets, _ = queue.scan(NOW)
    claims = (queue.claim(ticket) for ticket in tickets)
    while tally.total < 8:
        attempt(claims, connection, attempts, tally)
    connection.close()
    idle(server)
    return tally


def test_a_process_that_stops_leaves_all_ambiguous(
    queue: MaildirQueue, server: ScriptedSMTPServer
) -> None:
    """When the first text arrives, every mail in flight has its mark on disk."""
    seen: list[list[str]] = []

    def scan(session: Session) -> None:
        seen.append(letters(queue))

    server.script('dot', scan)
    assert drained(queue, server) == Tally(delivered=8)
    assert seen == [['S?'] * 8]
    assert files(queue) == []


@pytest.mark.parametrize('answered', [0, 3])
def test_a_process_that_is_killed(
    queue: MaildirQueue, server: ScriptedSMTPServer, answered: int
) -> None:
    """After kill -9 with mails in flight, those with an outcome are gone; the others are ambiguous
    and follow mail.ambiguous."""
    never = threading.Event()
    server.script('dot', *[reply(250, 'yes')] * answered, hold(never))
    pid = forked(lambda: drained(MaildirQueue(queue.path, clock=Clock()), server))
    server.wait_for(lambda server: server.verbs().count('dot') > answered)
    until(lambda: len(files(queue)) == 8 - answered)
    os.kill(pid, signal.SIGKILL)
    reap(pid)
    claims = [queue.claim(ticket) for ticket in queue.scan(NOW)[0]]
    assert [claim and (claim.interrupted, claim.ambiguous) for claim in claims] == [
        ('ambiguous', (to(n),)) for n in range(answered, 8)
    ]
    tally = Tally()
    attempts = OutcomeRecorder(RetryPolicy(jitter=0.0), RecordingDispatcher(), clock=Clock())
    attempt(
        [claim for claim in claims if claim], RelayConnection(RecordingMailer()), attempts, tally
    )
    assert tally == Tally(deferred=8 - answered)


def test_a_stale_connection_costs_no_attempt(
    queue: MaildirQueue, server: ScriptedSMTPServer
) -> None:
    """After 421 in the middle of a window each mail arrives once, over another connection."""
    server.script('MAIL', *[reply(250, 'yes')] * 3, reply_then_drop(421, 'closing'))
    assert drained(queue, server) == Tally(delivered=8)
    assert server.connections == 2
    assert [server.accepted(to(n)) for n in range(8)] == [1] * 8


def test_a_session_failure_leaves_no_mark(queue: MaildirQueue, server: ScriptedSMTPServer) -> None:
    """A session failure leaves neither a mark nor an attempt on a mail."""
    before = letters(queue)
    server.script('MAIL', *[reply(250, 'yes')] * 3)
    server.always('MAIL', reply(530, '5.7.0 who are you?'))
    with pytest.raises(MailerUnavailable):
        drained(queue, server)
    assert letters(queue) == before[3:]
    server.reset_script()
    queue.put([make_envelope(to(n)) for n in range(3)]).publish()
    assert drained(queue, server) == Tally(delivered=8)


@pytest.mark.parametrize('ambiguous', ['resend', 'hold'])
def test_a_lost_connection_makes_all_ambiguous(
    queue: MaildirQueue, server: ScriptedSMTPServer, ambiguous: str
) -> None:
    """After a lost connection each mail in flight follows mail.ambiguous."""
    server.script('dot', reply(250, 'yes'), drop())
    tally = drained(queue, server, ambiguous=ambiguous)
    assert tally.delivered == 1
    assert (tally.deferred, tally.failed) == ((7, 0) if ambiguous == 'resend' else (0, 7))
    assert len(server.messages) == 1


# Without the extensions.


@pytest.mark.parametrize(
    ('extensions', 'options'),
    [
        (('PIPELINING',), {'window': 8}),
        (('CHUNKING',), {'window': 8}),
        (CHUNKING, {}),
        (CHUNKING, {'window': 8, 'pipelining': False}),
    ],
)
def test_data_without_the_extensions(extensions: tuple[str, ...], options: dict[str, Any]) -> None:
    """Without the extensions, or with window=1, mail goes by DATA."""
    with ScriptedSMTPServer(extensions=extensions) as server:
        session = connect(server, **options)
        send(session, *some(2))
        session.close()
        assert 'BDAT' not in server.verbs()


def test_lmtp_goes_one_by_one() -> None:
    """By LMTP one mail is sent at a time, since each recipient has a reply."""
    with ScriptedSMTPServer(extensions=CHUNKING, lmtp=True) as server:
        mailer = LMTPMailer(
            server.host,
            server.port,
            hostname='web.example.org',
            options=SessionOptions(window=8),
        )
        session = mailer.connect()
        session.close()


def test_a_window_of_none() -> None:
    """window=0 is an error that says what to write."""
    with pytest.raises(ValueError, match='window=0: write 1 or more'):
        SessionOptions(window=0)
