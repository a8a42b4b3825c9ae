"""``psendmail-qp`` stopped at any moment: nothing is lost, nothing is sent twice, and the next
process finishes the work. For the phases of a single mail see ``test_qp``."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest

from tests.support.applications import WAITING
from tests.support.children import PROMPT, Place, once_each
from tests.support.queues import files, make_envelope, until
from tests.support.smtp.server import ScriptedSMTPServer

Start = Callable[..., ScriptedSMTPServer]


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """A listening port whose server never answers."""
    with closing(socket.create_server(('127.0.0.1', 0))) as listening:
        listening.settimeout(20)
        yield listening


def finish(place: Place, message_ids: list[str]) -> None:
    """Let the next process send what is left; no recipient gets a mail twice."""
    assert place.once(place.ini()).process.returncode == 0
    assert files(place.queue) == []
    assert once_each(place.server, message_ids)


def test_while_the_relay_is_unavailable(place: Place) -> None:
    """It does not wait for the next try, and the mail is unchanged."""
    place.server.stop()
    message_ids = place.put(3)
    before = files(place.queue)
    child = place.start(place.ini())
    child.says('relay unavailable, mail stays queued')
    assert child.stop() == 0
    assert files(place.queue) == before
    place.server.start()
    finish(place, message_ids)


@pytest.mark.parametrize('scheme', ['smtp', 'smtps'], ids=['greeting', 'handshake'])
def test_while_the_relay_is_silent(place: Place, mute: socket.socket, scheme: str) -> None:
    """It does not wait for a relay that never sends a byte, without and with TLS."""
    message_ids = place.put(3)
    before = files(place.queue)
    url = f'{scheme}://127.0.0.1:{mute.getsockname()[1]}'
    child = place.start(place.ini(mail_url=url), '--workers', 1)
    connection, _ = mute.accept()
    with connection:
        if scheme == 'smtps':
            connection.settimeout(20)
            assert connection.recv(1), 'the handshake has begun'
        assert child.stop() == 0
    assert files(place.queue) == before
    finish(place, message_ids)


def test_while_mail_waits_for_the_rate(place: Place) -> None:
    """It does not wait for mail that mail.rate delays by an hour, and holds no claim of it."""
    message_ids = place.put(3)
    child = place.start(place.ini(mail_rate='1/h'))
    place.server.wait_for(1, 20)
    until(lambda: len(files(place.queue)) == 2)
    assert child.stop() == 0
    assert len(place.server.messages) == 1
    finish(place, message_ids)


def test_in_the_middle_of_a_text(place: Place, start_smtp_server: Start) -> None:
    """A large message on a slow connection is sent to its end, and no other one is begun."""
    size = 65_536
    place.server = start_smtp_server(
        extensions=(), read_pause=0.02, read_size=size, socket_buffer=size
    )
    mails = [make_envelope(body='All work and no play.\r\n' * 150_000, queued_at=time.time())]
    place.queue.put(mails).publish()
    child = place.start(place.ini(), '--workers', 1)
    place.server.wait_for(lambda server: 'DATA' in server.verbs(), 20)
    message_ids = [mails[0].message_id, *place.put(2)]
    child.signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(0.3)
    assert child.process.poll() is None, 'it waits for mail in flight'
    assert child.wait(30) == 0
    [message] = place.server.messages
    assert message.data.count(b'All work') == 150_000, 'the whole text'
    assert len(files(place.queue)) == 2
    finish(place, message_ids)


@pytest.mark.parametrize('hurry', [False, True], ids=['it ends', 'it never ends'])
def test_while_a_subscriber_runs(place: Place, hurry: bool) -> None:
    """It waits for the subscriber. A second signal ends it at once; the next process dispatches the
    event again. The mail is sent once."""
    report, go_on = place.path / 'report', place.path / 'go_on'
    ini = place.ini(WAITING, tests_report=report, tests_go_on=go_on)
    message_ids = place.put()
    child = place.start(ini)
    until(report.exists, 20)
    child.signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(0.3)
    assert child.process.poll() is None, 'it waits for the subscriber'
    if hurry:
        child.signal(signal.SIGTERM)
        assert child.wait(PROMPT) == -signal.SIGTERM
        assert [name.split('/')[0] for name in files(place.queue)] == ['done']
    go_on.touch()
    if hurry:
        assert place.once(ini).process.returncode == 0
    else:
        assert child.wait(PROMPT) == 0
    assert files(place.queue) == []
    lines = report.read_text().splitlines()
    assert lines[:-1] == ['begun'] * (1 + hurry)
    assert lines[-1].endswith('-1-sent-0')
    assert once_each(place.server, message_ids)


def test_while_it_scans_a_large_queue(place: Place) -> None:
    """It stops in the middle of a scan of a large queue."""
    message_ids = place.put(1500)
    child = place.start(place.ini())
    child.says('watching')
    assert child.stop() == 0
    sent = {message_id for message_id, _ in place.server.pairs()}
    assert len(files(place.queue)) == len(message_ids) - len(sent)
    finish(place, message_ids)
