"""What every mailer promises, wherever it sends the mail (IMailer, IMailSession)."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from pyramid_sendmail.envelope import Envelope, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable, SendmailError
from pyramid_sendmail.interfaces import IMailer, IMailSession
from pyramid_sendmail.mailers.failover import FailoverMailer
from pyramid_sendmail.mailers.file import FileMailer
from pyramid_sendmail.mailers.null import NullMailer
from pyramid_sendmail.mailers.sendmail import SendmailMailer
from pyramid_sendmail.mailers.smtp.lmtp import LMTPMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.options import SessionOptions
from tests.support.doubles import RecordingMailer
from tests.support.sessions import make_mailer
from tests.support.smtp.server import ScriptedSMTPServer, TLSAuthority

CHUNKING = ('PIPELINING', '8BITMIME', 'SIZE', 'CHUNKING')

PASSWORD = 'Zwölf Boxkämpfer%20'


@dataclass(frozen=True)
class Case:
    """A mailer; what has arrived through it; how to make it unavailable; and a check that no
    session is open."""

    mailer: Any
    arrived: Callable[[], list[bytes]]
    block: Callable[[], object]
    idle: Callable[[], object] = lambda: None
    secret: str = PASSWORD
    ahead: bool = False
    """Whether several mails are under way at once."""


def _smtp(
    stack: ExitStack, authority: TLSAuthority, tls: str, *, window: int = 1, **settings: Any
) -> Case:
    secure = tls != 'none'
    server = stack.enter_context(
        ScriptedSMTPServer(
            **settings,
            tls=tls,  # type: ignore[arg-type]
            context=authority.context() if secure else None,
            auth={'ann': PASSWORD} if secure else None,
        )
    )
    options: dict[str, Any] = {}
    if secure:
        options = {'username': 'ann', 'password': PASSWORD, 'ca_file': str(authority.path)}
    kind = LMTPMailer if settings.get('lmtp') else SMTPMailer
    mailer = make_mailer(
        server.host,
        server.port,
        kind=kind,
        tls='implicit' if tls == 'implicit' else 'auto',
        options=SessionOptions(window=window),
        **options,
    )

    def arrived() -> list[bytes]:
        assert not server.violations
        assert all(message.tls == secure for message in server.messages)
        return [message.data for message in server.messages]

    def idle() -> None:
        deadline = time.monotonic() + 10
        while server.open_connections and time.monotonic() < deadline:
            time.sleep(0.002)
        assert not server.open_connections

    return Case(mailer, arrived, server.stop, idle, ahead=window > 1)


def _lmtp_unix(stack: ExitStack, folder: Path) -> Case:
    path = f'{folder}/lmtp'
    server = stack.enter_context(ScriptedSMTPServer(lmtp=True, path=path))
    mailer = LMTPMailer.unix(path, hostname='web.example.org')
    return Case(mailer, lambda: [message.data for message in server.messages], server.stop)


def _sendmail(folder: Path) -> Case:
    program = folder / 'sendmail'
    program.write_text(
        f'#!{sys.executable}\n'
        'import os, sys, tempfile\n'
        'text = sys.stdin.buffer.read()\n'
        f'descriptor, _ = tempfile.mkstemp(dir={str(folder)!r}, suffix=".mail")\n'
        'os.write(descriptor, text)\n',
        encoding='utf-8',
    )
    program.chmod(0o755)

    def arrived() -> list[bytes]:
        return [path.read_bytes().replace(b'\n', b'\r\n') for path in folder.glob('*.mail')]

    return Case(SendmailMailer(str(program)), arrived, program.unlink)


def _failover(stack: ExitStack, authority: TLSAuthority, *, first: bool) -> Case:
    reached = _smtp(stack, authority, 'none')
    with socket.create_server(('127.0.0.1', 0)) as listening:
        refusing = SMTPMailer('127.0.0.1', listening.getsockname()[1], hostname='web.example.org')
    order = [reached.mailer, refusing] if first else [refusing, reached.mailer]
    return Case(FailoverMailer(order), reached.arrived, reached.block, reached.idle)


def _file(folder: Path) -> Case:
    def arrived() -> list[bytes]:
        files = (folder / 'new').iterdir()
        # The lines that the mailer itself puts in front end before the message's first header.
        return [path.read_bytes().partition(b'<to@example.org>\r\n')[2] for path in files]

    def block() -> None:
        folder.write_bytes(b'not a folder')

    return Case(FileMailer(folder), arrived, block)


def _recording() -> Case:
    mailer = RecordingMailer()

    def block() -> None:
        mailer.unavailable = 'out of order'

    def idle() -> None:
        assert not mailer.open_sessions

    return Case(mailer, lambda: [envelope.raw for envelope in mailer.sent], block, idle)


NAMES = [
    *('smtp', 'smtp-lock-step', 'smtp-window', 'smtp-starttls', 'smtps', 'smtps-window'),
    *('lmtp', 'lmtp-unix'),
    *('sendmail', 'file', 'null', 'failover-first', 'failover-second', 'recording'),
]


@pytest.fixture(params=NAMES)
def case(
    request: pytest.FixtureRequest, tls_authority: TLSAuthority, tmp_path: Path
) -> Iterator[Case]:
    with ExitStack() as stack:
        if request.param == 'smtp':
            yield _smtp(stack, tls_authority, 'none')
        elif request.param == 'smtp-lock-step':
            yield _smtp(stack, tls_authority, 'none', extensions=())
        elif request.param == 'smtp-window':
            yield _smtp(stack, tls_authority, 'none', window=8, extensions=CHUNKING)
        elif request.param == 'smtps-window':
            yield _smtp(stack, tls_authority, 'implicit', window=8, extensions=CHUNKING)
        elif request.param == 'lmtp':
            yield _smtp(stack, tls_authority, 'none', lmtp=True)
        elif request.param == 'lmtp-unix':
            yield _lmtp_unix(stack, tmp_path)
        elif request.param == 'sendmail':
            yield _sendmail(tmp_path)
        elif request.param.startswith('failover'):
            yield _failover(stack, tls_authority, first=request.param == 'failover-first')
        elif request.param == 'smtp-starttls':
            yield _smtp(stack, tls_authority, 'starttls')
        elif request.param == 'smtps':
            yield _smtp(stack, tls_authority, 'implicit')
        elif request.param == 'file':
            yield _file(tmp_path / 'mail')
        elif request.param == 'null':
            yield Case(NullMailer(), list, lambda: pytest.skip('null: is always there'))
        else:
            yield _recording()


def envelope(number: int = 0, **changes: Any) -> Envelope:
    raw = f'Subject: mail {number}\r\nTo: to@example.org\r\n\r\n.dot\r\n..\r\nend\r\n'.encode()
    values: dict[str, Any] = {
        'id': f'{number:032x}',
        'message_id': f'<{number}@example.org>',
        'sender': 'from@example.org',
        'recipients': ('to@example.org',),
        'raw': raw,
        'queued_at': 0.0,
    }
    return Envelope(**(values | changes))


def arrives(case: Case) -> bool:
    return not isinstance(case.mailer, NullMailer)


def test_implements_the_interfaces(case: Case) -> None:
    """A mailer and its session have every method, with its arguments."""
    assert verifyObject(IMailer, case.mailer)
    session = case.mailer.connect()
    assert verifyObject(IMailSession, session)
    session.close()


def test_name_is_for_people(case: Case) -> None:
    """The name and the repr say where mail goes, and show no secret."""
    assert case.mailer.name
    assert case.mailer.name in repr(case.mailer)
    assert case.secret not in repr(case.mailer) + case.mailer.name


def test_outcomes_come_in_order(case: Case) -> None:
    """Each mail has an outcome, in order, with a verdict for each of its recipients."""
    recipients = [('to@example.org',), ('b@example.org', 'to@example.org'), ('to@example.org',)]
    session = case.mailer.connect()
    mails = [envelope(number, recipients=each) for number, each in enumerate(recipients)]
    outcomes = list(session.send(mails))
    session.close()
    assert [tuple(outcome) for outcome in outcomes] == recipients
    for outcome in outcomes:
        for verdict in outcome.values():
            assert isinstance(verdict, Verdict)
            assert verdict.status == 'delivered'
            assert verdict.reply is not None
            assert verdict.reply.code == 250


def test_bytes_arrive_as_they_are(case: Case) -> None:
    """The frozen bytes arrive, one mail by one, over several calls of send."""
    session = case.mailer.connect()
    mails = [envelope(number) for number in range(3)]
    for mail in mails:
        [outcome] = session.send([mail])
        assert outcome['to@example.org'].status == 'delivered'
    session.close()
    if arrives(case):
        assert sorted(case.arrived()) == [mail.raw for mail in mails]


def test_pulls_as_it_goes(case: Case) -> None:
    """The iterable may be endless: mails are pulled as they are sent, and no more than needed."""
    pulled = []

    def endless() -> Iterator[Envelope]:
        for number in count():
            pulled.append(number)
            yield envelope(number)

    session = case.mailer.connect()
    assert len(list(islice(session.send(endless()), 5))) == 5
    assert 5 <= len(pulled) < 50
    session.close()


def test_nothing_to_send(case: Case) -> None:
    """No mail has no outcome; a mail without recipients has an empty one, and before_final_dot is
    not called."""
    session = case.mailer.connect()
    assert list(session.send([])) == []

    def before_final_dot(*_arguments: object) -> None:
        raise AssertionError('it must not be sent')

    assert list(session.send([envelope(recipients=())], before_final_dot=before_final_dot)) == [{}]
    session.close()


def test_null_sender(case: Case) -> None:
    """A mail with the null sender, to which nothing bounces, is sent like any other."""
    session = case.mailer.connect()
    [outcome] = session.send([envelope(sender='')])
    assert outcome['to@example.org'].status == 'delivered'
    session.close()


def test_before_final_dot_is_called_once(case: Case) -> None:
    """before_final_dot is called once a mail, with its accepted recipients, before the mail has
    left."""
    seen: list[object] = []

    def before_final_dot(mail: Envelope, recipients: tuple[str, ...]) -> None:
        seen.append((mail.id, recipients, len(case.arrived())))

    session = case.mailer.connect()
    mails = [envelope(number) for number in range(2)]
    seen.extend('answered' for _ in session.send(mails, before_final_dot=before_final_dot))
    session.close()
    step = int(arrives(case))
    if case.ahead:
        assert seen == [*((mail.id, ('to@example.org',), 0) for mail in mails), *['answered'] * 2]
        return
    assert seen == [
        (mails[0].id, ('to@example.org',), 0),
        'answered',
        (mails[1].id, ('to@example.org',), step),
        'answered',
    ]


@pytest.mark.parametrize('error', [ValueError, OSError, KeyboardInterrupt])
def test_before_final_dot_that_raises(case: Case, error: type[BaseException]) -> None:
    """What before_final_dot raises comes out as it is, the mail is not sent, and the session is
    over."""

    def before_final_dot(mail: Envelope, recipients: tuple[str, ...]) -> None:
        raise error('no room for a letter')

    session = case.mailer.connect()
    with pytest.raises(error, match='no room') as caught:
        list(session.send([envelope()], before_final_dot=before_final_dot))
    assert not isinstance(caught.value, SendmailError)
    with pytest.raises(MailerUnavailable):
        list(session.send([envelope(1)]))
    session.close()
    assert case.arrived() == []


def test_a_second_round_on_one_session(case: Case) -> None:
    """A session may be used again. If the caller stopped between two mails it may be stale, and
    then raises before anything of the next mail has left."""
    session = case.mailer.connect()
    assert len(list(session.send([envelope(0)]))) == 1
    for _ in session.send([envelope(1), envelope(9)]):
        break
    stale = None
    try:
        assert len(list(session.send([envelope(2)]))) == 1
    except MailerUnavailable as error:
        stale = error.stale
        session.close()
        session = case.mailer.connect()
        assert len(list(session.send([envelope(2)]))) == 1
    assert stale is not False
    session.close()
    if arrives(case):
        left = {envelope(9).raw} if case.ahead else set()
        arrived = [raw for raw in case.arrived() if raw not in left]
        assert sorted(arrived) == [envelope(number).raw for number in range(3)]


@pytest.mark.parametrize('end', ['close', 'abandon'])
def test_closing_never_raises(case: Case, end: str) -> None:
    """A session may be closed and abandoned in any order, any number of times."""
    session = case.mailer.connect()
    getattr(session, end)()
    session.close()
    session.abandon()
    with pytest.raises(MailerUnavailable) as caught:
        list(session.send([envelope()]))
    assert caught.value.stale
    assert session.name in str(caught.value)


def test_unavailable(case: Case) -> None:
    """If there is no session, connect raises MailerUnavailable."""
    case.block()
    with pytest.raises(MailerUnavailable) as caught:
        case.mailer.connect()
    assert not caught.value.stale
    for name in case.mailer.name.split(', else '):
        assert name in str(caught.value)
    assert case.secret not in str(caught.value)


def test_threads_share_a_mailer(case: Case) -> None:
    """Threads connect through one mailer at the same time, each with a session of its own."""
    outcomes: list[Any] = []

    def run(start: int) -> None:
        session = case.mailer.connect()
        outcomes.extend(session.send(envelope(start + number) for number in range(5)))
        session.close()

    threads = [threading.Thread(target=run, args=(10 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(outcomes) == 20
    assert {verdict.status for each in outcomes for verdict in each.values()} == {'delivered'}
    if arrives(case):
        assert len(set(case.arrived())) == 20


def test_nothing_stays_open(case: Case) -> None:
    """Closed and abandoned sessions leave no connection behind."""
    for end in ('close', 'abandon'):
        session = case.mailer.connect()
        list(session.send([envelope()]))
        getattr(session, end)()
    case.idle()
