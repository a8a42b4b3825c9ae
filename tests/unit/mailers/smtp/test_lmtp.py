"""LMTP (RFC 2033): a reply for each recipient, over TCP and Unix sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.envelope import Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.interfaces import ISMTPMailer
from pyramid_sendmail.mailers.smtp.lmtp import LMTPMailer
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.mailers.smtp.session import SMTPSession
from tests.support.sessions import TINY, A, B, C, envelope, idle, make_mailer, send, statuses
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    TLSAuthority,
    drop,
    hang,
    raw,
    reply,
    reply_then_drop,
)


@pytest.fixture(params=['tcp', 'tcp-lock-step', 'unix'])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ScriptedSMTPServer]:
    options: dict[str, Any] = {'lmtp': True}
    if request.param == 'tcp-lock-step':
        options['extensions'] = ('8BITMIME',)
    elif request.param == 'unix':
        options['path'] = str(tmp_path / 'lmtp')
    with ScriptedSMTPServer(**options) as server:
        yield server
        assert not server.violations
        assert not server.script_left()


def connect(server: ScriptedSMTPServer, timeouts: Timeouts | None = None) -> SMTPSession:
    values: dict[str, Any] = {
        'hostname': 'web.example.org',
        'timeouts': timeouts or Timeouts().capped(10),
    }
    if server.path is not None:
        return LMTPMailer.unix(server.path, **values).connect()
    return LMTPMailer(server.host, server.port, **values).connect()


def test_an_answer_for_each_recipient(server: ScriptedSMTPServer) -> None:
    """250, 450 and 550 to one message count for one recipient each (RFC 2033, 4.2); the next mail
    is clean."""
    server.script('dot', reply(250, 'yes'), reply(450, 'over quota'), reply(550, 'no'))
    session = connect(server)
    outcome, after = send(session, envelope(A, B, C), envelope(B))
    session.close()
    assert outcome == {
        A: Verdict('delivered', Reply(250, 'yes')),
        B: Verdict('deferred', Reply(450, 'over quota')),
        C: Verdict('failed', Reply(550, 'no')),
    }
    assert statuses(after) == {B: 'delivered'}
    assert [server.accepted(each) for each in (A, B, C)] == [1, 1, 0]
    assert server.connections == 1
    assert server.verbs()[0] == 'LHLO'


def test_refused_at_rcpt_has_no_answer_later(server: ScriptedSMTPServer) -> None:
    """Only accepted recipients have a reply to the final dot."""
    server.script('RCPT', reply(250, 'yes'), reply(550, 'unknown'), reply(250, 'yes'))
    server.script('dot', reply(250, 'for a'), reply(452, 'for c'))
    session = connect(server)
    [outcome] = send(session, envelope(A, B, C))
    session.close()
    assert outcome == {
        A: Verdict('delivered', Reply(250, 'for a')),
        B: Verdict('failed', Reply(550, 'unknown')),
        C: Verdict('deferred', Reply(452, 'for c')),
    }


@pytest.mark.parametrize(
    ('action', 'timeouts'),
    [(drop(), None), (raw(b'what?\r\n'), None), (reply(354, 'go on'), None), (hang(), TINY)],
    ids=['dropped', 'malformed', 'out of place', 'silent'],
)
def test_lost_between_two_answers(
    server: ScriptedSMTPServer, action: Action, timeouts: Timeouts | None
) -> None:
    """Recipients with a reply keep it; the others are ambiguous, and the connection is not used
    again."""
    server.script('dot', reply(250, 'yes'), action)
    session = connect(server, timeouts)
    [outcome] = send(session, envelope(A, B, C))
    assert statuses(outcome) == {A: 'delivered', B: 'ambiguous', C: 'ambiguous'}
    with pytest.raises(MailerUnavailable) as caught:
        send(session, envelope(A))
    assert caught.value.stale
    session.close()


def test_no_answer_at_all(server: ScriptedSMTPServer) -> None:
    """Without any reply all recipients are ambiguous."""
    server.script('dot', drop())
    session = connect(server)
    [outcome] = send(session, envelope(A, B))
    session.close()
    assert statuses(outcome) == {A: 'ambiguous', B: 'ambiguous'}


def test_421_for_one_of_them(server: ScriptedSMTPServer) -> None:
    """421 defers its recipient; those behind it are ambiguous."""
    server.script('dot', reply(250, 'yes'), reply_then_drop(421, 'closing'))
    session = connect(server)
    [outcome] = send(session, envelope(A, B, C))
    session.close()
    assert statuses(outcome) == {A: 'delivered', B: 'deferred', C: 'ambiguous'}


def test_no_recipient_accepted(server: ScriptedSMTPServer) -> None:
    """Without an accepted recipient no reply to the text is waited for."""
    server.script('RCPT', reply(550, 'no'), reply(450, 'later'))
    session = connect(server)
    outcome, after = send(session, envelope(A, B), envelope(C))
    session.close()
    assert statuses(outcome) == {A: 'failed', B: 'deferred'}
    assert statuses(after) == {C: 'delivered'}


def test_a_text_without_recipients_ends_the_session() -> None:
    """If DATA is accepted without an accepted recipient, the number of replies is unknown: the mail
    has its outcome, and the connection is stale."""
    with ScriptedSMTPServer(lmtp=True) as server:
        server.script('RCPT', reply(550, 'no'))
        server.script('DATA', reply(354, 'go on'))
        session = connect(server)
        outcomes = session.send([envelope(A), envelope(B)])
        assert statuses(next(outcomes)) == {A: 'failed'}
        with pytest.raises(MailerUnavailable) as caught:
            next(outcomes)
        assert caught.value.stale
        session.close()
        idle(server)
        assert server.messages == []


def test_too_few_answers(server: ScriptedSMTPServer) -> None:
    """A service that replies once for all recipients is not taken to have replied for each: its
    replies to the next mail do not count."""
    server.script('dot', reply(250, 'for all of you'), raw(b''), raw(b''))
    session = connect(server, Timeouts().capped(0.5))
    outcomes = session.send([envelope(A, B, C), envelope(A)])
    assert statuses(next(outcomes)) == {A: 'delivered', B: 'ambiguous', C: 'ambiguous'}
    with pytest.raises(MailerUnavailable):
        next(outcomes)
    session.close()
    assert server.verbs().count('MAIL') == 1


def test_many_recipients(server: ScriptedSMTPServer) -> None:
    """The replies to one mail transaction are not taken for those to the next."""
    people = [f'r{number}@example.org' for number in range(150)]
    server.always('dot', lambda session: reply(550, 'no') if '7' in session.recipient else None)
    session = connect(server)
    [outcome] = send(session, envelope(*people))
    session.close()
    assert statuses(outcome) == {each: 'failed' if '7' in each else 'delivered' for each in people}


# The way there


@pytest.mark.parametrize('code', [500, 502, 550, 421])
def test_no_lmtp_spoken(server: ScriptedSMTPServer, code: int) -> None:
    """A server without LHLO gets neither HELO nor EHLO."""
    server.script('LHLO', reply(code, 'what?'))
    with pytest.raises(MailerUnavailable, match=f'LHLO: the relay answered {code} what'):
        connect(server)
    assert set(server.verbs()) <= {'LHLO', 'QUIT'}


def test_tls_and_password(tls_authority: TLSAuthority) -> None:
    """Over TCP, LMTP has STARTTLS, AUTH and ca_file= as SMTP has."""
    with ScriptedSMTPServer(
        lmtp=True, tls='starttls', context=tls_authority.context(), auth={'ann': 'secret'}
    ) as server:
        session = make_mailer(
            server.host,
            server.port,
            kind=LMTPMailer,
            username='ann',
            password='secret',
            ca_file=str(tls_authority.path),
        ).connect()
        send(session, envelope(A))
        session.close()
        [message] = server.messages
        assert message.tls
        assert message.authenticated_as == 'ann'
        assert server.verbs()[:4] == ['LHLO', 'STARTTLS', 'LHLO', 'AUTH']


def test_port_25_is_no_place_for_it() -> None:
    """Port 25 is SMTP's (RFC 2033, 5)."""
    with pytest.raises(ValueError, match='not spoken on port 25'):
        LMTPMailer('localhost', 25, hostname='x')


