"""Mail after mail by SMTP: the outcome of each reply."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.mailers.smtp.session import SMTPSession
from tests.support.sessions import (
    CLOSED,
    LOST,
    RAW,
    A,
    B,
    BreakingConnection,
    C,
    connect,
    envelope,
    idle,
    send,
    statuses,
)
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    accept_then,
    delay,
    drop,
    hang,
    raw,
    reply,
    reply_then_drop,
    reset,
    stream_forever,
)


@pytest.mark.parametrize('carried', [False, True], ids=['fresh', 'carried'])
@pytest.mark.parametrize('answer', CLOSED)
@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'DATA'])
def test_session_failure(server: ScriptedSMTPServer, verb: str, answer: str, carried: bool) -> None:
    """421, 530, 534, 535, 538 and 454 4.7.x before the final dot end the session and count no
    attempt."""
    session = connect(server)
    if carried:
        send(session, envelope())
    server.script(verb, CLOSED[answer])
    with pytest.raises(MailerUnavailable) as caught:
        send(session, envelope(A, B))
    stale = carried and answer.startswith('421')
    assert caught.value.stale is stale
    assert str(server.port) in str(caught.value)
    assert answer[:3] in str(caught.value)
    assert verb in str(caught.value)
    with pytest.raises(MailerUnavailable) as again:
        send(session, envelope())
    assert again.value.stale is stale
    session.close()
    idle(server)
    assert len(server.messages) == carried
    # QUIT is sent where the relay expects commands, and not where it might become text.
    listens = verb == 'DATA' or 'PIPELINING' not in server.extensions
    assert ('QUIT' in server.verbs()) is (listens and not answer.startswith('421'))
    assert (b'QUIT' in server.raw(1)) is ('QUIT' in server.verbs())


@pytest.mark.parametrize(
    ('text', 'remedy'),
    [
        ('5.7.0 Authentication required', 'see mail.username and mail.password'),
        ('5.7.0 Must issue a STARTTLS command first', 'add ?tls=required to mail.url'),
    ],
)
@pytest.mark.parametrize('verb', ['MAIL', 'RCPT'])
def test_530_has_a_remedy(server: ScriptedSMTPServer, verb: str, text: str, remedy: str) -> None:
    """A relay that demands AUTH or TLS before a mail leads to the settings to write."""
    session = connect(server)
    server.script(verb, reply(530, text))
    with pytest.raises(MailerUnavailable) as caught:
        send(session, envelope())
    session.close()
    assert f'{verb} was answered 530 {text}; ' in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize('carried', [False, True], ids=['fresh', 'carried'])
@pytest.mark.parametrize('how', LOST)
@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'DATA', 'dot'])
def test_lost_connection(server: ScriptedSMTPServer, verb: str, how: str, carried: bool) -> None:
    """A connection lost before MAIL's reply is not the mail's fault; before the final dot it is
    stale, or the mail is deferred; after it the mail is ambiguous. It is never used again."""
    action, timeouts = LOST[how]
    session = connect(server, timeouts)
    if carried:
        send(session, envelope())
    server.script(verb, action)
    if verb == 'MAIL' or (carried and verb != 'dot'):
        with pytest.raises(MailerUnavailable) as caught:
            send(session, envelope(A, B))
        assert caught.value.stale is carried
        assert 'lost' in str(caught.value)
    else:
        [outcome] = send(session, envelope(A, B))
        expected = 'ambiguous' if verb == 'dot' else 'deferred'
        assert statuses(outcome) == {A: expected, B: expected}
        for verdict in outcome.values():
            assert verdict.reply is None
            assert str(server.port) in verdict.reason
    # A mail that is pulled from now on is untouched, and goes over another connection.
    with pytest.raises(MailerUnavailable) as caught:
        send(session, envelope())
    assert caught.value.stale is (carried or verb != 'MAIL')
    session.close()
    server.reset_script()
    [outcome] = send(other := connect(server), envelope())
    assert statuses(outcome) == {A: 'delivered'}
    other.close()


@pytest.mark.parametrize('code', [200, 250, 251, 252, 299])
@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'dot'])
def test_any_2xx_is_positive(server: ScriptedSMTPServer, verb: str, code: int) -> None:
    """Only the first digit counts: 251, 252 and 299 are as good as 250."""
    server.script(verb, reply(code, 'yes', 'indeed'))
    session = connect(server)
    [outcome] = send(session, envelope())
    session.close()
    answer = Reply(code, 'yes indeed') if verb == 'dot' else Reply(250, '2.0.0 OK')
    assert outcome == {A: Verdict('delivered', answer)}
    assert server.accepted(A) == 1


@pytest.mark.parametrize('code', [400, 432, 450, 451, 452, 454, 499, 500, 503, 550, 552, 554, 599])
@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'DATA', 'dot'])
def test_refusals_are_per_recipient(server: ScriptedSMTPServer, verb: str, code: int) -> None:
    """4xx defers and 5xx fails: the recipient of the RCPT, else all accepted ones; the next mail on
    the connection is clean."""
    server.script(verb, reply(code, '5.1.2 no'))
    session = connect(server)
    outcome, after = send(session, envelope(A, B), envelope(C))
    session.close()
    refused = Verdict('deferred' if code < 500 else 'failed', Reply(code, '5.1.2 no'))
    assert outcome[A] == refused
    assert outcome[B] == (
        Verdict('delivered', Reply(250, '2.0.0 OK')) if verb == 'RCPT' else refused
    )
    assert statuses(after) == {C: 'delivered'}
    assert server.connections == 1
    assert [message.recipients for message in server.messages][-1] == (C,)
    if verb == 'MAIL' and 'PIPELINING' not in server.extensions:
        assert server.verbs()[:3] == ['EHLO', 'MAIL', 'MAIL']


@pytest.mark.finding(4, 112)
def test_each_recipient_keeps_its_own_reply(server: ScriptedSMTPServer) -> None:
    """250, 550 and 450 to RCPT, and 451 to the final dot, count for their recipients."""
    server.script('RCPT', reply(250), reply(550, 'unknown'), reply(450, 'greylisted'))
    server.script('dot', reply(451, 'disk full'))
    session = connect(server)
    [outcome] = send(session, envelope(A, B, C))
    session.close()
    assert outcome == {
        A: Verdict('deferred', Reply(451, 'disk full')),
        B: Verdict('failed', Reply(550, 'unknown')),
        C: Verdict('deferred', Reply(450, 'greylisted')),
    }
    assert list(outcome) == [A, B, C]


def test_no_data_without_an_accepted_recipient(server: ScriptedSMTPServer) -> None:
    """If every recipient is refused, nothing of the text is sent (RFC 5321, 4.1.1.4)."""
    server.always('RCPT', reply(550, 'unknown'))
    session = connect(server)
    outcome, _ = send(session, envelope(A, B), envelope(C))
    session.close()
    assert statuses(outcome) == {A: 'failed', B: 'failed'}
    # Pipelined, DATA has left by then; the relay refuses it.
    data = ['DATA'] if 'PIPELINING' in server.extensions else []
    refused = ['MAIL', 'RCPT', 'RCPT', *data, 'RSET', 'MAIL', 'RCPT', *data]
    assert server.verbs() == ['EHLO', *refused, 'QUIT']
    assert not server.messages


@pytest.mark.parametrize('action', [reply(500, 'what'), drop(), reply(421, 'closing')])
def test_reset_refused(server: ScriptedSMTPServer, action: Action) -> None:
    """A bad reply to RSET makes the connection stale; the mail is not at fault."""
    server.script('RCPT', reply(550, 'unknown'))
    server.script('RSET', action)
    session = connect(server)
    with pytest.raises(MailerUnavailable) as caught:
        send(session, envelope(A), envelope(C))
    assert caught.value.stale
    session.close()


def test_lost_connection_spares_refused_recipients(server: ScriptedSMTPServer) -> None:
    """A refused recipient keeps its reply when the connection is lost later."""
    for verb, status in {'DATA': 'deferred', 'dot': 'ambiguous'}.items():
        server.script('RCPT', reply(550, 'unknown'))
        server.script(verb, drop())
        session = connect(server)
        [outcome] = send(session, envelope(A, B))
        assert outcome[A] == Verdict('failed', Reply(550, 'unknown'))
        assert outcome[B].status == status
        session.close()


def test_421_to_the_final_dot(server: ScriptedSMTPServer) -> None:
    """421 to the final dot is a refusal: deferred with that reply; the next mail needs another
    connection."""
    server.script('dot', reply_then_drop(421, '4.3.2 closing'))
    session = connect(server)
    outcomes = session.send([envelope(A), envelope(B)])
    assert next(outcomes) == {A: Verdict('deferred', Reply(421, '4.3.2 closing'))}
    with pytest.raises(MailerUnavailable) as caught:
        next(outcomes)
    assert caught.value.stale
    session.close()
    assert server.verbs() == ['EHLO', 'MAIL', 'RCPT', 'DATA', 'dot']


@pytest.mark.parametrize('carried', [False, True], ids=['fresh', 'carried'])
@pytest.mark.parametrize('end', [reply_then_drop(421, '4.7.0 too many errors'), drop()])
def test_relay_that_hangs_up_after_unknown_recipients(
    server: ScriptedSMTPServer, end: Action, carried: bool
) -> None:
    """If a fresh connection ends after a refused recipient, the other recipients are deferred: an
    uncounted attempt would repeat for ever. On a used connection the mail is sent again at once."""
    session = connect(server)
    if carried:
        send(session, envelope(C))
    server.script('RCPT', reply(550, 'unknown'), end)
    if carried:
        with pytest.raises(MailerUnavailable) as caught:
            send(session, envelope(A, B))
        assert caught.value.stale
    else:
        [outcome] = send(session, envelope(A, B))
        assert outcome[A] == Verdict('failed', Reply(550, 'unknown'))
        assert outcome[B].status == 'deferred'
    session.close()


def test_full_session(server: ScriptedSMTPServer) -> None:
    """452 to MAIL may mean too many mails in a session: the mail goes over another connection at
    once; on a fresh connection it is a reply to the mail."""
    share = reply(452, '4.5.3 too many messages sent')
    session = connect(server)
    send(session, envelope(A))
    server.script('MAIL', share, share)
    with pytest.raises(MailerUnavailable) as caught:
        send(session, envelope(B))
    assert caught.value.stale
    session.close()
    session = connect(server)
    [outcome] = send(session, envelope(B))
    assert outcome == {B: Verdict('deferred', Reply(452, '4.5.3 too many messages sent'))}
    server.script('MAIL', reply(452, '4.3.1 disk full'))
    assert statuses(send(session, envelope(A))[0]) == {A: 'deferred'}
    session.close()


def test_nothing_is_sent_after_a_421(server: ScriptedSMTPServer) -> None:
    """After a 421 nothing is sent, even if the relay does not close."""
    server.script('dot', reply(421, '4.3.2 closing'))
    session = connect(server)
    assert statuses(send(session, envelope(A))[0]) == {A: 'deferred'}
    session.close()
    idle(server)
    assert server.verbs() == ['EHLO', 'MAIL', 'RCPT', 'DATA', 'dot']


def test_lost_after_the_mark() -> None:
    """A mail that was marked ambiguous and has not left is deferred, so that the mark does not
    stay."""
    wire: Any = BreakingConnection(1_000)
    session = SMTPSession(wire, name='smtp://relay:25', extensions={}, timeouts=Timeouts())
    session._carried = True
    ambiguous: list[object] = []
    [outcome] = session.send([envelope()], before_final_dot=lambda *mark: ambiguous.append(mark))
    assert ambiguous
    assert statuses(outcome) == {A: 'deferred'}


def test_250_to_half_a_message() -> None:
    """A 250 does not count if the end of the message may not have left."""
    wire: Any = BreakingConnection(1, Reply(250, 'queued'))
    session = SMTPSession(wire, name='smtp://relay:25', extensions={}, timeouts=Timeouts())
    assert statuses(send(session, envelope())[0]) == {A: 'ambiguous'}


def test_no_error_behind_the_last_mail(server: ScriptedSMTPServer) -> None:
    """A session that is over raises when there is a mail to send, not before."""
    server.script('dot', drop())
    session = connect(server)
    assert [statuses(outcome) for outcome in send(session, envelope())] == [{A: 'ambiguous'}]
    assert send(session) == []
    session.close()


@pytest.mark.finding(30)
def test_connection_dies_between_two_mails(server: ScriptedSMTPServer) -> None:
    """The next MAIL finds out, as a stale connection and not a refused sender."""
    server.script('dot', reply_then_drop(250, 'queued'))
    session = connect(server)
    outcomes = session.send([envelope(A), envelope(B)])
    assert statuses(next(outcomes)) == {A: 'delivered'}
    idle(server)
    with pytest.raises(MailerUnavailable) as caught:
        next(outcomes)
    assert caught.value.stale
    session.close()


@pytest.mark.finding(5)
@pytest.mark.parametrize(
    'end', [reply_then_drop(250, 'queued'), reply(250, 'queued', then=reset())], ids=['fin', 'rst']
)
def test_quit_cannot_undo_an_acceptance(server: ScriptedSMTPServer, end: Action) -> None:
    """Whatever happens after the last 250, the mail is delivered, once."""
    server.script('dot', end)
    session = connect(server)
    [outcome] = send(session, envelope())
    session.close()
    assert outcome == {A: Verdict('delivered', Reply(250, 'queued'))}
    assert server.accepted(A) == 1


@pytest.mark.parametrize('answer', [reply(421, 'no'), reply(500, 'no'), drop(), reset(), hang()])
def test_quit_is_over_soon(server: ScriptedSMTPServer, answer: Action) -> None:
    """Closing raises nothing and waits only for the time-out of QUIT."""
    server.script('QUIT', answer)
    session = connect(server, Timeouts(quit=0.1))
    send(session, envelope())
    session.close()
    assert server.verbs()[-1] == 'QUIT'


def test_abandon_sends_nothing(server: ScriptedSMTPServer) -> None:
    """Abandoning sends neither QUIT nor anything else."""
    session = connect(server)
    send(session, envelope())
    before = server.raw(1)
    session.abandon()
    idle(server)
    assert server.raw(1) == before


@pytest.mark.finding(6)
def test_final_reply_takes_its_time(server: ScriptedSMTPServer) -> None:
    """A reply to the final dot may take longer than the time-out of a command."""
    server.script('dot', delay(0.8))
    session = connect(server, Timeouts(command=0.5, data=0.5, block=0.5, final=10))
    [outcome] = send(session, envelope())
    session.close()
    assert statuses(outcome) == {A: 'delivered'}
    assert server.accepted(A) == 1


@pytest.mark.parametrize(
    ('phase', 'verb'),
    [('command', 'MAIL'), ('command', 'RCPT'), ('data', 'DATA'), ('final', 'dot')],
)
def test_each_phase_has_its_own_time(server: ScriptedSMTPServer, phase: str, verb: str) -> None:
    """A stall ends with the time-out of its phase, and the text says how long that was."""
    server.script(verb, hang())
    session = connect(server, Timeouts(**{phase: 0.2, 'quit': 0.2}))
    try:
        [outcome] = send(session, envelope())
        text = str(outcome[A])
    except MailerUnavailable as error:
        text = str(error)
    session.close()
    assert 'timed out after 0.2 s' in text


@pytest.mark.parametrize(
    ('verb', 'code', 'status'),
    [
        ('MAIL', 354, 'untouched'),
        ('RCPT', 354, 'deferred'),
        ('DATA', 250, 'deferred'),
        ('dot', 354, 'ambiguous'),
    ],
)
def test_reply_out_of_place(server: ScriptedSMTPServer, verb: str, code: int, status: str) -> None:
    """A reply that makes no sense in its place ends the session."""
    server.script(verb, reply(code, 'so', then=drop()))
    session = connect(server)
    if status == 'untouched':
        with pytest.raises(MailerUnavailable, match=f'answered MAIL with {code} so'):
            send(session, envelope())
    else:
        [outcome] = send(session, envelope())
        assert statuses(outcome) == {A: status}
        assert f'{code} so' in str(outcome[A])
    session.close()


@pytest.mark.parametrize(
    ('unsent', 'status'),
    [(1000, 'deferred'), (5, 'deferred'), (4, 'ambiguous'), (1, 'ambiguous'), (0, 'ambiguous')],
)
def test_ambiguous_from_the_first_byte_of_the_end(unsent: int, status: str) -> None:
    """If no byte of CRLF.CRLF can have left, the relay cannot have accepted the mail."""
    for extensions, mails in {(): 1, ('PIPELINING',): 1, ('PIPELINING', 'SIZE'): 2}.items():
        wire: Any = BreakingConnection(unsent)
        session = SMTPSession(
            wire,
            name='smtp://relay:25',
            extensions=dict.fromkeys(extensions, ''),
            timeouts=Timeouts(),
        )
        # What leaves behind the final dot is not the mail's.
        outcomes = session.send([envelope()] * mails)
        assert statuses(next(outcomes)) == {A: status}


def test_accepted_without_a_reply(server: ScriptedSMTPServer) -> None:
    """If the connection is lost between the acceptance and its reply, the mail is ambiguous, not
    failed."""
    server.script('dot', accept_then(drop()))
    session = connect(server)
    [outcome] = send(session, envelope())
    session.close()
    assert statuses(outcome) == {A: 'ambiguous'}
    assert 'no answer to the whole message' in str(outcome[A])
    assert server.accepted(A) == 1


# What else can happen


@pytest.mark.finding(47)
def test_endless_reply_is_cut(server: ScriptedSMTPServer) -> None:
    """An endless reply costs neither memory nor time, and the error names the limit."""
    server.script('MAIL', stream_forever(b'250-' + b'x' * 500 + b'\r\n'))
    session = connect(server)
    with pytest.raises(MailerUnavailable, match='more than 256 lines'):
        send(session, envelope())
    session.close()


def test_reply_text_is_harmless(server: ScriptedSMTPServer) -> None:
    """Control characters and broken UTF-8 in a reply do not reach logs and events."""
    server.script('RCPT', raw(b'550-\x1b[31mno\tone\r\n550-\r\n550 \xff h\xc3\xb6re\n'))
    session = connect(server)
    [outcome] = send(session, envelope())
    session.close()
    assert outcome[A].reply == Reply(550, '\ufffd[31mno one \ufffd höre')


def test_interrupted_in_the_middle(server: ScriptedSMTPServer) -> None:
    """After Ctrl-C during a mail the session sends nothing more, not even QUIT."""

    def interrupt(*_seen: object) -> None:
        raise KeyboardInterrupt

    session = connect(server)
    with pytest.raises(KeyboardInterrupt):
        list(session.send([envelope()], before_final_dot=interrupt))
    with pytest.raises(MailerUnavailable):
        send(session, envelope())
    session.close()
    idle(server)
    assert server.verbs() == ['EHLO', 'MAIL', 'RCPT', 'DATA']
    assert not server.messages


def test_before_final_dot_gets_accepted_recipients(server: ScriptedSMTPServer) -> None:
    """before_final_dot gets the accepted recipients, before the relay has seen the end of the
    mail."""
    server.script('RCPT', reply(250), reply(550, 'unknown'), reply(250))
    seen: list[Any] = []

    def before_final_dot(mail: Envelope, recipients: tuple[str, ...]) -> None:
        seen.append((mail.id, recipients, server.verbs()[-1]))

    session = connect(server)
    list(session.send([envelope(A, B, C)], before_final_dot=before_final_dot))
    session.close()
    assert seen == [('0' * 32, (A, C), 'DATA')]


@pytest.mark.finding(109)
@pytest.mark.parametrize('how', ['rst', 'fin'])
@pytest.mark.parametrize('side', ['client', 'server'])
def test_cut_at_every_byte(
    server: ScriptedSMTPServer, cutting_proxy: Callable[..., Any], side: str, how: str
) -> None:
    """Wherever the connection is cut: delivered arrived; deferred and untouched did not."""
    mail = envelope(A, raw=RAW)
    session = connect(server)
    send(session, mail)
    session.close()
    size = len(server.raw(1) if side == 'client' else server.sent(1))
    seen = set()
    proxy = cutting_proxy(server.port, after=0, side=side, how=how)
    mailer = SMTPMailer(proxy.host, proxy.port, hostname='web.example.org')
    for after in range(size + 1):
        proxy.after = after
        copies = server.accepted(A)
        status: str
        try:
            session = mailer.connect()
            try:
                [outcome] = send(session, mail)
            finally:
                session.close()
            status = outcome[A].status
        except MailerUnavailable:
            status = 'untouched'
        idle(server)
        copies = server.accepted(A) - copies
        seen.add(status)
        assert copies in {'delivered': (1,), 'ambiguous': (0, 1)}.get(status, (0,)), after
    statuses_seen = {'untouched', 'deferred', 'ambiguous', 'delivered'}
    if side == 'client' and 'PIPELINING' in server.extensions:
        # MAIL leaves together with the commands that follow: there is no cut in between.
        statuses_seen.discard('deferred')
    assert seen == statuses_seen


def test_threads_have_sessions_of_their_own(server: ScriptedSMTPServer) -> None:
    """Two sessions of one mailer do not get each other's replies."""
    server.always('RCPT', reply(550, 'no'), match='b@')
    results: dict[str, set[str]] = {}

    def run(recipient: str) -> None:
        session = connect(server)
        outcomes = send(session, *[envelope(recipient)] * 20)
        session.close()
        results[recipient] = {outcome[recipient].status for outcome in outcomes}

    threads = [threading.Thread(target=run, args=(recipient,)) for recipient in (A, B)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == {A: {'delivered'}, B: {'failed'}}
