"""No frame that an error tracker stores shows a password, a token or a user name.

Error trackers store the variables of every frame of a traceback, and of the errors behind it; with
``send_now`` in a view that is a traceback through ``connect``.
"""

from __future__ import annotations

import socket
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.connection import SMTPConnection
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.session import SMTPSession
from pyramid_sendmail.queue import MemoryQueue
from tests.support.processors import ProcessorSetup
from tests.support.sessions import PATIENT, TINY, make_mailer
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    TLSAuthority,
    drop,
    hang,
    raw,
    reply,
    reply_then_drop,
    reset,
)

Start = Callable[..., ScriptedSMTPServer]

USER, PASSWORD, TOKEN = 'ann@example.org', 'gehe1m-gehe1m', 'ya29.a0Af_H6'

MECHANISMS = {'PLAIN': 1, 'LOGIN': 2, 'XOAUTH2': 2}
"""How many steps follow AUTH."""


def base64(text: str) -> str:
    return b64encode(text.encode()).decode()


ECHOED = {
    'PLAIN': (PASSWORD, base64(PASSWORD), base64(f'\0{USER}\0{PASSWORD}')),
    'LOGIN': (PASSWORD, base64(PASSWORD), base64(USER)),
    'XOAUTH2': (TOKEN, base64(TOKEN), base64(f'user={USER}\1auth=Bearer {TOKEN}\1\1')),
}
"""What a relay may repeat."""

SECRETS = (
    *(USER, PASSWORD, TOKEN, base64(USER), base64(PASSWORD), base64(TOKEN)),
    base64(f'\0{USER}\0{PASSWORD}'),
    base64(f'user={USER}\1auth=Bearer {TOKEN}\1\1'),
)

ENDS: dict[str, Action] = {
    'closed': drop(),
    'reset': reset(),
    'silent': hang(),
    '535': reply(535, '5.7.8 no'),
    '535 with the secrets': reply(535, 'no'),
    '454': reply(454, '4.7.0 later'),
    '421': reply_then_drop(421, '4.3.2 closing'),
    '504': reply(504, '5.5.4 what?'),
    'malformed': raw(b'HTTP/1.1 400 Bad Request\r\n'),
    'half a reply': raw(b'334 ', then=drop()),
}


