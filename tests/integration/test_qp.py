"""``psendmail-qp`` as people run it: real children, a real application, a real SMTP server."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from pyramid.paster import get_app
from webtest import TestApp

from tests.support.applications import EVENTS, ROOT, events
from tests.support.children import MODULE, PROMPT, SCRIPT, Place, once_each
from tests.support.queues import files, make_envelope, until
from tests.support.scripts import without_time
from tests.support.smtp.server import ScriptedSMTPServer, delay, hang, hold, reply

# The main job


def test_from_request_to_event(place: Place) -> None:
    """A view sends and writes a row; the child delivers; its subscribers write to the application's
    database. A request that fails after sending leaves nothing."""
    database = place.path / 'database.sqlite'
    ini = place.ini('call:tests.support.applications:main', tests_database=database)
    assert EVENTS == 'tests.database'
    place.server.always('RCPT', reply(550, '5.1.1 no such user'), match='nobody')
    place.server.script('RCPT', reply(450, '4.2.0 greylisted'), match='later')
    app = TestApp(get_app(str(ini)))
    with pytest.raises(ZeroDivisionError):
        app.post('/send', {'to': 'eve@example.org', 'raise': '1'})
    answer = app.post(
        '/send', [('to', 'ann@example.org'), ('to', 'nobody@example.org'), ('to', 'later@x.org')]
    )
    message_id = answer.json['message_id']
    assert place.server.connections == 0
    child = place.start(ini, command=SCRIPT)
    until(lambda: len(events(database)) >= 4, 20)
    assert sorted(row[:3] for row in events(database)) == [
        ('deferred', message_id, 'later@x.org'),
        ('error', message_id, 'nobody@example.org'),
        ('sent', message_id, 'ann@example.org'),
        ('sent', message_id, 'later@x.org'),
    ]
    assert {row[3] for row in events(database)} == {child.process.pid}
    assert place.server.pairs() == Counter(
        {(message_id, 'ann@example.org'): 1, (message_id, 'later@x.org'): 1}
    )
    until(lambda: [name.split('/')[0] for name in files(place.queue)] == ['failed'])
    second = app.post('/send', {'to': 'bob@example.org'}).json['message_id']
    until(lambda: ('sent', second, 'bob@example.org', child.process.pid) in events(database))
    assert child.stop() == 0


def test_the_log(place: Place) -> None:
    """Each outcome is one line with Message-ID, recipients, relay and reply, and no body."""
    place.server.always('RCPT', reply(550, '5.1.1 no such user'), match='bob')
    place.server.script('dot', reply(250, '2.0.0 queued as 4711'))
    [first] = place.put(1, 'ann@example.org')
    [second] = place.put(1, 'bob@example.org')
    child = place.once(place.ini())
    assert child.process.returncode == 0
    waiting, *lines = child.lines
    assert waiting.startswith(f'psendmail-qp: {place.queue.path}: 2 mails wait, the oldest since ')
    assert sorted(lines) == [
        f'ERROR {second}: refused for bob@example.org (attempt 1, {place.server.url}): '
        '550 5.1.1 no such user (will not be tried again; see failed/)',
        f'INFO {first}: sent for ann@example.org (attempt 1, {place.server.url}): '
        '250 2.0.0 queued as 4711',
        'psendmail-qp: 1 delivered, 0 deferred, 1 failed',
    ]


def test_woken_by_a_commit(place: Place) -> None:
    """An idle processor sends at once, not at its next scan."""
    child = place.start(place.ini())
    child.says('watching')
    place.put()
    place.server.wait_for(1, 20)
    start = time.monotonic()
    place.put()
    place.server.wait_for(2)
    assert time.monotonic() - start < 10
    assert child.stop() == 0


def test_two_children_on_one_queue(place: Place) -> None:
    """Each mail is sent once."""
    ini = place.ini()
    message_ids = place.put(50)
    children = [place.start(ini), place.start(ini)]
    for child in children:
        child.says('watching')
    message_ids += place.put(50)
    place.server.wait_for(100, 30)
    place.drained()
    assert [child.stop() for child in children] == [0, 0]
    assert once_each(place.server, message_ids)


# Stopping


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_idle(place: Place, number: int) -> None:
    """Exit status 0 within seconds, after QUIT."""
    place.put()
    child = place.start(place.ini())
    place.server.wait_for(1, 20)
    place.drained()
    child.signal(number)
    assert child.wait(PROMPT) == 0
    assert place.server.verbs()[-1] == 'QUIT'


@pytest.mark.parametrize('verb', ['connect', 'EHLO'])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_connecting(place: Place, verb: str, number: int) -> None:
    """It does not wait for a relay that hangs; the mail is unchanged."""
    place.server.always(verb, hang())
    place.put()
    before = files(place.queue)
    child = place.start(place.ini())
    place.server.wait_for(lambda server: server.open_connections == 1, 20)
    if verb == 'EHLO':
        place.server.wait_for(lambda server: 'EHLO' in server.verbs())
    child.signal(number)
    assert child.wait(PROMPT) == 0
    assert files(place.queue) == before


@pytest.mark.parametrize(
    ('number', 'verb'),
    [
        *((signal.SIGTERM, verb) for verb in ('MAIL', 'RCPT', 'DATA', 'dot')),
        (signal.SIGINT, 'dot'),
        # The same handler again: each starts two processes.
        *(
            pytest.param(signal.SIGINT, verb, marks=pytest.mark.slow)
            for verb in ('MAIL', 'RCPT', 'DATA')
        ),
    ],
)
def test_stopped_in_the_middle_of_a_mail(place: Place, verb: str, number: int) -> None:
    """Mail in flight is finished, later mail stays; nothing is sent twice."""
    go_on = threading.Event()
    place.server.script(verb, hold(go_on))
    message_ids = place.put(3)
    child = place.start(place.ini(), '--workers', 1)
    place.server.wait_for(lambda server: verb in server.verbs(), 20)
    child.signal(number)
    with suppress(subprocess.TimeoutExpired):
        child.wait(0.5)
    assert child.process.poll() is None, 'it waits for mail in flight'
    go_on.set()
    assert child.wait(PROMPT) == 0
    # The next mail's commands have left with the final dot.
    sent = 2 if verb == 'dot' else 1
    assert len(place.server.messages) == sent
    assert len(files(place.queue)) == 3 - sent
    assert place.once(place.ini()).process.returncode == 0
    assert once_each(place.server, message_ids)


def test_a_second_signal_ends_it(place: Place) -> None:
    """A second signal does not wait for mail in flight."""
    place.server.script('dot', hang())
    place.put()
    child = place.start(place.ini())
    place.server.wait_for(lambda server: 'dot' in server.verbs(), 20)
    child.signal(signal.SIGTERM)
    time_out = time.monotonic() + PROMPT
    while child.process.poll() is None and time.monotonic() < time_out:
        child.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.1)
    assert child.process.returncode == -signal.SIGTERM


def test_ctrl_c_on_once(place: Place) -> None:
    """It ends after the mail in flight and prints the counts; the next run sends the rest."""
    go_on = threading.Event()
    place.server.script('dot', hold(go_on))
    message_ids = place.put(20)
    child = place.start(place.ini(), '--once', '--workers', 1)
    place.server.wait_for(lambda server: 'dot' in server.verbs(), 20)
    child.signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        child.wait(0.5)
    go_on.set()
    assert child.wait(PROMPT) == 130
    # The next mail's commands have left with the final dot.
    assert '2 delivered, 0 deferred, 0 failed' in child.text
    assert 'Traceback' not in child.text
    assert place.once(place.ini()).process.returncode == 0
    assert once_each(place.server, message_ids)


def test_ctrl_c_on_once_while_connecting(place: Place) -> None:
    """It does not wait for a relay that hangs."""
    place.server.always('connect', hang())
    place.put(3)
    child = place.start(place.ini(), '--once')
    place.server.wait_for(lambda server: server.open_connections == 1, 20)
    child.signal(signal.SIGINT)
    assert child.wait(PROMPT) == 130
    assert len(files(place.queue)) == 3


# Trouble


def test_the_relay_goes_and_comes(place: Place) -> None:
    """While the relay is unavailable all mail stays queued, uncounted; then everything is sent."""
    place.server.stop()
    message_ids = place.put(10)
    before = files(place.queue)
    child = place.start(place.ini())
    child.says('relay unavailable, mail stays queued')
    assert 'Connection refused' in child.text
    assert files(place.queue) == before
    place.server.start()
    place.server.wait_for(10, 20)
    place.drained()
    child.says('relay available again, after')
    assert child.stop() == 0
    assert child.text.count('relay unavailable') == 1
    assert once_each(place.server, message_ids)


def test_a_relay_that_restarts_between_two_mails(place: Place) -> None:
    """With a stale connection the mail goes over a new one, at once, as a first attempt."""
    child = place.start(place.ini(), '--workers', 1)
    place.put()
    place.server.wait_for(1, 20)
    place.server.stop()
    place.server.start()
    [second] = place.put()
    place.server.wait_for(2, 20)
    child.says(f'{second}: sent for ann@example.org (attempt 1')
    assert 'relay unavailable' not in child.text
    assert child.stop() == 0


def test_once_without_a_relay(place: Place) -> None:
    """Exit status 1, and a line with the relay and the reason."""
    place.server.stop()
    place.put(3)
    before = files(place.queue)
    child = place.once(place.ini())
    assert child.process.returncode == 1
    assert 'psendmail-qp: relay unavailable, mail stays queued: ' in child.text
    assert place.server.url in child.text
    assert files(place.queue) == before
    assert 'Traceback' not in child.text


@pytest.fixture
def guarded() -> Iterator[ScriptedSMTPServer]:
    with ScriptedSMTPServer(auth={'shop': 'right'}, auth_required=True) as server:
        yield server


def test_a_wrong_password(place: Place, guarded: ScriptedSMTPServer) -> None:
    """It names the setting, never the password, and loses no mail."""
    message_ids = place.put(3)
    url = f'smtp+insecure://127.0.0.1:{guarded.port}'
    wrong = place.ini(mail_url=url, mail_username='shop', mail_password='wr0ng-secret')
    child = place.once(wrong)
    assert child.process.returncode == 1
    assert 'mail.username and mail.password' in child.text
    watching = place.start(wrong)
    watching.says('see mail.username and mail.password')
    assert watching.stop() == 0
    assert 'wr0ng' not in child.text + watching.text
    assert len(files(place.queue)) == 3
    right = place.ini(mail_url=url, mail_username='shop', mail_password='right')
    assert place.once(right).process.returncode == 0
    assert once_each(guarded, message_ids)


def test_a_queue_that_cannot_be_used(place: Place) -> None:
    """Exit status 3, and a line with the queue."""
    (place.path / 'mail').write_text('not a folder')
    for arguments in ([], ['--once']):
        child = place.start(place.ini(), *arguments)
        assert child.wait() == 3
        assert str(place.path / 'mail') in child.text
        assert 'Traceback' not in child.text


def test_settings_that_are_wrong(place: Place) -> None:
    """Exit status 2, and what to write."""
    child = place.start(place.ini(mail_retry='soon'))
    assert child.wait() == 2
    assert 'mail.retry' in child.text
    assert 'Traceback' not in child.text


def test_mail_that_hangs_on_one_connection(place: Place) -> None:
    """A slow mail keeps one worker busy, and the others send."""
    go_on = threading.Event()
    place.server.script('dot', hold(go_on), match='slow')
    place.put(1)
    mails = [make_envelope(body='slow', queued_at=time.time())]
    place.queue.put(mails).publish()
    child = place.start(place.ini())
    place.put(20)
    place.server.wait_for(lambda server: len(server.messages) >= 21, 20)
    go_on.set()
    place.server.wait_for(22)
    place.drained()
    assert child.stop() == 0


# The terminal


def test_progress_on_a_terminal(place: Place) -> None:
    """--once on a terminal shows a bar that ends with all mails."""
    place.server.always('dot', delay(0.05))
    place.put(20)
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [*MODULE, str(place.ini()), '--once', '--workers', '1'],
        cwd=ROOT,
        env={**os.environ, 'TERM': 'xterm', 'COLUMNS': '100', 'PYTHONWARNINGS': 'ignore'},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    data = read_all(lambda: os.read(master, 65536))
    os.close(master)
    assert child.wait(20) == 0
    text = data.decode()
    assert 'sending' in text
    assert '20/20' in text
    assert any(f'{n}/20' in text for n in range(1, 20)), 'not only at the end'
    assert without_time(text).rstrip().endswith('psendmail-qp: 20 delivered, 0 deferred, 0 failed')


def read_all(read: Callable[[], bytes]) -> bytes:
    """Return what a terminal shows until its other side is closed."""
    data = b''
    with suppress(OSError):
        while part := read():
            data += part
    return data


def test_help_and_version() -> None:
    """Both need no file, and print to standard output."""
    for option, text in (('--help', 'mail.queue_path'), ('--version', 'psendmail-qp ')):
        done = subprocess.run(
            [*SCRIPT, option],
            env={**os.environ, 'PYTHONWARNINGS': 'ignore'},
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert (done.returncode, done.stderr) == (0, '')
        assert text in done.stdout


def test_a_port_without_a_server(place: Place) -> None:
    """Status 1, without a traceback."""
    with socket.create_server(('127.0.0.1', 0)) as closed:
        port = closed.getsockname()[1]
    place.put()
    child = place.once(place.ini(mail_url=f'smtp://127.0.0.1:{port}'))
    assert child.process.returncode == 1
    assert 'Connection refused; see the host and port in mail.url' in child.text
