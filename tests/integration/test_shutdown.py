"""The queue processor stopped while a relay is silent, by one signal, by two, and with the web
process whose thread it is: nothing is lost, and only ambiguous mail may arrive a second time. With
a relay that answers: ``test_qp`` and ``test_stopping``."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.envelope import Tally
from pyramid_sendmail.mailers.factory import mailer_from_url
from tests.support.applications import WAITING
from tests.support.children import Child, Place, once_each
from tests.support.processes import PROCESSOR_THREAD
from tests.support.processors import (
    ProcessorSetup,
    RecordingDispatcher,
    log_levels,
    make_maildir,
    put_pending_event,
    running_processor,
    worker_threads,
)
from tests.support.queues import Clock, files, make_envelope, until
from tests.support.scripts import Processor, run
from tests.support.smtp.server import ScriptedSMTPServer, TLSAuthority, accept_then, delay, hang

Start = Callable[..., ScriptedSMTPServer]

CONNECTING = {'greeting': 'connect', 'EHLO': 'EHLO', 'handshake': 'TLS', 'AUTH': 'AUTH'}
"""Phases without a mail, and the verb at which the relay falls silent."""

SENDING = {'MAIL': 'MAIL', 'RCPT': 'RCPT', 'DATA': 'DATA', 'text': 'DATA', 'last 250': 'dot'}
"""Phases of a mail, and the last verb that the relay received."""

IMPATIENT = """
import sys
from dataclasses import replace
from pyramid_sendmail import threads
from pyramid_sendmail.config.factories import processor_of
from pyramid_sendmail.scripts import qp

threads.EXIT_GRACE = 0.2

def make(registry, **options):
    processor = processor_of(registry, **options)
    processor.options = processor.options._replace(grace=0.2)
    return processor

sys.exit(qp.run(sys.argv[1:], make=make))
"""
"""``psendmail-qp`` that gives mail in flight a fifth of a second."""

THREAD = (
    PROCESSOR_THREAD
    + """
from pyramid_sendmail import threads

def never(event):
    open(settings['tests.report'], 'w').close()
    threading.Event().wait()

threads.EXIT_GRACE = float(settings['tests.grace'])
if 'tests.report' in settings:
    config.add_subscriber(never, 'pyramid_sendmail.interfaces.IMailSentEvent')
    config.commit()
app.get('/')
while not os.path.exists(settings['tests.leave']):
    time.sleep(0.01)
