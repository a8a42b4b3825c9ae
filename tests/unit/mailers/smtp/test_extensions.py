"""What a relay offers, and the parameters that follow: reports (RFC 3461), and early refusals."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_sendmail.envelope import Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.options import SessionOptions
from pyramid_sendmail.mailers.smtp.protocol.extensions import Extensions, xtext
from tests.support.sessions import A, connect, envelope, send, statuses
from tests.support.smtp.server import ScriptedSMTPServer, reply, reply_then_drop

WANTED: dict[str, Any] = {'notify': ('failure', 'delay'), 'ret': 'headers'}


@pytest.mark.finding(122)
def test_reports_are_asked_for(smtp_server: ScriptedSMTPServer) -> None:
    """NOTIFY and ORCPT stand on RCPT, RET and ENVID on MAIL; ENVID is the mail's id in the
    queue."""
    smtp_server.extensions = ('PIPELINING', 'DSN')
    session = connect(smtp_server, **WANTED)
    [outcome] = send(session, envelope('"a+b=c"@example.org', id='0123456789abcdef' * 2))
    session.close()
    lines = [line for _, verb, line in smtp_server.commands if verb in ('MAIL', 'RCPT')]
    assert lines == [
        'MAIL FROM:<from@example.org> RET=HDRS ENVID=0123456789abcdef0123456789abcdef',
        'RCPT TO:<"a+b=c"@example.org> NOTIFY=FAILURE,DELAY ORCPT=rfc822;"a+2Bb+3Dc"@example.org',
    ]
    assert set(statuses(outcome).values()) == {'delivered'}
    assert not smtp_server.violations


@pytest.mark.parametrize(
    ('offered', 'options'), [((), WANTED), (('DSN',), {})], ids=['not offered', 'not wanted']
)
def test_no_reports(
    smtp_server: ScriptedSMTPServer, offered: tuple[str, ...], options: dict[str, Any]
) -> None:
    """A relay without DSN gets no such parameter, nor does any relay if no report is wanted."""
    smtp_server.extensions = offered
    session = connect(smtp_server, **options)
    send(session, envelope(A))
    session.close()
    lines = [line for _, verb, line in smtp_server.commands if verb in ('MAIL', 'RCPT')]
    assert lines == ['MAIL FROM:<from@example.org>', f'RCPT TO:<{A}>']


def test_never() -> None:
    """NOTIFY=NEVER stands alone; RET may be left out."""
    extensions = Extensions({'DSN': ''}, SessionOptions(notify=('never',)))
    assert b' NOTIFY=NEVER ' in extensions.rcpt(A)
    assert b'RET' not in extensions.mail(envelope(A), [A])


def test_non_ascii_recipient() -> None:
    """A non-ASCII recipient goes without ORCPT, which is ASCII (RFC 6533, 3)."""
    extensions = Extensions({'DSN': '', 'SMTPUTF8': ''}, SessionOptions(ret='full'))
    assert extensions.rcpt('jörg@example.org') == 'RCPT TO:<jörg@example.org>\r\n'.encode()


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'notify': ('never', 'delay')}, 'notify=never,delay: write never, or some of success'),
        ({'notify': ('sometimes',)}, 'notify=sometimes: write never'),
        ({'notify': ('delay', 'delay')}, 'notify=delay,delay'),
        ({'ret': 'half'}, 'ret=half: write full or headers'),
        ({'max_recipients': 0}, 'max_recipients=0: write 1 or more'),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], text: str) -> None:
    """Wrong options are errors that name themselves and the remedy."""
    with pytest.raises(ValueError, match=f'^{text}'):
        SessionOptions(**options)


@given(st.text(st.characters(max_codepoint=127)))
def test_xtext(text: str) -> None:
    """Any ASCII text can be decoded from its xtext, which holds only printable characters without +
    and =."""
    encoded = xtext(text)
    assert re.fullmatch(r'(?:[!-*,-<>-~]|\+[0-9A-F]{2})*', encoded)
    assert re.sub(r'\+(..)', lambda match: chr(int(match[1], 16)), encoded) == text


@pytest.mark.finding(122)
def test_xtext_is_ascii() -> None:
    """Text other than ASCII is refused."""
    with pytest.raises(ValueError, match='is not ASCII'):
        xtext('jörg')


# A relay that does not wait for the end.


def large() -> bytes:
    """Return a mail larger than the buffers of a connection."""
    return b'Subject: large\r\n\r\n' + (b'y' * 76 + b'\r\n') * 200_000


@pytest.mark.parametrize(
    ('answer', 'verdict'),
    [
        (reply_then_drop(552, '5.3.4 too big'), Verdict('failed', Reply(552, '5.3.4 too big'))),
        (reply_then_drop(451, 'disk full'), Verdict('deferred', Reply(451, 'disk full'))),
    ],
)
@pytest.mark.parametrize('carried', [False, True], ids=['fresh', 'carried'])
def test_refused_in_the_middle_of_the_text(
    smtp_server: ScriptedSMTPServer, answer: Any, verdict: Verdict, carried: bool
) -> None:
    """A refusal before the relay stops reading the text is the outcome, and the mail is not sent
    again for ever."""
    smtp_server.extensions = ('PIPELINING',)
    session = connect(smtp_server)
    if carried:
        send(session, envelope(A))
    smtp_server.script('DATA', reply(354, 'go on', then=answer))
    [outcome] = send(session, envelope(A, raw=large()))
    session.close()
    assert outcome == {A: verdict}


def test_421_in_the_middle_of_the_text(smtp_server: ScriptedSMTPServer) -> None:
    """421 in the middle of the text counts as a lost connection."""
    smtp_server.extensions = ()
    closing = reply(354, 'go on', then=reply_then_drop(421, 'restarting'))
    smtp_server.script('DATA', closing)
    session = connect(smtp_server)
    [outcome] = send(session, envelope(A, raw=large()))
    session.close()
    assert statuses(outcome) == {A: 'deferred'}
    session = connect(smtp_server)
    send(session, envelope(A))
    smtp_server.script('DATA', closing)
    with pytest.raises(MailerUnavailable) as caught:
        send(session, envelope(A, raw=large()))
    assert caught.value.stale
    session.close()
