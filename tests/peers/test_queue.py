"""A queue that a real processor drains into real relays."""

from __future__ import annotations

import time
from pathlib import Path

from pyramid_sendmail.queue import MaildirQueue
from tests.peers.mail import fronted, make_mail
from tests.peers.relay import Relay
from tests.peers.roots import TIMEOUT
from tests.support.applications import write_ini
from tests.support.children import QUIET, Child
from tests.support.queues import files

COUNT = 200


def test_drained(relay: Relay, tmp_path: Path, sender: str) -> None:
    """Every mail of a queue arrives, and arrives once, whatever number of connections the processor
    opens; none is left and none has failed."""
    queue = MaildirQueue(str(tmp_path / 'mail'), sync=False)
    large = (b'x' * 72 + b'\r\n') * 700
    now = time.time()
    mails = [
        make_mail(
            sender,
            f'user-{number}@example.org',
            queued_at=now,
            **({} if number % 20 else {'body': large}),
        )
        for number in range(COUNT)
    ]
    queue.put(mails).publish()
    settings = {
        'mail.queue_path': queue.path,
        'mail.url': f'{relay.url}?timeout={TIMEOUT:g}s',
        'mail.hostname': 'web.example.org',
        'mail.workers': 20,
        'mail.retry': '1h',
    }
    child = Child(tmp_path / 'output', write_ini(tmp_path / 'x.ini', settings, use=QUIET), '--once')
    try:
        status = child.wait(TIMEOUT)
    finally:
        if child.process.poll() is None:
            child.process.kill()
            child.process.wait()
    assert (status, files(queue)) == (0, []), child.text[-4_000:]
    queue.close()
    held = relay.mails(sender)
    assert len(held) == COUNT
    contents = {mail.recipients: relay.content(mail) for mail in held}
    for mail in mails:
        content = contents[frozenset(mail.recipients)]
        assert fronted(content, mail.raw), content[:2_000]
