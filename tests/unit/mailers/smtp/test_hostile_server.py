"""A broken or hostile relay: replies without a command, endless replies, control characters,
repeated passwords, connections cut at any byte."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyramid_sendmail.envelope import Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.lmtp import LMTPMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.mailers.smtp.protocol.replies import MAX_REPLY_CHARACTERS
from tests.support.queues import until
from tests.support.sessions import (
    RAW,
    A,
    B,
    C,
    connect,
    envelope,
    idle,
    make_mailer,
    send,
    statuses,
)
from tests.support.smtp.server import (
    Action,
    CuttingProxy,
    ScriptedSMTPServer,
    Session,
    TLSAuthority,
    delay,
    raw,
    reply,
)

Start = Callable[..., ScriptedSMTPServer]

PASSWORD = 'gehe1m'


@pytest.fixture(params=['pipelining', 'lock-step'])
def server(
    request: pytest.FixtureRequest, smtp_server: ScriptedSMTPServer
) -> Iterator[ScriptedSMTPServer]:
    if request.param == 'lock-step':
        smtp_server.extensions = ('SIZE',)
    yield smtp_server
    assert not smtp_server.violations


# More than was asked


@pytest.mark.parametrize('carried', [False, True], ids=['fresh', 'carried'])
def test_250_before_the_text(server: ScriptedSMTPServer, carried: bool) -> None:
    """A 250 that comes together with 354 is no reply to the text: the mail is not delivered, and
    its text is not sent."""
    session = connect(server)
    if carried:
        send(session, envelope())
    server.script('DATA', raw(b'354 go on\r\n250 2.0.0 queued\r\n'))
    server.script('dot', reply(550, '5.7.1 spam'))
    if carried:
        with pytest.raises(MailerUnavailable, match='more replies than it got commands') as caught:
            send(session, envelope())
        assert caught.value.stale
    else:
        [outcome] = send(session, envelope())
        assert statuses(outcome) == {A: 'deferred'}
        assert 'more replies than it got commands' in outcome[A].reason
    session.close()
    idle(server)
    assert server.accepted(A) == carried
    assert b'QUIT' not in server.raw(1)


@pytest.mark.parametrize('more', [b'250 yes\r\n', b'550 no\r\n', b'354 go on\r\n', b'2'])
def test_two_answers_to_a_text(server: ScriptedSMTPServer, more: bytes) -> None:
    """A second reply to a text is not taken for the first one of the next mail, which goes over
    another connection."""
    server.script('dot', raw(b'250 2.0.0 queued\r\n' + more))
    server.always('RCPT', reply(550, '5.1.1 unknown'), match='<b@')
    session = connect(server)
    outcomes = session.send([envelope(C), envelope(A, B)])
    assert statuses(next(outcomes)) == {C: 'delivered'}
    with pytest.raises(MailerUnavailable) as caught:
        next(outcomes)
    assert caught.value.stale
    session.close()
    session = connect(server)
    [outcome] = send(session, envelope(A, B))
    assert statuses(outcome) == {A: 'delivered', B: 'failed'}
    session.close()


def test_more_answers_than_recipients() -> None:
    """By LMTP one reply too many ends the session after the mail."""
    with ScriptedSMTPServer(lmtp=True) as server:
        server.script('dot', reply(250, 'for a'), raw(b'250 for b\r\n250 for none\r\n'))
        server.always('RCPT', reply(550, '5.1.1 unknown'), match='<c@')
        session = LMTPMailer(server.host, server.port, hostname='web.example.org').connect()
        outcomes = session.send([envelope(A, B), envelope(A, C)])
        assert statuses(next(outcomes)) == {A: 'delivered', B: 'delivered'}
        with pytest.raises(MailerUnavailable, match='more replies than it got commands') as caught:
            next(outcomes)
        assert caught.value.stale
        session.close()


@pytest.mark.parametrize('verb', ['EHLO', 'MAIL', 'RCPT'])
def test_two_answers_to_a_command(smtp_server: ScriptedSMTPServer, verb: str) -> None:
    """In lock-step no command follows a reply that came unasked."""
    smtp_server.extensions = ()
    smtp_server.script(verb, raw(b'250 yes\r\n250 yes\r\n'))
    session = connect(smtp_server)
    if verb in ('EHLO', 'MAIL'):
        with pytest.raises(MailerUnavailable, match='more replies than it got commands'):
            send(session, envelope())
    else:
        assert statuses(send(session, envelope())[0]) == {A: 'deferred'}
    session.close()
    assert smtp_server.verbs()[-1] == verb


@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'DATA', 'dot'])
def test_421_behind_an_answer(server: ScriptedSMTPServer, verb: str) -> None:
    """A relay may send 421 at any time, unasked (RFC 5321, 3.8): it is read as the next reply, and
    the replies before it count."""
    code = 354 if verb == 'DATA' else 250
    server.script(verb, raw(f'{code} yes\r\n421 4.3.2 closing\r\n'.encode()))
    session = connect(server)
    if verb in ('MAIL', 'RCPT'):
        with pytest.raises(MailerUnavailable, match=r'421 4\.3\.2 closing'):
            send(session, envelope())
    elif verb == 'DATA':
        assert send(session, envelope()) == [{A: Verdict('deferred', Reply(421, '4.3.2 closing'))}]
    else:
        outcomes = session.send([envelope(A), envelope(B)])
        assert next(outcomes) == {A: Verdict('delivered', Reply(250, 'yes'))}
        with pytest.raises(MailerUnavailable, match=r'421 4\.3\.2 closing') as caught:
            next(outcomes)
        assert caught.value.stale
    session.close()


# Talk without end


def test_drops_without_end(server: ScriptedSMTPServer) -> None:
    """A reply has one time-out as a whole: a byte now and then does not prolong it."""

    def drip(_session: Session) -> Action:
        return raw(b'drop after drop ', then=delay(0.02, drip))

    server.script('dot', raw(b'250-', then=drip))
    session = connect(server, Timeouts(final=0.3, quit=0.3))
    begun = time.monotonic()
    [outcome] = send(session, envelope())
    session.close()
    assert statuses(outcome) == {A: 'ambiguous'}
    assert 'timed out after 0.3 s' in outcome[A].reason
    assert time.monotonic() - begun < 5


def test_a_long_story(server: ScriptedSMTPServer, caplog: pytest.LogCaptureFixture) -> None:
    """Only the first characters of a reply of a megabyte are kept."""
    story = (b'550-' + b'x' * 4_000 + b'\r\n') * 255 + b'550 the end\r\n'
    server.script('RCPT', raw(story))
    session = connect(server)
    [outcome] = send(session, envelope())
    session.close()
    reply = outcome[A].reply
    assert reply is not None
    assert (reply.code, reply.text[:4_001]) == (550, 'x' * 4_000 + ' ')
    assert len(reply.text) == MAX_REPLY_CHARACTERS
    server.script('EHLO', raw(story))
    with pytest.raises(MailerUnavailable) as caught:
        connect(server)
    assert len(str(caught.value)) < MAX_REPLY_CHARACTERS + 200


def test_mechanisms_without_end(start_smtp_server: Start) -> None:
    """A long list of mechanisms does not fill the log."""
    offers = [f'AUTH {"GSSAPI " * 500}'] * 200
    server = start_smtp_server(extensions=offers)
    with pytest.raises(MailerUnavailable, match='and not PLAIN or LOGIN') as caught:
        insecure(server).connect()
    assert len(str(caught.value)) < 400


# What a reply may hold


def test_signs_that_are_not_seen(server: ScriptedSMTPServer) -> None:
    """Unicode line ends begin no line of a log, direction marks are replaced, and other blanks
    become blanks."""
    words = 'no\u2028250 yes\u2029\x85and\u202eon\u200b\u00a0so\x1b[2J'
    server.script('RCPT', raw(f'550 5.1.1 {words}\r\n'.encode()))
    session = connect(server)
    [outcome] = send(session, envelope())
    session.close()
    assert outcome[A].reply == Reply(550, '5.1.1 no 250 yes  and\ufffdon\ufffd so\ufffd[2J')


def insecure(server: ScriptedSMTPServer, **options: Any) -> SMTPMailer:
    values: dict[str, Any] = {'username': 'ann', 'password': PASSWORD}
    return make_mailer(server.host, server.port, tls='none', insecure=True, **(values | options))


@pytest.mark.finding(40)
@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'DATA', 'dot'])
@pytest.mark.parametrize('kind', ['password', 'token'])
def test_secrets_are_repeated_later(
    start_smtp_server: Start, verb: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If a relay repeats the password, the token or their base64 during a mail, no outcome and no
    error shows them."""
    caplog.set_level(logging.DEBUG)
    secret = {'password': PASSWORD} if kind == 'password' else {'password': None}
    if kind == 'token':
        secret['token'] = lambda: PASSWORD  # type: ignore[assignment]
    server = start_smtp_server(
        auth={'ann': PASSWORD}, auth_mechanisms=('PLAIN', 'XOAUTH2'), auth_required=True
    )
    session = insecure(server, **secret).connect()
    response = next(line for _, verb, line in server.commands if verb == 'AUTH').split()[-1]
    server.script(verb, reply(554, f'{response} was', f'refused: {PASSWORD}'))
    [outcome] = send(session, envelope())
    assert outcome[A].reply == Reply(554, '*** was refused: ***')
    server.script(verb, reply(535, f'{response} has expired'))
    if verb == 'dot':
        [outcome] = send(session, envelope())
        assert outcome[A].reply == Reply(535, '*** has expired')
    else:
        with pytest.raises(MailerUnavailable, match=r'535 \*\*\* has expired'):
            send(session, envelope())
    session.close()
    assert PASSWORD not in caplog.text


