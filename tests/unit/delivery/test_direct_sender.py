"""The sending thread of direct delivery: a relay that is mute, unavailable or throttles, what may
wait in memory, and the end of the thread."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from transaction import TransactionManager

from pyramid_sendmail.delivery import direct_sender
from pyramid_sendmail.envelope import Reply, Verdict
from pyramid_sendmail.events import MailSentEvent, dispatcher
from pyramid_sendmail.interfaces import IMailDelivery
from pyramid_sendmail.mailers.factory import mailer_from_url
from pyramid_sendmail.mailers.null import NullMailer
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.sending import throttling
from pyramid_sendmail.sending.refusals import IN_A_ROW
from pyramid_sendmail.threads import BackgroundThread
from tests.support.direct import WAIT, Direct
from tests.support.doubles import RecordingMailer
from tests.support.processors import log_levels
from tests.support.queues import files, until
from tests.support.smtp.server import ScriptedSMTPServer, reply, reply_then_drop
from tests.support.transactions import message

SES = Verdict('deferred', Reply(454, 'Throttling failure: Maximum sending rate exceeded.'))

DENIED = Verdict('failed', Reply(554, '5.7.1 Relay access denied'))

OK = Verdict('delivered', Reply(250, 'ok'))


class MuteMailer(RecordingMailer):
    """A mailer to a relay that says nothing: ``connect`` waits until ``over`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()
        self.unavailable = 'timed out after 300 s'

    def connect(self) -> Any:
        self.over.wait(WAIT)
        return super().connect()


@pytest.fixture(autouse=True)
def no_slow_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a mail or two were throttled, the next one does not wait for a second."""
    monkeypatch.setattr(throttling, 'SLOWEST_PACE', 50.0)


@pytest.fixture
def maildir(tmp_path: Path) -> Iterator[MaildirQueue]:
    queue = MaildirQueue(str(tmp_path / 'mail'), sync=False)
    yield queue
    queue.close()


@pytest.fixture(params=['memory', 'maildir'])
def make(request: pytest.FixtureRequest, maildir: MaildirQueue) -> Iterator[Callable[..., Direct]]:
    """Makes a direct delivery with either queue, with short pauses."""
    made: list[Direct] = []
    queue: Any = MemoryQueue(keep_failed=False) if request.param == 'memory' else maildir

    def make_direct(mailer: Any, **options: Any) -> Direct:
        options = {'pause': 0.02} | options
        made.append(Direct(queue, mailer, durable=queue is maildir, **options))
        return made[-1]

    yield make_direct
    for each in made:
        each.finish()


def direct_threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name == direct_sender.THREAD}


def numbered(count: int, first: int = 1) -> list[str]:
    return [f'mail {number}' for number in range(first, first + count)]


# A relay that is unavailable


def test_a_mute_relay(make: Callable[..., Direct], caplog: pytest.LogCaptureFixture) -> None:
    """Twenty mails wait for one try, and not for twenty: without a queue each is lost with its
    event, with one all stay there. The log says once that the relay is unavailable."""
    mailer = MuteMailer()
    direct = make(mailer, wait=False, pause=60.0)
    subjects = numbered(20)
    for subject in subjects:
        direct.commit(message(subject))
    assert direct.dispatcher.handled == []
    mailer.over.set()
    assert direct.sender.flush(WAIT)
    assert mailer.connections == 1
    assert log_levels(caplog, 'relay unavailable') == ['ERROR']
    if direct.recorder.durable:
        assert direct.dispatcher.handled == []
        assert len(files(direct.queue)) == 20
        assert 'mail stays queued' in caplog.text
    else:
        assert direct.dispatcher.kinds == [(subject, 'error') for subject in subjects]
        assert all('timed out' in event.reason for _, event in direct.dispatcher.handled)
        assert log_levels(caplog, 'not sent and lost') == ['ERROR'] * 20
        assert 'relay unavailable, mail is lost (no mail.queue_path)' in caplog.text


def test_without_a_queue_mail_waits_for_the_next_try(
    mailer: RecordingMailer, caplog: pytest.LogCaptureFixture
) -> None:
    """Mail that comes while the relay is not tried is sent with the next try; no commit waits for
    it once the relay has failed twice."""
    direct = Direct(MemoryQueue(), mailer, durable=False, pause=0.5)
    mailer.unavailable = 'connection refused'
    direct.commit(message('a'))
    direct.commit(message('b'))
    assert mailer.connections == 2
    mailer.unavailable = None
    for subject in 'cd':
        direct.commit(message(subject))
    assert mailer.sent == []
    assert direct.sender.flush(WAIT)
    assert direct.dispatcher.kinds == [('a', 'error'), ('b', 'error'), ('c', 'sent'), ('d', 'sent')]
    assert mailer.connections == 3
    assert log_levels(caplog, 'available again') == ['WARNING']
    direct.commit(message('e'))
    assert direct.dispatcher.kinds[-1] == ('e', 'sent')
    direct.finish()


def test_with_a_queue_mail_stays_there(
    maildir: MaildirQueue, mailer: RecordingMailer, caplog: pytest.LogCaptureFixture
) -> None:
    """What has waited for a try that fails stays in the queue, unchanged; what comes for the next
    one is sent with it."""
    direct = Direct(maildir, mailer, durable=True, pause=0.5)
    mailer.unavailable = 'connection refused'
    for _ in range(5):
        direct.commit()
    assert direct.sender.flush(WAIT)
    assert mailer.connections == 3, 'one for each of the first two, and one for those behind'
    assert [name[:4] for name in files(maildir)] == ['new/'] * 5
    mailer.unavailable = None
    direct.commit(message('afterwards'))
    assert direct.sender.flush(WAIT)
    assert direct.dispatcher.kinds == [('afterwards', 'sent')]
    assert log_levels(caplog, 'relay unavailable, mail stays queued') == ['ERROR']
    assert log_levels(caplog, 'available again') == ['WARNING']
    direct.finish()


def test_with_a_queue_a_relay_that_refuses_everything(
    maildir: MaildirQueue, mailer: RecordingMailer, caplog: pytest.LogCaptureFixture
) -> None:
    """Five mails in a row that are refused in the same words open the circuit breaker here too:
    what comes later stays in the queue."""
    direct = Direct(maildir, mailer, durable=True, pause=0.3)
    mailer.always('ann@example.org', DENIED)
    for _ in range(IN_A_ROW + 5):
        direct.commit()
    assert direct.sender.flush(WAIT)
    kinds = [kind for _, kind in direct.dispatcher.kinds]
    assert kinds[:IN_A_ROW] == ['error'] * (IN_A_ROW - 1) + ['deferred']
    assert set(kinds[IN_A_ROW:]) == {'deferred'}, 'one mail is tried at a time'
    assert len(mailer.sent) == len(kinds) < IN_A_ROW + 5
    assert log_levels(caplog, 'relay unavailable') == ['CRITICAL']
    assert log_levels(caplog, 'available again') == []
    direct.finish()


def test_without_a_queue_each_mail_is_tried(mailer: RecordingMailer) -> None:
    """A relay that refuses everything: nothing is to be saved, and each mail has its event."""
    direct = Direct(MemoryQueue(keep_failed=False), mailer, durable=False)
    mailer.always('ann@example.org', DENIED)
    for _ in range(IN_A_ROW + 3):
        direct.commit()
    assert [event.permanent for _, event in direct.dispatcher.handled] == [True] * (IN_A_ROW + 3)
    direct.finish()


# What waits in memory


def test_what_does_not_fit(
    make: Callable[..., Direct], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail beyond the bound is lost at once, with its event and a line that says so; with a queue
    it stays there. A first transaction always fits, and all does again when the mail has left."""
    monkeypatch.setattr(direct_sender, 'MAX_WAITING_MAILS', 3)
    mailer = MuteMailer()
    mailer.unavailable = None
    direct = make(mailer, wait=False)
    direct.commit(*map(message, numbered(4)))
    direct.commit(message('five'), message('six'))
    if direct.recorder.durable:
        assert direct.dispatcher.handled == []
        assert '2 mails stay queued for a queue processor' in caplog.text
        assert log_levels(caplog, 'too much mail waits') == ['WARNING']
    else:
        assert direct.dispatcher.kinds == [('five', 'error'), ('six', 'error')]
        assert all('too much mail waits' in each.reason for _, each in direct.dispatcher.handled)
        assert log_levels(caplog, 'not sent and lost') == ['ERROR'] * 2
    mailer.over.set()
    assert direct.sender.flush(WAIT)
    direct.commit(message('afterwards'))
    assert direct.sender.flush(WAIT)
    assert [envelope.subject for envelope in mailer.sent] == [*numbered(4), 'afterwards']
    if direct.recorder.durable:
        assert len(files(direct.queue)) == 2


def test_what_is_too_large_to_wait(
    make: Callable[..., Direct], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound counts the bytes of what is nowhere but in memory."""
    mailer = MuteMailer()
    mailer.unavailable = None
    direct = make(mailer, wait=False)
    size = direct.delivery.freeze(message()).size
    monkeypatch.setattr(direct_sender, 'MAX_WAITING_BYTES', 2.5 * size)
    for _ in range(4):
        direct.commit()
    lost = 0 if direct.recorder.durable else 2
    assert [kind for _, kind in direct.dispatcher.kinds] == ['error'] * lost
    mailer.over.set()
    assert direct.sender.flush(WAIT)
    for _ in range(3):
        direct.commit()
        assert direct.sender.flush(WAIT)
    assert len(mailer.sent) == 7 - lost


# A relay that throttles


def test_a_throttled_mail_is_sent_after_the_pause(
    make: Callable[..., Direct], mailer: RecordingMailer, caplog: pytest.LogCaptureFixture
) -> None:
    """No attempt is counted, no event but of success dispatched, and the order is kept."""
    direct = make(mailer)
    mailer.script('ann@example.org', OK, SES, SES)
    direct.commit(*map(message, numbered(3)))
    direct.commit(message('mail 4'))
    assert direct.sender.flush(WAIT)
    assert direct.dispatcher.kinds == [(subject, 'sent') for subject in numbered(4)]
    assert {event.attempt for _, event in direct.dispatcher.handled} == {1}
    assert len(mailer.sent) == 6
    assert log_levels(caplog, 'throttles; all mail waits') == ['WARNING']
    assert direct.queue.scan(1e11) == ([], None)


def test_a_relay_that_goes_on_throttling(
    make: Callable[..., Direct], mailer: RecordingMailer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is unavailable in the end: with a queue the mail stays there, untouched."""
    direct = make(mailer, pause=0.001)
    mailer.always('ann@example.org', SES)
    direct.commit()
    assert direct.sender.flush(WAIT)
    assert log_levels(caplog, 'relay unavailable') == ['ERROR']
    if direct.recorder.durable:
        assert direct.dispatcher.handled == []
        [name] = files(direct.queue)
        assert name.startswith('new/')
    else:
        [(_, event)] = direct.dispatcher.handled
        assert (event.kind, event.permanent, event.attempt) == ('error', False, 1)
        assert 'Throttling failure' in event.reason


def test_a_mail_that_is_always_throttled_holds_up_no_other(
    make: Callable[..., Direct], mailer: RecordingMailer
) -> None:
    """Neither of its own transaction nor of those that come later."""
    direct = make(mailer, wait=False)
    mailer.always('eve@example.org', SES)
    direct.commit(message('eve', 'eve@example.org'))
    mailer.wait_for(1)
    direct.commit(message('eve', 'eve@example.org'), *map(message, numbered(3)))
    direct.commit(message('mail 4'))
    until(lambda: {(subject, 'sent') for subject in numbered(4)} <= set(direct.dispatcher.kinds))
    assert ('eve', 'sent') not in direct.dispatcher.kinds
    mailer.always('eve@example.org', OK)


def test_without_a_queue_a_mail_throttled_in_part(mailer: RecordingMailer) -> None:
    """Nothing could keep it: the recipients that were throttled are an error event."""
    direct = Direct(MemoryQueue(keep_failed=False), mailer, durable=False)
    mailer.script('bob@example.org', SES)
    direct.commit(message(to=['ann@example.org', 'bob@example.org']))
    kinds = [(event.kind, event.recipients) for _, event in direct.dispatcher.handled]
    assert kinds == [('sent', ('ann@example.org',)), ('error', ('bob@example.org',))]
    assert direct.queue.scan(1e11) == ([], None)
    direct.finish()


@pytest.mark.parametrize(
    ('verb', 'action'),
    [
        ('MAIL', reply_then_drop(421, '4.7.28 unusual rate of mail')),
        ('RCPT', reply(454, '4.7.0 Throttling failure: Maximum sending rate exceeded')),
        ('dot', reply(432, '4.3.2 Concurrent connections limit exceeded')),
        ('dot', reply_then_drop(421, '4.7.28 unusual rate of mail')),
    ],
)
def test_over_smtp(
    verb: str, action: Any, make: Callable[..., Direct], smtp_server: ScriptedSMTPServer
) -> None:
    """Wherever the relay says it, and whether or not it closes the connection."""
    direct = make(mailer_from_url(smtp_server.url, hostname='web.example.org'))
    direct.commit(message('a'))
    smtp_server.script(verb, action)
    direct.commit(message('b'), message('c'))
    assert direct.sender.flush(WAIT)
    assert sorted(direct.dispatcher.kinds) == [(subject, 'sent') for subject in 'abc']
    assert smtp_server.accepted('ann@example.org') == 3
    assert smtp_server.script_left() == {}


# The end of the thread


def test_an_idle_thread_ends(
    make: Callable[..., Direct], mailer: RecordingMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closes the connection before. The next mail has another thread, and so has an event that
    is due again; with the thread goes the delivery."""
    monkeypatch.setattr(direct_sender, 'IDLE_TIME', 0.05)
    direct = make(mailer)
    before = direct_threads()
    for count in range(1, 4):
        direct.commit()
        assert len(mailer.sent) == count
        until(lambda: not direct_threads() - before)
        assert mailer.open_sessions == []
    tries: list[int] = []

    def handle(claim: Any, events: Any) -> bool:
        tries.append(events[0].tries)
        if len(tries) == 1:
            claim.retry_events(events, time.time() + 0.2)
        return len(tries) > 1

    direct.dispatcher.handle = handle
    direct.commit()
    until(lambda: len(direct.dispatcher.handled) == 4)
    until(lambda: not direct_threads() - before)
    assert tries == [0, 1]


def test_mail_beside_the_end_of_the_thread(
    mailer: RecordingMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail that comes while the thread ends is sent."""
    monkeypatch.setattr(direct_sender, 'IDLE_TIME', 0.0)
    direct = Direct(MemoryQueue(keep_failed=False), mailer, durable=False, wait=False)
    for number in range(1, 201):
        direct.commit()
        if number % 3:
            until(lambda number=number: len(mailer.sent) == number)
    until(lambda: len(mailer.sent) == 200)


def test_a_queue_is_scanned_before_the_thread_ends(
    maildir: MaildirQueue, mailer: RecordingMailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process that stopped meanwhile has left is found once more."""
    monkeypatch.setattr(direct_sender, 'IDLE_TIME', 0.1)
    direct = Direct(maildir, mailer, durable=True)
    before = direct_threads()
    scans: list[float] = []
    scan = maildir.scan

    def scanning(now: float) -> Any:
        scans.append(now)
        return scan(now)

    monkeypatch.setattr(maildir, 'scan', scanning)
    direct.commit()
    until(lambda: not direct_threads() - before)
    assert len(scans) in (1, 2), 'at the start, and at the end if mail was sent after that'
    direct.commit()
    until(lambda: not direct_threads() - before)
    assert len(scans) in (3, 4)


@pytest.mark.parametrize(
    'count', [20, pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
@pytest.mark.parametrize('durable', [False, True])
def test_applications_that_each_sent_a_mail(
    count: int, durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave no thread behind, and their registries are freed."""
    monkeypatch.setattr(direct_sender, 'IDLE_TIME', 0.01)
    monkeypatch.setattr(dispatcher, 'IDLE_TIME', 0.01)

    def ours() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if isinstance(each, BackgroundThread)}

    before = ours()
    sent: list[str] = []
    registries = []
    for number in range(count):
        settings = {'mail.default_sender': 'shop@example.org', 'mail.delivery': 'direct'}
        if durable:
            settings['mail.queue_path'] = str(tmp_path / str(number))
        config = Configurator(settings=settings)
        config.include('pyramid_sendmail')
        config.set_mailer(NullMailer())
        config.add_subscriber(lambda event: sent.append(event.message_id), MailSentEvent)
        config.make_wsgi_app()
        delivery = config.registry.getUtility(IMailDelivery)
        manager = TransactionManager(explicit=True)
        with manager:
            delivery.bind(manager).send(message())
        registries.append(weakref.ref(config.registry))
        del config, delivery, manager
    until(lambda: len(sent) == count)
    until(lambda: not ours() - before)
    gc.collect()
    assert [each for each in registries if each() is not None] == []


def test_the_error_of_what_does_not_fit_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    """The relay is not taken for unavailable because memory is full."""
    mailer = MuteMailer()
    mailer.unavailable = None
    direct = Direct(MemoryQueue(), mailer, durable=False, wait=False)
    caplog.set_level(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_sender, 'MAX_WAITING_MAILS', 1)
        for _ in range(3):
            direct.commit()
    mailer.over.set()
    direct.finish()
    assert log_levels(caplog, 'relay unavailable') == []
    assert [kind for _, kind in direct.dispatcher.kinds] == ['error', 'error', 'sent']