"""
)
"""A web process that serves one request, which sends a mail, and ends when a file appears."""


def command(code: str) -> list[str]:
    return [sys.executable, '-W', 'ignore', '-c', code]


class Stalled:
    """A relay that falls silent in one phase of the first connection."""

    def __init__(self, phase: str, start: Start, authority: TLSAuthority) -> None:
        narrow: dict[str, Any] = {'read_size': 65_536, 'socket_buffer': 65_536}
        self.phase = phase
        self.server = start(
            auth={'shop': 'secret'},
            tls='starttls',
            context=authority.context(),
            **(narrow if phase == 'text' else {}),
        )
        place = f'{self.server.host}:{self.server.port}'
        self.url = f'smtp://shop:secret@{place}?ca_file={authority.path}'
        if phase == 'text':
            self.server.read_pause = 3600
        elif phase == 'last 250':
            self.server.script('dot', accept_then(hang()))
        else:
            self.server.script((CONNECTING | SENDING)[phase], hang())

    def reached(self) -> None:
        """Wait until it is silent."""
        verb = {'greeting': '', 'handshake': 'STARTTLS'}.get(
            self.phase, (CONNECTING | SENDING)[self.phase]
        )
        self.server.wait_for(
            lambda server: server.open_connections == 1 and (not verb or verb in server.verbs()),
            30,
        )

    def speak(self) -> None:
        """Answer from now on."""
        self.server.read_pause = 0


@pytest.fixture
def stall(
    place: Place, start_smtp_server: Start, tls_authority: TLSAuthority
) -> Callable[[str], Stalled]:
    """Return a function that makes the place's relay fall silent in a phase, with three mails in
    the queue, the first of them large."""

    def make(phase: str) -> Stalled:
        stalled = Stalled(phase, start_smtp_server, tls_authority)
        place.server = stalled.server
        body = 'All work and no play.\r\n' * (400_000 if phase == 'text' else 1)
        place.queue.put([make_envelope(body=body, queued_at=time.time())]).publish()
        place.put(2)
        return stalled

    return make


def finish(place: Place, url: str, *, wanted: int) -> Counter[str]:
    """Let another processor send what is left, at the times of the retries. Return how many copies
    of each mail have arrived. ``wanted``: how many mails there were."""
    clock = Clock(time.time())
    setup = ProcessorSetup(make_maildir(Path(place.queue.path), clock=clock), clock=clock)
    setup.mailer = mailer_from_url(url, hostname='x')  # type: ignore[assignment]
    setup.dispatcher = RecordingDispatcher('sent', 'error')
    for _ in range(3):
        setup.processor(workers=1).run_once()
        clock.now += 3600
    setup.queue.close()
    assert files(place.queue) == []
    assert 'error' not in {event.kind for event in setup.dispatcher.pending_events}
    copies: Counter[str] = Counter()
    for (message_id, _), count in place.server.pairs().items():
        copies[message_id] += count
    assert len(copies) == wanted, 'nothing is lost'
    return copies


def check_copies(phase: str, copies: Counter[str], caplog: pytest.LogCaptureFixture) -> None:
    """Check that each mail arrived once; an ambiguous one is logged, and arrived twice."""
    twice = [message_id for message_id, count in copies.items() if count > 1]
    ambiguous = [each.getMessage() for each in caplog.records if 'ambiguous' in each.getMessage()]
    if phase == 'last 250':
        [message_id] = twice
        assert copies[message_id] == 2
        assert [line.partition(' for ')[0] for line in ambiguous] == [f'{message_id}: ambiguous']
    else:
        assert (twice, ambiguous) == ([], [])


# psendmail-qp


@pytest.mark.parametrize('phase', ['handshake', 'AUTH'])
def test_while_connecting(place: Place, stall: Callable[[str], Stalled], phase: str) -> None:
    """A worker that is connecting has no mail and is not waited for: status 0, no file changes."""
    relay = stall(phase)
    before = files(place.queue)
    child = place.start(place.ini(mail_url=relay.url))
    relay.reached()
    assert child.stop() == 0
    assert files(place.queue) == before
    assert set(finish(place, relay.url, wanted=3).values()) == {1}


@pytest.mark.parametrize('phase', SENDING)
def test_a_silent_relay(
    place: Place, stall: Callable[[str], Stalled], phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Mail in flight has its grace and no more: status 0, a line that says what is left, and the
    next processor finishes it."""
    relay = stall(phase)
    child = place.start(place.ini(mail_url=relay.url), '--workers', 1, command=command(IMPATIENT))
    relay.reached()
    assert child.stop() == 0
    # The commands of the next mail may have left with the final dot.
    late = '2 mails' if phase == 'last 250' else 'a mail'
    assert child.lines[-3:] == [
        f'WARNING still sending at the end of the shutdown time: {late}; '
        'unfinished mail is retried by the next processor',
        'psendmail-qp: stopped by SIGTERM; unsent mail stays queued',
        'psendmail-qp: 0 delivered, 0 deferred, 0 failed',
    ]
    relay.speak()
    caplog.set_level(logging.INFO, 'pyramid_sendmail')
    check_copies(phase, finish(place, relay.url, wanted=3), caplog)


def signal_twice(child: Child, number: int) -> int:
    """Return the exit status after two equal signals. The system merges two that are pending at the
    same time, so send them until the child has ended."""
    end = time.monotonic() + 20
    while child.process.poll() is None:
        assert time.monotonic() < end, 'it waits after the second signal'
        child.signal(number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.1)
    return child.process.returncode