# Lines that are cut


def statuses_after(mailer: SMTPMailer, mail: Any) -> dict[str, str]:
    """Return the status of each recipient after one attempt."""
    try:
        session = mailer.connect()
        try:
            [outcome] = send(session, mail)
        finally:
            session.close()
    except MailerUnavailable:
        return dict.fromkeys(mail.recipients, 'untouched')
    return statuses(outcome)


def cut(
    server: ScriptedSMTPServer, proxy: CuttingProxy, mailer: SMTPMailer, places: range
) -> set[str]:
    """Cut after each of these numbers of bytes and compare the statuses with what arrived; return
    the statuses seen."""
    mail = envelope(A, B, C)
    seen = set()
    for after in places:
        proxy.after = after
        before = {each: server.accepted(each) for each in mail.recipients}
        found = statuses_after(mailer, mail)
        idle(server)
        for each, status in found.items():
            copies = server.accepted(each) - before[each]
            assert copies in {'delivered': (1,), 'ambiguous': (0, 1)}.get(status, (0,)), after
        seen |= set(found.values())
    return seen


def whole(server: ScriptedSMTPServer, mailer: SMTPMailer, side: str) -> int:
    """Return how many bytes a whole session has, before encryption."""
    assert set(statuses_after(mailer, envelope(A, B, C)).values()) == {'delivered'}
    return len(server.raw(1) if side == 'client' else server.sent(1))