def test_relative_socket() -> None:
    """The path of a socket must be absolute."""
    with pytest.raises(ValueError, match='lmtp\\+unix:run/lmtp is not absolute'):
        LMTPMailer.unix('run/lmtp', hostname='x')


@pytest.mark.parametrize('kind', ['missing', 'file', 'folder', 'dead', 'long'])
def test_no_such_socket(tmp_path: Path, kind: str) -> None:
    """Without a service at the path the relay is unavailable, and the path is named."""
    path = tmp_path / 'lmtp'
    if kind == 'file':
        path.write_bytes(b'')
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'dead':
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    elif kind == 'long':
        path = tmp_path / ('x' * 120)
    with pytest.raises(MailerUnavailable) as caught:
        LMTPMailer.unix(str(path), hostname='x').connect()
    assert f'lmtp+unix:{path}: connecting: ' in str(caught.value)
    assert 'mail.url' in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root, to be another user')
def test_socket_of_another_user(tmp_path: Path) -> None:
    """A socket that this user may not open is named with that reason."""
    path = tmp_path / 'lmtp'
    with ScriptedSMTPServer(lmtp=True, path=str(path)):
        path.chmod(0o600)
        for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            folder.chmod(0o755)
        os.seteuid(65_534)
        try:
            with pytest.raises(MailerUnavailable, match='Permission denied'):
                LMTPMailer.unix(str(path), hostname='x').connect()
        finally:
            os.seteuid(0)


def test_names() -> None:
    """The name of a mailer has the scheme of its protocol, and an LMTPMailer is no ISMTPMailer."""
    tcp = LMTPMailer('::1', 2003, hostname='x')
    unix = LMTPMailer.unix('/run/dovecot/lmtp', hostname='x')
    assert (tcp.name, unix.name) == ('lmtp://[::1]:2003', 'lmtp+unix:/run/dovecot/lmtp')
    assert repr(tcp) == '<LMTPMailer lmtp://[::1]:2003>'
    assert not ISMTPMailer.providedBy(tcp)
