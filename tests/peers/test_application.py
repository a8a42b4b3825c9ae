"""The whole way, from a request to a real relay's queue."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyramid.paster import get_app
from webtest import TestApp

from pyramid_sendmail.queue import MaildirQueue
from tests.peers.relay import Relay
from tests.peers.relays import REFUSING
from tests.peers.roots import TIMEOUT
from tests.support.applications import events, write_ini
from tests.support.children import Child
from tests.support.queues import files, until

pytestmark = pytest.mark.parametrize('relay', REFUSING, indirect=True)


def test_from_request_to_relay(relay: Relay, tmp_path: Path, sender: str) -> None:
    """Mail that was committed waits while the relay is down, without an attempt, and arrives when
    it is back; refused recipients are distinguished from those that may be accepted later."""
    database = tmp_path / 'database.sqlite'
    queue = MaildirQueue(str(tmp_path / 'mail'), sync=False)
    ini = write_ini(
        tmp_path / 'x.ini',
        {
            'mail.queue_path': queue.path,
            'mail.url': f'{relay.url}?timeout={TIMEOUT:g}s',
            'mail.hostname': 'web.example.org',
            'mail.envelope_sender': sender,
            'mail.retry': '1h',
            'tests.database': database,
        },
        use='call:tests.support.applications:main',
    )

    def once(number: int) -> int:
        child = Child(tmp_path / f'output-{number}', ini, '--once')
        try:
            return child.wait(TIMEOUT)
        finally:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()

    app = TestApp(get_app(str(ini)))
    recipients = [f'{name}@example.org' for name in ('ann', 'nobody', 'later', 'bob')]
    with relay.stopped():
        answer = app.post('/send', [('to', recipient) for recipient in recipients])
        (waiting,) = files(queue)
        assert once(1) == 1
        assert files(queue) == [waiting]
        assert events(database) == []
    assert once(2) == 0
    (held,) = relay.mails(sender)
    assert held.recipients == {'ann@example.org', 'bob@example.org'}
    content = relay.content(held)
    assert content.count(answer.json['message_id'].encode()) == 1
    assert content.endswith(b'\r\n\r\nA line of text.\r\n')
    until(lambda: len(events(database)) == 3, TIMEOUT)
    assert {(kind, to) for kind, _, to, _ in events(database)} == {
        ('sent', 'ann@example.org bob@example.org'),
        ('error', 'nobody@example.org'),
        ('deferred', 'later@example.org'),
    }
    # It waits for its hour, and for the one recipient alone.
    assert [name.partition('/')[0] for name in files(queue)] == ['cur']
    queue.close()
