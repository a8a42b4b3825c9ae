"""A processor that is asked to look now, or to send what is due before its process ends."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from tests.support.processors import (
    DEFERRED,
    NEVER,
    READ_ONLY,
    FailingQueue,
    ProcessorSetup,
    is_empty,
    log_levels,
    make_maildir,
)
from tests.support.queues import make_envelope, until
from tests.support.smtp.server import ScriptedSMTPServer, hold, reply

REQUESTED = 'scanned now, as requested'


@pytest.fixture
def setup(tmp_path: Path) -> ProcessorSetup:
    return ProcessorSetup(make_maildir(tmp_path / 'mail'))


def put_unnoticed(setup: ProcessorSetup, mails: int = 1) -> None:
    """Put mail into the queue so that only a full scan finds it: as retries, by a rename."""
    root = Path(setup.queue.path)
    other = make_maildir(root.with_name('other'))
    for _ in range(mails):
        other.put([make_envelope()]).publish()
    for path in (root.with_name('other') / 'new').iterdir():
        path.rename(root / 'cur' / path.name)


def test_a_scan_finds_what_none_has_announced(
    setup: ProcessorSetup, caplog: pytest.LogCaptureFixture
) -> None:
    """The queue is scanned as a whole; the log has a line."""
    caplog.set_level(logging.INFO)
    with setup.running() as processor:
        until(lambda: processor.current and processor.current.next_scan_at)
        put_unnoticed(setup)
        processor.scan_now()
        setup.mailer.wait_for(1)
    assert log_levels(caplog, REQUESTED) == ['INFO']


def test_a_queue_that_cannot_be_scanned(tmp_path: Path) -> None:
    """A request that fails is not repeated without a pause; nothing counts as drained."""
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail', cls=FailingQueue))
    queue = setup.queue
    with setup.running(pause=NEVER) as processor:
        until(lambda: queue.calls['scan'])
        queue.errors['scan'] = READ_ONLY
        processor.scan_now()
        until(lambda: processor.current and processor.current.breaker.retry_in())
        scans = queue.calls['scan']
        assert not processor.drain(NEVER)
        for _ in range(10):
            processor.wake()
        until(lambda: not processor.current or not processor.current.full_scan_requested)
        assert queue.calls['scan'] - scans < 10


def test_before_a_run(setup: ProcessorSetup) -> None:
    """A request before the start changes nothing: the start scans anyway."""
    processor = setup.processor()
    processor.scan_now()
    assert processor.tally.total == 0
    assert not processor.drain(0.0)
    setup.put()
    assert processor.run_once().delivered == processor.tally.delivered == 1


def test_the_relay_is_tried_at_once(
    setup: ProcessorSetup, caplog: pytest.LogCaptureFixture
) -> None:
    """The pause of the circuit breaker ends; a failure is a line, although the reason is known."""
    caplog.set_level(logging.INFO)
    setup.mailer.unavailable = 'connecting: Connection refused'
    setup.put()
    with setup.running(pause=NEVER, workers=2) as processor:
        until(lambda: log_levels(caplog, 'relay unavailable'))
        processor.scan_now()
        until(lambda: log_levels(caplog, 'relay still unavailable, after 2 failed attempts'))
        setup.mailer.unavailable = None
        assert setup.mailer.connections == 2
        processor.scan_now()
        setup.mailer.wait_for(1)


def test_the_relay_is_tried_at_once_by_the_loop(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    """As above, over SMTP."""
    smtp_server.always('connect', reply(421, '4.3.2 not now'))
    mailer: Any = SMTPMailer(smtp_server.host, smtp_server.port, hostname='web.example.org')
    setup.mailer = mailer
    setup.put()
    with setup.running(pause=NEVER) as processor:
        until(lambda: log_levels(caplog, 'relay unavailable'))
        smtp_server.always('connect', reply(220, 'relay.example.org ESMTP'))
        processor.scan_now()
        smtp_server.wait_for(1)


def test_deferred_mail_keeps_its_time(setup: ProcessorSetup) -> None:
    """A scan sends nothing that is not due."""
    setup.mailer.script('ann@example.org', DEFERRED)
    setup.put()
    with setup.running() as processor:
        setup.mailer.wait_for(1)
        until(lambda: list((Path(setup.queue.path) / 'cur').iterdir()))
        for _ in range(3):
            processor.scan_now()
            assert processor.drain(10.0)
    assert len(setup.mailer.sent) == 1


def test_drain(setup: ProcessorSetup) -> None:
    """It returns when what was due has been sent, whether or not a scan had found it."""
    with setup.running(workers=2) as processor:
        assert processor.drain(10.0)
        setup.put_many(25)
        put_unnoticed(setup, 25)
        assert processor.drain(10.0)
        assert len(setup.mailer.sent) == 50
        assert is_empty(setup)


def test_drain_ends_early(setup: ProcessorSetup) -> None:
    """With an unavailable relay, a processor that stops, or a caller that gives up, nothing is
    waited for."""
    setup.mailer.unavailable = 'connecting: Connection refused'
    with setup.running(pause=NEVER) as processor:
        assert not processor.drain(10.0, give_up=lambda: True)
        setup.put()
        assert not processor.drain(NEVER)
    assert not processor.drain(NEVER)


def test_drain_takes_no_longer_than_it_may(
    setup: ProcessorSetup, smtp_server: ScriptedSMTPServer
) -> None:
    """A mail that the relay does not answer is left to the shutdown."""
    answered = threading.Event()
    smtp_server.always('dot', hold(answered))
    mailer: Any = SMTPMailer(smtp_server.host, smtp_server.port, hostname='web.example.org')
    setup.mailer = mailer
    setup.put()
    with setup.running() as processor:
        assert not processor.drain(0.1)
        answered.set()
        assert processor.drain(10.0)