def errors_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those behind it."""
    found, seen = [error], set()
    while found:
        each = found.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            found += [other for other in (each.__cause__, each.__context__) if other is not None]


def shown(error: BaseException) -> list[str]:
    """Return the variables, and the texts of errors, that show a secret."""
    found = []
    for each in errors_of(error):
        texts = {f'text of {type(each).__name__}': f'{each!r} {vars(each)!r}'}
        traceback = each.__traceback__
        while traceback is not None:
            frame = traceback.tb_frame
            code = frame.f_code
            if code.co_filename != __file__:
                for name, value in frame.f_locals.items():
                    texts[f'{code.co_filename}, {code.co_qualname}: {name}'] = repr(value)
            traceback = traceback.tb_next
        found += [
            f'{name}: {secret}'
            for name, text in texts.items()
            for secret in SECRETS
            if secret in text
        ]
    return found


def mailer_for(server: ScriptedSMTPServer | None, mechanism: str, **options: Any) -> SMTPMailer:
    secret = {'token': lambda: TOKEN} if mechanism == 'XOAUTH2' else {'password': PASSWORD}
    host, port = (server.host, server.port) if server is not None else ('127.0.0.1', 25)
    return make_mailer(host, port, username=USER, **secret, **options)


def raised(call: Callable[[], object]) -> MailerUnavailable:
    with pytest.raises(MailerUnavailable) as caught:
        call()
    return caught.value


def test_the_search_finds_what_is_there() -> None:
    """A secret in a variable of a frame, or in the text of an error behind it, is found."""

    def fails(password: str) -> None:
        raise ValueError(password)

    def fails_later() -> None:
        try:
            elsewhere(PASSWORD)
        except ValueError as error:
            raise KeyError from error

    code = fails.__code__.replace(co_filename='elsewhere.py')
    elsewhere = type(fails)(code, {'ValueError': ValueError})
    with pytest.raises(KeyError) as caught:
        fails_later()
    assert sorted(line.split(': ')[0] for line in shown(caught.value)) == [
        'elsewhere.py, test_the_search_finds_what_is_there.<locals>.fails',
        'text of ValueError',
    ]


@pytest.mark.parametrize('end', ENDS)
@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_auth_that_fails(start_smtp_server: Start, mechanism: str, end: str) -> None:
    """However AUTH fails, at AUTH itself or at a response."""
    for step in range(MECHANISMS[mechanism] + 1):
        server = start_smtp_server(
            auth={USER: PASSWORD}, auth_mechanisms=(mechanism,), auth_required=True
        )
        last = ENDS[end]
        if end == '535 with the secrets':
            last = reply(535, *ECHOED[mechanism])
        server.script('AUTH', *(reply(334, 'VXNlcm5hbWU6') for _ in range(step)), last)
        timeouts = TINY if end == 'silent' else PATIENT
        mailer = mailer_for(server, mechanism, tls='none', insecure=True, timeouts=timeouts)
        error = raised(mailer.connect)
        assert ': AUTH' in str(error)
        assert error.__traceback__ is not None
        assert shown(error) == []


@pytest.mark.parametrize('end', ['closed', 'reset', '535', 'silent'])
@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_auth_that_fails_by_tls(
    start_smtp_server: Start, tls_authority: TLSAuthority, mechanism: str, end: str
) -> None:
    """So inside TLS."""
    server = start_smtp_server(
        tls='starttls',
        context=tls_authority.context(),
        auth={USER: PASSWORD},
        auth_mechanisms=(mechanism,),
    )
    server.script('AUTH', ENDS[end])
    timeouts = TINY._replace(command=1.0) if end == 'silent' else PATIENT
    mailer = mailer_for(server, mechanism, ca_file=str(tls_authority.path), timeouts=timeouts)
    error = raised(mailer.connect)
    assert ': AUTH' in str(error)
    assert shown(error) == []


@pytest.mark.parametrize('end', ['closed', '535 with the secrets', 'function'])
@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_auth_that_fails_in_the_loop(start_smtp_server: Start, mechanism: str, end: str) -> None:
    """So in a queue processor, which fetches tokens in another thread; and if what is fetched is no
    token."""
    server = start_smtp_server(
        auth={USER: PASSWORD}, auth_mechanisms=(mechanism,), auth_required=True
    )
    mailer = mailer_for(server, mechanism, tls='none', insecure=True)
    if end == 'function':
        mailer = make_mailer(
            *(server.host, server.port),
            tls='none',
            insecure=True,
            username=USER,
            token=lambda: f'{TOKEN} ',
        )
    server.script('AUTH', ENDS['closed'] if end == 'closed' else reply(535, *ECHOED[mechanism]))
    setup = ProcessorSetup(MemoryQueue())
    setup.mailer = mailer  # type: ignore[assignment]
    setup.put()
    error = raised(lambda: setup.processor().run_once())
    assert ': AUTH' in str(error)
    assert shown(error) == []


class BreakingSocket(socket.socket):
    """A socket on which writes fail after the ``left`` first ones; each gets one of ``replies``."""

    def breaks(self, error: OSError, left: int, other: socket.socket, *replies: bytes) -> None:
        """Set what happens."""
        self.failure, self.left, self.other, self.replies = error, left, other, iter(replies)

    def send(self, data: Any, flags: int = 0) -> int:
        if self.left == 0:
            raise self.failure
        self.left -= 1
        self.other.sendall(next(self.replies))
        return super().send(data, flags)


@pytest.mark.parametrize('failure', [BrokenPipeError, ConnectionResetError, TimeoutError])
@pytest.mark.parametrize('mechanism', MECHANISMS)
def test_writes_that_fail(mechanism: str, failure: type[OSError]) -> None:
    """So if AUTH or a response cannot be written: the relay has closed, or takes nothing."""
    for step in range(1, 2 + MECHANISMS[mechanism]):
        ours, theirs = socket.socketpair()
        with theirs, BreakingSocket(fileno=ours.detach()) as breaking:
            hello = b'250-a\r\n250 AUTH %s\r\n' % mechanism.encode()
            breaking.breaks(failure(), step, theirs, hello, b'334 \r\n', b'334 \r\n')
            theirs.sendall(b'220 a\r\n')
            mailer = mailer_for(None, mechanism, tls='none', insecure=True)
            session = SMTPSession(SMTPConnection(breaking, block_timeout=5), mailer.client())
            error = raised(partial(session.open, mailer.handshake))
            assert ': AUTH: while sending: ' in str(error)
            assert shown(error) == []
            session.close()


def test_what_is_kept_after_auth(start_smtp_server: Start) -> None:
    """After AUTH the values that the session is made of do not show the secrets either."""
    server = start_smtp_server(auth={USER: PASSWORD}, auth_mechanisms=('PLAIN',))
    client_parts: list[object] = []
    mailer = mailer_for(server, 'PLAIN', tls='none', insecure=True)
    session = mailer.connect()
    found: list[object] = [session, mailer]
    while found:
        part = found.pop()
        if part in client_parts or not type(part).__module__.startswith('pyramid_sendmail'):
            continue
        client_parts.append(part)
        text = repr(part)
        assert not [secret for secret in SECRETS if secret in text], type(part)
        names = [*getattr(part, '__dict__', ()), *getattr(type(part), '__slots__', ())]
        found += [getattr(part, name, None) for name in names]
    assert len(client_parts) > 8
    session.close()