@pytest.mark.parametrize('phase', SENDING)
def test_a_second_signal(
    place: Place, stall: Callable[[str], Stalled], phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends at once, and is as safe as kill -9."""
    number = signal.SIGTERM if phase == 'text' else signal.SIGINT
    relay = stall(phase)
    child = place.start(place.ini(mail_url=relay.url), '--workers', 1)
    relay.reached()
    assert signal_twice(child, number) == -number
    assert 'Traceback' not in child.text
    relay.speak()
    caplog.set_level(logging.INFO, 'pyramid_sendmail')
    check_copies(phase, finish(place, relay.url, wanted=3), caplog)


def test_one_signal_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """SIGTERM after SIGINT is no second signal: a process manager sends it to children that have
    had the terminal's Ctrl-C already."""

    def work(processor: Processor, stop: threading.Event) -> None:
        for number, other in ((signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)):
            handler = signal.getsignal(number)
            assert callable(handler)
            handler(number, None)
            assert signal.getsignal(number) == signal.SIG_DFL
            assert (signal.getsignal(other) == signal.SIG_DFL) == (other == signal.SIGINT)
        assert stop.is_set()

    assert run('x.ini', processor=Processor(run=work)) == 0
    assert 'watching' in capsys.readouterr().err


def test_in_the_middle_of_a_batch(place: Place) -> None:
    """Four workers in the middle of their batches: mail that was not begun is unchanged."""
    place.server.always('dot', delay(0.02))
    message_ids = place.put(200)
    before = set(files(place.queue))
    child = place.start(place.ini())
    place.server.wait_for(20, 30)
    assert child.stop() == 0
    left = files(place.queue)
    assert 0 < len(left) < 180
    assert set(left) <= before
    assert len(place.server.messages) + len(left) == 200
    place.server.reset_script()
    assert set(finish(place, place.server.url, wanted=200)) == set(message_ids)
    assert once_each(place.server, message_ids)


def test_a_subscriber_that_never_ends(place: Place) -> None:
    """Subscribers have the same grace; the next process dispatches the event again, and the mail is
    not sent again."""
    report = place.path / 'report'
    ini = place.ini(WAITING, tests_report=report, tests_go_on=place.path / 'never')
    message_ids = place.put()
    child = place.start(ini, command=command(IMPATIENT))
    until(report.exists, 20)
    assert child.stop() == 0
    assert [name.partition('/')[0] for name in files(place.queue)] == ['done']
    finish(place, place.server.url, wanted=1)
    assert once_each(place.server, message_ids)


@pytest.mark.parametrize('phase', ['AUTH', 'last 250'])
def test_once(
    place: Place, stall: Callable[[str], Stalled], phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    """--once ends with the status of the signal, and prints the counts as its last line."""
    relay = stall(phase)
    child = place.start(
        place.ini(mail_url=relay.url), '--once', '--workers', 1, command=command(IMPATIENT)
    )
    relay.reached()
    assert child.stop() == 128 + signal.SIGTERM
    assert child.lines[-1] == 'psendmail-qp: 0 delivered, 0 deferred, 0 failed'
    caplog.set_level(logging.INFO, 'pyramid_sendmail')
    check_copies(phase, finish(place, relay.url, wanted=3), caplog)


# The processor in this process


def test_run_once_stopped_while_it_dispatches_events(tmp_path: Path) -> None:
    """Many pending events with slow subscribers do not delay a process that should stop."""
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail'))
    put_pending_event(setup)
    put_pending_event(setup)
    put_pending_event(setup)
    setup.put()
    stop = threading.Event()
    sent = len(setup.mailer.sent)

    class Slow(RecordingDispatcher):
        def flush(self, timeout: float) -> bool:
            stop.set()
            return False

    setup.dispatcher = Slow('sent')
    assert setup.processor(event_page=2).run_once(stop=stop) == Tally()
    assert len(setup.dispatcher.pending_events) == 2, 'the page that it had begun'
    assert len(setup.mailer.sent) == sent
    setup.dispatcher = RecordingDispatcher('sent')
    assert setup.processor().run_once() == Tally(delivered=1)
    setup.queue.close()


def test_run_once_stopped_before_it_begins(tmp_path: Path) -> None:
    """Nothing is sent."""
    setup = ProcessorSetup(make_maildir(tmp_path / 'mail'))
    setup.put()
    stop = threading.Event()
    stop.set()
    assert setup.processor().run_once(stop=stop) == Tally()
    assert setup.mailer.connections == 0
    setup.queue.close()


@pytest.mark.parametrize('once', [False, True])
def test_there_is_one_grace(tmp_path: Path, once: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Mail in flight and subscribers share the same time, and the log names the rest once."""
    joined: list[float] = []
    entered, leave, stop = threading.Event(), threading.Event(), threading.Event()

    class Patient(RecordingDispatcher):
        def flush(self, timeout: float) -> bool:
            joined.append(timeout)
            return True

    def before(envelope: Any) -> None:
        entered.set()
        assert leave.wait(30)

    setup = ProcessorSetup(make_maildir(tmp_path / 'mail'))
    setup.dispatcher = Patient()
    setup.mailer.before = before
    setup.put()
    processor = setup.processor(grace=0.1)

    def progress(tally: Tally, left: int) -> None:
        if entered.is_set():
            stop.set()

    try:
        if once:
            processor.run_once(progress, stop)
        else:
            with running_processor(processor):
                assert entered.wait(10)
        assert joined[-1] == 0.0, 'no time was left'
        assert log_levels(caplog, 'still sending') == ['WARNING']
        until(lambda: len(worker_threads()) == 1)
        [worker] = worker_threads()
        assert processor.current is not None
        again = threading.Thread(target=processor.shut_down, args=(3600.0,), daemon=True)
        again.start()
        again.join(10)
        assert not again.is_alive(), 'a second call has no more time'
    finally:
        leave.set()
    worker.join(10)
    assert not worker.is_alive()
    setup.queue.close()


# mail.processor = thread


class Web:
    """A web process with mail.processor = thread."""

    def __init__(self, place: Place, url: str, *, grace: float = 30.0, **settings: object) -> None:
        self._leave = place.path / 'leave'
        given = {
            'mail.url': url,
            'mail.queue_path': place.queue.path,
            'mail.queue_sync': 'off',
            'tests.grace': grace,
            'tests.leave': self._leave,
            **{key.replace('_', '.', 1): value for key, value in settings.items()},
        }
        arguments = [f'{key}={value}' for key, value in given.items()]
        self.child = place.start(*arguments, command=command(THREAD))

    def end(self) -> int:
        """Let its program come to its end; return the exit status."""
        self._leave.touch()
        return self.child.wait(30)


@pytest.mark.parametrize('phase', [*CONNECTING, *SENDING])
def test_the_thread_and_a_silent_relay(
    place: Place, stall: Callable[[str], Stalled], phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A web process that ends waits for mail in flight, at most for the grace, and not for a relay
    that it cannot reach; the next processor finishes the mail."""
    relay = stall(phase)
    sending = phase in SENDING
    web = Web(place, relay.url, grace=0.2 if sending else 30.0, mail_workers=1)
    relay.reached()
    until(lambda: len(files(place.queue)) == 4)
    assert web.end() == 0
    lines = web.child.text.splitlines()
    if sending:
        [line] = lines
        assert 'queue processor thread did not stop within 0.2 s' in line
    else:
        assert lines == []
        assert all(name.startswith('new/') and '-0000-' in name for name in files(place.queue))
    relay.speak()
    caplog.set_level(logging.INFO, 'pyramid_sendmail')
    check_copies(phase, finish(place, relay.url, wanted=4), caplog)


def test_the_thread_and_an_unavailable_relay(place: Place) -> None:
    """A web process that ends does not wait for the next try."""
    place.server.stop()
    place.put(3)
    web = Web(place, place.server.url)
    web.child.says('relay unavailable, mail stays queued')
    assert web.end() == 0
    assert len(web.child.text.splitlines()) == 1
    place.server.start()
    assert set(finish(place, place.server.url, wanted=4).values()) == {1}


def test_the_thread_and_the_rate(place: Place) -> None:
    """A web process that ends does not wait for a permit."""
    place.put(3)
    web = Web(place, place.server.url, mail_rate='1/h')
    place.server.wait_for(1, 20)
    until(lambda: len(files(place.queue)) == 3)
    assert web.end() == 0
    assert len(place.server.messages) == 1
    assert set(finish(place, place.server.url, wanted=4).values()) == {1}


def test_the_thread_and_a_subscriber_that_never_ends(place: Place) -> None:
    """The next process dispatches its event again, and does not send its mail again."""
    report = place.path / 'report'
    web = Web(place, place.server.url, grace=0.2, tests_report=report)
    until(report.exists, 20)
    assert web.end() == 0
    assert [name.partition('/')[0] for name in files(place.queue)] == ['done']
    assert finish(place, place.server.url, wanted=1).total() == 1
