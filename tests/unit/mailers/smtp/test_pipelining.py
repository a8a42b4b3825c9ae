"""PIPELINING (RFC 2920): the same outcomes as in lock-step, one round trip a mail, no deadlock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pyramid_sendmail.envelope import Envelope, Outcome, Reply, StoredEnvelope, TextTraits, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.mailers.smtp.protocol.state import MAX_PIPELINED_COMMANDS
from pyramid_sendmail.mailers.smtp.session import SMTPSession
from tests.support.pipelining import (
    ANSWERS,
    Fault,
    RecordingConnection,
    outcomes_of,
)
from tests.support.sessions import (
    LOST,
    RAW,
    A,
    B,
    C,
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
    delay,
    drop,
    raw,
    reply,
    reply_then_drop,
)

# The reply matrix, both ways.


YES = {'250', '299'}

ENDS = {'199', '421', '421 and silent', *LOST}

PLACES = ['MAIL', 'RCPT 1', 'RCPT 2', 'RCPT 3', 'DATA', 'dot']


def without_stale(results: list[Any]) -> list[Any]:
    """Leave out whether the connection was stale: pipelining may show it with a reply to a command
    that lock-step never sends."""
    return [result for result in results if not (isinstance(result, tuple) and result[1] is True)]


def compare(faults: list[Fault]) -> None:
    pipelined = outcomes_of(('PIPELINING', '8BITMIME', 'SIZE'), faults)
    lock_step = outcomes_of(('8BITMIME', 'SIZE'), faults)
    if len(faults) > 1:
        pipelined, lock_step = without_stale(pipelined), without_stale(lock_step)
    assert pipelined == lock_step


@pytest.mark.parametrize('answer', ANSWERS)
@pytest.mark.parametrize('place', PLACES)
def test_the_same_outcomes(place: str, answer: str) -> None:
    """For each reply, to the first mail of a connection and to a later one, every outcome, every
    error and all that arrives is the same pipelined and in lock-step."""
    for number in (0, 2):
        compare([(number, place, answer)])


@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow],
)
@example(
    faults=[
        (0, 'MAIL', '432'),
        (0, 'RCPT 1', 'dropped'),
        (1, 'RCPT 1', '432'),
        (1, 'RCPT 2', '454'),
    ]
)
@given(
    faults=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(PLACES), st.sampled_from(list(ANSWERS))),
        min_size=2,
        max_size=8,
        unique_by=lambda fault: fault[:2],
    )
)
def test_the_same_outcomes_of_many_answers(faults: list[Fault]) -> None:
    """So with several replies at any place of any mail, except those that end a connection in reply
    to a command that lock-step never sends: the mails behind are then on a fresh connection, where
    a session failure behind a refused recipient defers."""
    unsaid = {number for number, place, answer in faults if place == 'MAIL' and answer not in YES}
    compare(
        [
            (number, place, answer)
            for number, place, answer in faults
            if not (number in unsaid and place.startswith('RCPT') and answer in ENDS)
        ]
    )


# What leaves when.


def recorded(
    server: ScriptedSMTPServer, *, pipelining: bool = True, **options: Any
) -> tuple[RecordingConnection, SMTPSession]:
    wire = RecordingConnection(server)
    keywords = ('PIPELINING',) if pipelining else ()
    return wire, session_on(wire, *keywords, timeouts=Timeouts().capped(10), **options)


def test_a_mail_costs_one_round_trip(smtp_server: ScriptedSMTPServer) -> None:
    """The commands of a mail leave together, and with the final dot of the mail before."""
    wire, session = recorded(smtp_server)
    outcomes = send(session, envelope(A, B), envelope(B), envelope(C))
    session.close()
    text = RAW.replace(b'\r\n.', b'\r\n..') + b'.\r\n'

    def opening(*recipients: str) -> bytes:
        lines = ''.join(f'RCPT TO:<{each}>\r\n' for each in recipients)
        return f'MAIL FROM:<from@example.org>\r\n{lines}DATA\r\n'.encode()

    assert wire.writes == [
        opening(A, B),
        text + opening(B),
        text + opening(C),
        text,
        b'QUIT\r\n',
    ]
    assert [*map(statuses, outcomes)] == [
        {A: 'delivered', B: 'delivered'},
        {B: 'delivered'},
        {C: 'delivered'},
    ]
    assert not smtp_server.violations


def test_lock_step_without_the_extension(smtp_server: ScriptedSMTPServer) -> None:
    """To a relay that does not offer PIPELINING each command waits for the reply before."""
    smtp_server.extensions = ()
    wire, session = recorded(smtp_server, pipelining=False)
    send(session, envelope(A), envelope(B))
    session.close()
    verbs = [write.split(b' ')[0].split(b'\r')[0] for write in wire.writes]
    mail = [b'MAIL', b'RCPT', b'DATA', b'Subject:']
    assert verbs == [*mail, *mail, b'QUIT']


def test_pipelining_can_be_switched_off(smtp_server: ScriptedSMTPServer) -> None:
    """``pipelining=off`` works for a relay that offers what it cannot do."""
    smtp_server.always('RCPT', reply(550, 'no'))
    session = connect(smtp_server, pipelining=False)
    send(session, envelope(A))
    session.close()
    assert smtp_server.verbs() == ['EHLO', 'MAIL', 'RCPT', 'QUIT']


@pytest.mark.finding(120)
def test_bounded_window() -> None:
    """A relay that replies to 1,000 RCPTs slowly and at length never has more commands to answer
    than its buffers allow, and each recipient gets the mail once."""
    people = [f'r{number}@example.org' for number in range(1_000)]
    with ScriptedSMTPServer(read_size=512) as server:
        server.always('RCPT', delay(0.0005, reply(250, 'x' * 500)))
        wire, session = recorded(server, max_recipients=1_000)
        [outcome] = send(session, envelope(*people))
        session.close()
        assert set(statuses(outcome).values()) == {'delivered'}
        assert MAX_PIPELINED_COMMANDS // 2 < wire.most <= MAX_PIPELINED_COMMANDS
        assert len(wire.writes) < 3 * len(people) / MAX_PIPELINED_COMMANDS + 10
        assert [message.recipients for message in server.messages] == [tuple(people)]
        assert not server.violations


@pytest.mark.parametrize('verb', ['MAIL', 'RCPT'])
def test_text_without_recipients(smtp_server: ScriptedSMTPServer, verb: str) -> None:
    """If DATA is accepted without an accepted recipient, a dot alone follows (RFC 2920, 3.1), and
    the next mail is clean."""
    smtp_server.script(verb, *[reply(550, 'no')] * (1 if verb == 'MAIL' else 2))
    smtp_server.script('DATA', reply(354, 'go on'))
    session = connect(smtp_server)
    refused, after = send(session, envelope(A, B), envelope(C))
    session.close()
    assert statuses(refused) == {A: 'failed', B: 'failed'}
    assert statuses(after) == {C: 'delivered'}
    assert b'DATA\r\n.\r\nRSET\r\nMAIL' in smtp_server.raw(1)
    assert [message.recipients for message in smtp_server.messages] == [(C,)]


@pytest.mark.parametrize('end', [drop(), reply(421, 'closing'), raw(b'what?\r\n')])
def test_connection_lost_after_a_decided_mail(smtp_server: ScriptedSMTPServer, end: Action) -> None:
    """If every recipient was refused, a failure of the commands that follow changes nothing."""
    smtp_server.script('MAIL', reply(550, '5.7.1 not you'))
    smtp_server.script('RCPT', end)
    session = connect(smtp_server)
    outcomes = session.send([envelope(A), envelope(B)])
    assert next(outcomes) == {A: Verdict('failed', Reply(550, '5.7.1 not you'))}
    with pytest.raises(MailerUnavailable) as caught:
        next(outcomes)
    assert caught.value.stale
    session.close()


# Mail that was pulled ahead.


def test_one_mail_ahead_at_most(smtp_server: ScriptedSMTPServer) -> None:
    """The next mail is pulled when the one before is about to leave, and no other."""
    pulled: list[int] = []

    def source() -> Iterator[Envelope]:
        for number in range(5):
            pulled.append(number)
            yield envelope(A)

    session = connect(smtp_server)
    seen = [len(pulled) for _ in session.send(source())]
    session.close()
    assert seen == [2, 3, 4, 5, 5]


def test_pulled_early_and_rejected(smtp_server: ScriptedSMTPServer) -> None:
    """A mail that this relay cannot be asked about has its outcome in order."""
    bad = envelope('no address')
    session = connect(smtp_server)
    outcomes = send(session, envelope(A), bad, bad, envelope(B), bad)
    session.close()
    assert [next(iter(statuses(outcome).values())) for outcome in outcomes] == [
        'delivered',
        'failed',
        'failed',
        'delivered',
        'failed',
    ]


def test_pulled_early_and_the_connection_ends(smtp_server: ScriptedSMTPServer) -> None:
    """A mail whose commands left with the final dot before is untouched."""
    for end, first in {
        drop(): 'ambiguous',
        reply_then_drop(250, 'yes'): 'delivered',
        reply_then_drop(451, 'no'): 'deferred',
        reply_then_drop(421, 'no'): 'deferred',
    }.items():
        smtp_server.script('dot', end)
        session = connect(smtp_server)
        outcomes = session.send([envelope(A), envelope(B)])
        assert statuses(next(outcomes)) == {A: first}
        with pytest.raises(MailerUnavailable) as caught:
            next(outcomes)
        assert caught.value.stale
        session.close()
    assert smtp_server.accepted(B) == 0


def test_source_that_fails_while_a_mail_is_open(smtp_server: ScriptedSMTPServer) -> None:
    """An exception of the iterable comes through, the open mail has not arrived, and the connection
    closes without bytes that could be taken for text."""

    def source() -> Iterator[Envelope]:
        yield envelope(A)
        raise OSError('the queue is on fire')

    session = connect(smtp_server)
    with pytest.raises(OSError, match='on fire'):
        list(session.send(source()))
    session.close()
    idle(smtp_server)
    assert smtp_server.messages == []
    assert b'QUIT' not in smtp_server.raw(1)


def test_unfinished_send(smtp_server: ScriptedSMTPServer) -> None:
    """After an unfinished send the session is over: the next call does not read its replies, and
    QUIT does not become text."""
    session = connect(smtp_server)
    outcomes = session.send([envelope(A), envelope(B)])
    next(outcomes)
    outcomes.close()
    with pytest.raises(MailerUnavailable) as caught:
        send(session, envelope(C))
    assert caught.value.stale
    session.close()
    idle(smtp_server)
    assert C.encode() not in smtp_server.raw(1)
    other = connect(smtp_server)
    next(other.send([envelope(A), envelope(B)]))
    other.close()
    idle(smtp_server)
    assert [message.recipients for message in smtp_server.messages] == [(A,), (A,)]
    assert b'QUIT' not in smtp_server.raw(1) + smtp_server.raw(2)


@pytest.mark.finding(109)
@pytest.mark.parametrize('how', ['rst', 'fin'])
@pytest.mark.parametrize('side', ['client', 'server'])
def test_cut_at_every_byte_of_three_mails(
    smtp_server: ScriptedSMTPServer, cutting_proxy: Callable[..., Any], side: str, how: str
) -> None:
    """With pipelining, wherever the connection is cut: delivered arrived; untouched and deferred
    did not; for each of three mails whose commands overlap."""
    three = [envelope(each) for each in (A, B, C)]
    session = connect(smtp_server)
    send(session, *three)
    session.close()
    size = len(smtp_server.raw(1) if side == 'client' else smtp_server.sent(1))
    proxy = cutting_proxy(smtp_server.port, after=0, side=side, how=how)
    seen = set()
    for after in range(size + 1):
        proxy.after = after
        before = {each: smtp_server.accepted(each) for each in (A, B, C)}
        found: dict[str, str] = {}
        outcomes: list[Outcome] = []
        try:
            session = connect(proxy)
            try:
                outcomes.extend(session.send(three))
            finally:
                session.close()
        except MailerUnavailable:
            pass
        for outcome in outcomes:
            found |= statuses(outcome)
        idle(smtp_server)
        for each in (A, B, C):
            status = found.get(each, 'untouched')
            seen.add((each, status))
            copies = smtp_server.accepted(each) - before[each]
            assert copies in {'delivered': (1,), 'ambiguous': (0, 1)}.get(status, (0,)), after
    assert {(C, 'untouched'), (C, 'ambiguous'), (C, 'delivered'), (B, 'ambiguous')} <= seen


class _UnreadableText:
    size, traits = 200_000, TextTraits(True, False, True, True)

    def blocks(self) -> Iterator[bytes]:
        yield RAW
        raise OSError(5, 'Input/output error')


def test_a_text_that_cannot_be_read_behind_a_reply(smtp_server: ScriptedSMTPServer) -> None:
    """The mail before, whose reply came together with that to DATA, has its outcome."""
    session = connect(smtp_server)
    usual = envelope(id='1' * 32)
    values = {name: getattr(usual, name) for name in Envelope.__dataclass_fields__ if name != 'raw'}
    outcomes = session.send([envelope(), StoredEnvelope(**values, text=_UnreadableText())])
    assert statuses(next(outcomes)) == {A: 'delivered'}
    with pytest.raises(OSError, match='Input/output error'):
        next(outcomes)