@pytest.mark.finding(109)
@pytest.mark.parametrize('how', ['rst', 'fin'])
@pytest.mark.parametrize('side', ['client', 'server'])
def test_lmtp_is_cut_at_every_byte(
    start_smtp_server: Start, cutting_proxy: Callable[..., CuttingProxy], side: str, how: str
) -> None:
    """By LMTP each status agrees with what the service knows, wherever the connection is cut."""
    server = start_smtp_server(lmtp=True)
    proxy = cutting_proxy(server.port, after=None, side=side, how=how)
    mailer = LMTPMailer(proxy.host, proxy.port, hostname='web.example.org')
    size = whole(server, mailer, side)
    seen = cut(server, proxy, mailer, range(size + 1))
    assert seen >= {'untouched', 'ambiguous', 'delivered'}


@pytest.mark.finding(109)
@pytest.mark.parametrize('mechanism', ['PLAIN', 'LOGIN', 'XOAUTH2'])
@pytest.mark.parametrize('side', ['client', 'server'])
def test_cut_at_every_byte_of_auth(
    start_smtp_server: Start,
    cutting_proxy: Callable[..., CuttingProxy],
    side: str,
    mechanism: str,
) -> None:
    """If the connection is cut during AUTH, the relay is unavailable."""
    server = start_smtp_server(
        auth={'ann': PASSWORD}, auth_mechanisms=(mechanism,), auth_required=True
    )
    proxy = cutting_proxy(server.port, after=None, side=side, how='rst')
    options: dict[str, Any] = {}
    if mechanism == 'XOAUTH2':
        options = {'password': None, 'token': lambda: PASSWORD}
    mailer = insecure(proxy, **options)  # type: ignore[arg-type]
    size = whole(server, mailer, side)
    seen = cut(server, proxy, mailer, range(size + 1))
    assert seen >= {'untouched', 'ambiguous', 'delivered'}


@pytest.mark.finding(109)
@pytest.mark.parametrize('tls', ['starttls', 'implicit'])
@pytest.mark.parametrize('side', ['client', 'server'])
def test_cut_within_tls(
    start_smtp_server: Start,
    tls_authority: TLSAuthority,
    cutting_proxy: Callable[..., CuttingProxy],
    tls: Any,
    side: str,
) -> None:
    """A connection that is cut in a handshake or in the middle of a TLS record leads to no wrong
    status; every seventh byte."""
    server = start_smtp_server(tls=tls, context=tls_authority.context())
    proxy = cutting_proxy(server.port, after=None, side=side, how='rst')
    mailer = make_mailer(proxy.host, proxy.port, tls=tls, ca_file=str(tls_authority.path))
    whole(server, mailer, side)
    until(lambda: proxy.forwarded)
    size = proxy.forwarded[0][side == 'server']
    seen = cut(server, proxy, mailer, range(0, size + 7, 7))
    assert seen >= {'untouched', 'ambiguous', 'delivered'}
    assert server.raw(1).count(RAW.replace(b'\r\n.', b'\r\n..')) == 1
