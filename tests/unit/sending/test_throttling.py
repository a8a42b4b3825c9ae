"""A relay that throttles: what counts as that, how the mailer slows down, and that no mail pays."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

import pytest

from pyramid_sendmail.envelope import Outcome, Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.options import SessionOptions, Timeouts
from pyramid_sendmail.queue import MemoryQueue
from pyramid_sendmail.sending.rate_limiter import RateLimiter
from pyramid_sendmail.sending.throttling import (
    BLAMED_AFTER,
    FULL_PACE_TIME,
    LASTING_PAUSES,
    MAX_SUSPECTS,
    MEASURED_MAILS,
    RECOVERY_TIME,
    SLOWEST_PACE,
    Throttle,
    is_throttling,
)
from tests.support.doubles import RecordingMailer
from tests.support.processors import ProcessorSetup, RecordingDispatcher, is_empty, log_levels
from tests.support.queues import Clock, make_envelope, until
from tests.support.sessions import make_mailer
from tests.support.smtp.server import ScriptedSMTPServer, Session, reply, reply_then_drop

SES = Reply(454, 'Throttling failure: Maximum sending rate exceeded.')

THROTTLING = [
    (454, 'Throttling failure: Maximum sending rate exceeded.'),  # Amazon SES
    (454, 'Throttling failure: Daily message quota exceeded.'),
    (454, '4.7.0 Throttling failure: Maximum sending rate exceeded'),
    (432, '4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending'),
    (432, '4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded'),  # Exchange Online
    (421, '4.3.2 The maximum number of concurrent connections has exceeded a limit'),
    (421, '4.4.2 Message submission rate for this client has exceeded the configured limit'),
    (
        421,
        '4.7.28 [192.0.2.1 15] Gmail has detected an unusual rate of unsolicited mail originating '
        'from your IP address. To protect our users from spam, mail has been temporarily limited.',
    ),
    (450, '4.7.28 Try again later'),
    (
        421,
        '4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or '
        'user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes',
    ),
    (451, 'You have exceeded your messaging limits'),  # SendGrid
    (450, '4.7.1 Error: too much mail from 192.0.2.1'),  # Postfix
    (421, '4.7.0 mx.example.org Error: too many connections from 192.0.2.1'),
    (421, '4.3.2 Connection rate limit exceeded.'),  # Sendmail
    (452, '4.3.2 Connection rate limit exceeded.'),
    (451, '4.7.1 Ratelimit "user" exceeded'),  # mailcow
    (450, '4.7.1 SASL login name rejected: You are sending too many emails too fast.'),  # Mailu
    (451, 'Requested action aborted: This mail account has sent too many messages in a short time'),
    (450, 'too many emails from this sender, please try again later'),
    (451, 'Number messages per hour exceeded'),
    (452, '4.7.0 Too many messages sent'),
    (451, "You've reached your sending limit. Don't worry you can send again soon."),
    (421, 'Please slow down'),
]

OTHER = [
    (450, '4.2.1 The user you are trying to contact is receiving mail at a rate that prevents'),
    (450, '4.2.1 The user you are trying to contact is receiving mail too quickly.'),
    (450, 'mailbox bob@example.org is receiving mail at a rate that prevents more'),
    (432, '4.3.2 STOREDRV.Deliver; recipient thread limit exceeded'),
    (452, '4.2.2 Daily message quota exceeded'),
    (451, '5.2.1 mailbox: rate limit'),
    (450, '4.1.1 rate limit'),
    (452, '4.3.1 Mail system full: no space on volume /var/spool'),
    (452, '4.3.4 Message line limit exceeded'),
    (451, '4.3.5 Server configuration error: rate policy lookup failed'),
    (450, '4.6.0 content: spam rate too high'),
    (421, '4.4.2 your connection is below the minimum data rate'),
    (421, 'Transfer rate too slow'),
    (452, '4.5.3 Too many recipients'),
    (452, '4.5.3 too many messages'),
    (421, 'Too many messages in this connection'),  # Exim
    (421, '4.7.0 too many messages per session'),
    (432, '4.7.12 A password transition is needed'),
    (432, 'some text'),
    (450, '4.7.1 Greylisted, please try again later'),
    (451, '4.3.0 Mail server temporarily rejected message'),
    (421, '4.3.2 Service not available, closing transmission channel'),
    (452, '4.3.1 Insufficient system storage'),
    (452, '4.3.4 message size limit exceeded'),
    (452, 'mail size limit exceeded'),
    (454, '4.7.0 Temporary authentication failure'),
    (421, '4.7.0 Our system has detected that this message is suspicious'),
    (450, '4.7.25 Client host rejected: cannot find your hostname'),
    (550, '5.7.28 rate limit exceeded'),
    (550, '5.4.5 Daily user sending quota exceeded'),
    (250, 'sending rate fine'),
]


@pytest.mark.parametrize(('code', 'text'), THROTTLING)
def test_what_throttles(code: int, text: str) -> None:
    """Words of the rate, as providers have them, and two codes that mean nothing else."""
    assert is_throttling(Reply(code, text))


@pytest.mark.parametrize(('code', 'text'), OTHER)
def test_what_does_not_throttle(code: int, text: str) -> None:
    """A recipient or a session that has had too much, a relay that is full or suspicious, and what
    is refused for good."""
    assert not is_throttling(Reply(code, text))


# The pace


def outcome(found: Reply, *recipients: str) -> Outcome:
    status = {2: 'delivered', 4: 'deferred', 5: 'failed'}[found.code // 100]
    verdict = Verdict(status, found)  # type: ignore[arg-type]
    return dict.fromkeys(recipients or ('ann@example.org',), verdict)


TAKEN = outcome(Reply(250, 'ok'))


class Sending:
    """A throttle, and mail that is sent through it as fast as it allows."""

    def __init__(self) -> None:
        self.clock = Clock(1000.0)
        self.throttle = Throttle('smtp://relay.example.org:25', monotonic=self.clock)
        self._mails = 0

    def take(self, mails: int) -> None:
        """Have the relay take mails, at this moment."""
        for _ in range(mails):
            self._mails += 1
            assert self.throttle.judge(str(self._mails), TAKEN) == ()

    def throttled(self, id: str = '') -> bool:
        self._mails += 1
        return bool(self.throttle.judge(id or str(self._mails), outcome(SES)))

    def pace(self) -> float:
        """Return how many mails leave in a second, from now on."""
        end, mails = self.clock.now + 1, 0
        while self.clock.now < end - 1e-6:
            mails += self.throttle.acquire()
            self.clock.now += 0.005
        return mails


@pytest.fixture
def sending() -> Sending:
    return Sending()


def test_half_the_pace_and_slowly_more(sending: Sending, caplog: pytest.LogCaptureFixture) -> None:
    """A pause, half of what the relay took in the last second, all of it after a minute, and no
    limit after three: one line at the beginning, and one at the end."""
    assert sending.throttle.acquire()
    assert sending.throttle.retry_in(9999) == 0
    sending.take(30)
    sending.clock.now += 2
    sending.take(40)
    assert sending.throttled()
    assert sending.throttle.retry_in() == 1
    assert not sending.throttle.acquire()
    sending.clock.now += 1
    assert sending.throttle.retry_in() == 0
    assert sending.pace() == pytest.approx(20, abs=4)
    sending.take(1)
    sending.clock.now += RECOVERY_TIME - 1
    assert sending.pace() == pytest.approx(40, abs=5)
    assert len(caplog.records) == 1
    assert (
        'throttles; all mail waits for 1 s, then leaves at 20 a second, and slowly' in caplog.text
    )
    assert str(SES) in caplog.text
    sending.clock.now += FULL_PACE_TIME
    assert sending.throttle.retry_in(9999) == 0
    assert sending.pace() == 200
    assert [record.levelname for record in caplog.records] == ['WARNING'] * 2
    assert 'full pace again, after it was slowed down 1 times in 4 min' in caplog.text


def test_a_burst_counts_once(sending: Sending) -> None:
    """The replies to what was in flight slow down no further."""
    sending.take(40)
    for _ in range(30):
        assert sending.throttled()
        sending.clock.now += 0.02
    assert sending.throttle.retry_in() == pytest.approx(0.4)
    sending.clock.now += 0.4
    assert sending.pace() == pytest.approx(20, abs=4)


def test_each_further_time_halves_what_leaves(
    sending: Sending, caplog: pytest.LogCaptureFixture
) -> None:
    """Down to a slowest pace, and without a further line."""
    sending.take(64)
    for pace in (32, 16, 8, 4, 2, SLOWEST_PACE, SLOWEST_PACE):
        assert sending.throttled()
        assert sending.throttle.retry_in() == 1
        sending.clock.now += 1
        # The first mails of the next second.
        assert sending.throttle.acquire()
        sending.take(round(max(pace, 1)))
        assert sending.throttle.error is None
        assert sending.throttle._pace == pace
    assert len(caplog.records) == 1


def test_pauses_grow_while_nothing_is_taken(sending: Sending) -> None:
    """1, 2, 4 ... seconds, at most a minute; after five the relay counts as unavailable, until it
    takes a mail."""
    sending.take(20)
    for step in range(LASTING_PAUSES + 4):
        assert sending.throttled()
        assert sending.throttle.retry_in() == min(2.0**step, 60)
        assert (sending.throttle.error is not None) == (step >= LASTING_PAUSES)
        sending.clock.now += sending.throttle.retry_in()
    error = sending.throttle.error
    assert error is not None
    assert str(error).startswith('smtp://relay.example.org:25: it takes no mail')
    assert str(error).endswith(str(SES))
    sending.clock.now += FULL_PACE_TIME
    assert sending.throttle.retry_in(9999) > 0, 'nothing was taken: it is still limited'
    sending.take(1)
    assert sending.throttle.error is None
    assert sending.throttled()
    assert sending.throttle.retry_in() == 1


def test_a_relay_that_is_fast(sending: Sending) -> None:
    """More mails than are counted, within a part of a second."""
    for _ in range(3 * MEASURED_MAILS // 10):
        sending.take(10)
        sending.clock.now += 0.001
    sending.clock.now -= 0.001
    assert sending.throttled()
    sending.clock.now += 1
    assert sending.throttle._pace == pytest.approx(5000, rel=0.02)
    assert sending.pace() > 150, 'several mails leave together'


def test_a_mail_that_alone_is_throttled(sending: Sending) -> None:
    """It is deferred as any other once it was throttled five times while others were taken, and
    slows nothing from then on, until it is taken."""
    for _ in range(BLAMED_AFTER):
        assert sending.throttled('eve')
        sending.clock.now += sending.throttle.retry_in()
        sending.take(3)
    assert not sending.throttled('eve')
    assert not sending.throttled('eve')
    assert sending.throttle.retry_in() < 1
    sending.throttle.judge('eve', TAKEN)
    sending.clock.now += 10
    assert sending.throttled('eve')
    for number in range(2 * MAX_SUSPECTS):
        sending.throttled(f'other {number}')
    assert len(sending.throttle._suspects) == MAX_SUSPECTS


def test_senders_that_are_throttled(sending: Sending) -> None:
    """Mail of another one is tried first, until a mail is taken."""
    assert sending.throttle.passes('eve')
    for name in ('eve', 'mallory'):
        sending.throttle.judge(name, outcome(SES), name)
    assert not sending.throttle.passes('eve')
    assert not sending.throttle.passes('mallory')
    assert sending.throttle.passes('ann')
    sending.take(1)
    assert sending.throttle.passes('eve')
    sending.clock.now += 9
    sending.throttle.judge('3', outcome(SES), 'mallory')
    assert sending.throttle.passes('eve')
    assert not sending.throttle.passes('mallory')
    for number in range(2 * MAX_SUSPECTS):
        sending.throttle.slows(str(number), SES, str(number))
    assert len(sending.throttle._senders) == MAX_SUSPECTS


def test_no_mail_is_blamed_for_a_relay_that_takes_none(sending: Sending) -> None:
    """However often the same mail is tried."""
    sending.take(3)
    for _ in range(20):
        assert sending.throttled('ann')
        sending.clock.now += sending.throttle.retry_in()


def test_what_was_never_asked_is_not_taken(sending: Sending) -> None:
    """A mail that is rejected before sending says nothing about the relay's pace."""
    assert sending.throttled()
    before = sending.throttle._total
    verdict = Verdict('failed', None, 'the message has 9 bytes, and the relay takes 1 (SIZE)')
    assert sending.throttle.judge('ann', {'ann@example.org': verdict}) == ()
    assert sending.throttle._total == before


def test_the_rate_limiter_asks_the_throttle() -> None:
    """The slower of ``mail.rate`` and the relay's pace counts; what was not sent is given back."""
    clock = Clock(1000.0)
    throttle = Throttle(monotonic=clock)
    limiters = [
        RateLimiter(rate, throttle=throttle, monotonic=clock) for rate in (None, (100, 1), (1, 60))
    ]
    assert None not in [limiter.acquire() for limiter in limiters]
    clock.now += 60
    for number in range(8):
        throttle.judge(str(number), TAKEN)
    throttle.judge('8', outcome(SES))
    for limiter in limiters:
        assert limiter.acquire() is None
        assert limiter.retry_in() == 1
    clock.now += 1
    plain, fast, slow = limiters
    assert plain.retry_in() == fast.retry_in() == slow.retry_in() == 0
    assert plain.retry_in(2) == inf, 'four a second: one at a time'
    permit = plain.acquire()
    assert permit is not None
    clock.now += 0.01
    assert plain.acquire() is fast.acquire() is slow.acquire() is None
    assert plain.refund(permit)
    assert slow.acquire() is not None
    clock.now += 1
    assert slow.retry_in() == 59
    assert fast.acquire() is not None


# In a queue processor


class Metered:
    """A relay that takes so many mails in any second, by a clock of its own that runs fast."""

    def __init__(self, clock: Clock, mails: int) -> None:
        self.clock = clock
        self.mails = mails
        self.taken: list[float] = []
        self.refused = 0
        self._lock = threading.Lock()

    def takes(self) -> bool:
        with self._lock:
            lately = [moment for moment in self.taken if moment > self.clock.now - 1]
            if len(lately) < self.mails:
                self.taken.append(self.clock.now)
                return True
            self.refused += 1
            return False


class MeteredMailer(RecordingMailer):
    """A mailer that blocks, to such a relay."""

    relay: Metered

    def answer(self, recipient: str) -> Verdict:
        if self.relay.takes():
            return super().answer(recipient)
        return Verdict('deferred', SES)


@contextmanager
def passing(clock: Clock, wake: Callable[[], object]) -> Iterator[None]:
    """Let time pass, twenty times as fast as it does."""
    over = threading.Event()

    def pass_time() -> None:
        while not over.wait(0.002):
            clock.now += 0.05
            wake()

    thread = threading.Thread(target=pass_time)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(params=['loop', 'window', '421', 'window 421', 'threads'])
def metered(
    request: pytest.FixtureRequest, smtp_server: ScriptedSMTPServer
) -> tuple[ProcessorSetup, Metered]:
    """A processor and a relay that takes 14 mails a second: it refuses the others at the final dot,
    or at MAIL by closing the connection."""
    relay = Metered(Clock(1000.0), 14)
    setup = ProcessorSetup(MemoryQueue())
    setup.dispatcher = RecordingDispatcher('sent', 'deferred', 'error')
    if request.param == 'threads':
        setup.mailer = mailer = MeteredMailer()
        mailer.relay = relay
        return setup, relay
    window = 8 if 'window' in request.param else 1
    if window > 1:
        smtp_server.extensions = (*smtp_server.extensions, 'CHUNKING')
    setup.mailer = make_mailer(  # type: ignore[assignment]
        smtp_server.host,
        smtp_server.port,
        options=SessionOptions(window=window),
        timeouts=Timeouts(*[1e6] * 7),
    )
    refusal = reply(SES.code, SES.text)
    verb = 'dot'
    if '421' in request.param:
        verb, refusal = 'MAIL', reply_then_drop(421, '4.7.28 unusual rate of mail')

    def answer(session: Session) -> object:
        return None if relay.takes() else refusal

    smtp_server.always(verb, answer)  # type: ignore[arg-type]
    return setup, relay


def test_a_relay_that_takes_fourteen_a_second(
    metered: tuple[ProcessorSetup, Metered], caplog: pytest.LogCaptureFixture
) -> None:
    """All mail arrives, once. None is deferred, no attempt is counted and no event but of success
    dispatched, few are refused, and the log has one line."""
    caplog.set_level(logging.INFO)
    setup, relay = metered
    mails = setup.put_many(60)
    with setup.running(workers=4, monotonic=relay.clock, pause=1.0, idle=1e9) as processor:
        until(lambda: processor.current)
        active_queue = processor.current.active_queue  # type: ignore[union-attr]
        with passing(relay.clock, active_queue.notify_waiters):
            until(lambda: is_empty(setup))
    events = setup.dispatcher.pending_events
    assert {(event.kind, event.attempt) for event in events} == {('sent', 1)}
    assert len({event.id for event in events}) == len(events) == len(mails)
    assert len(relay.taken) == 60
    assert 0 < relay.refused < 46, 'the first burst, and a mail now and then'
    assert log_levels(caplog, 'throttles') == ['WARNING']
    assert log_levels(caplog, 'unavailable') == log_levels(caplog, 'deferred') == []


def test_once(metered: tuple[ProcessorSetup, Metered]) -> None:
    """A run with --once waits for the pace, and sends all."""
    setup, relay = metered
    setup.put_many(20)
    processor = setup.processor(workers=2, monotonic=relay.clock, pause=1.0, idle=1e9)

    def wake() -> None:
        if processor.current is not None:
            processor.current.active_queue.notify_waiters()

    with passing(relay.clock, wake):
        tally = processor.run_once()
    assert (tally.delivered, tally.total) == (20, 20)
    assert relay.refused > 0


def test_a_quota_that_is_used_up(
    metered: tuple[ProcessorSetup, Metered], caplog: pytest.LogCaptureFixture
) -> None:
    """A relay that takes none for half a minute is unavailable: --once ends with the error, and a
    processor tries one mail at a time, without counting an attempt."""
    setup, relay = metered
    setup.put_many(5)
    relay.mails = 0
    with pytest.raises(MailerUnavailable, match=r'it takes no mail.*rate'):
        setup.processor(workers=2, pause=0.001).run_once()
    assert len(setup.queue) == 5
    caplog.clear()
    with setup.running(workers=2, pause=0.001, monotonic=relay.clock, idle=1e9) as processor:
        until(lambda: processor.current)
        active_queue = processor.current.active_queue  # type: ignore[union-attr]
        with passing(relay.clock, active_queue.notify_waiters):
            until(lambda: log_levels(caplog, 'relay unavailable') == ['ERROR'])
            refused = relay.refused
            until(lambda: relay.refused > refused + 1)
            assert setup.dispatcher.pending_events == []
            relay.mails = 9
            until(lambda: is_empty(setup))
    assert log_levels(caplog, 'available again') == ['WARNING']
    assert {event.attempt for event in setup.dispatcher.pending_events} == {1}


@pytest.mark.parametrize('verb', ['RCPT', '421'])
def test_a_mail_that_is_always_throttled_holds_up_no_other(
    verb: str, smtp_server: ScriptedSMTPServer
) -> None:
    """Its sender or its recipient has a limit: mail that came later is sent in the meantime, even
    if the relay closes the connection each time."""
    clock = Clock(1000.0)
    setup = ProcessorSetup(MemoryQueue())
    setup.mailer = make_mailer(  # type: ignore[assignment]
        smtp_server.host, smtp_server.port, timeouts=Timeouts(*[1e6] * 7)
    )
    refusal = (
        reply(450, '4.7.1 rate limit') if verb == 'RCPT' else reply_then_drop(421, 'slow down')
    )
    smtp_server.always('RCPT', refusal, match='eve@')
    setup.put('eve@example.org')
    with setup.running(workers=2, monotonic=clock, pause=1.0, idle=1e9) as processor:
        until(lambda: processor.current)
        active_queue = processor.current.active_queue  # type: ignore[union-attr]
        with passing(clock, active_queue.notify_waiters):
            until(processor._throttle.retry_in)
            for _ in range(4):
                setup.put('ann@example.org')
            setup.queue.wake()
            until(lambda: smtp_server.accepted('ann@example.org') == 4)
    assert smtp_server.accepted('eve@example.org') == 0


def test_a_sender_who_is_throttled_holds_up_no_other(smtp_server: ScriptedSMTPServer) -> None:
    """However much mail of that sender comes first, and though each try lets the next one wait
    longer: it is passed over while the relay takes none."""
    clock = Clock(1000.0)
    setup = ProcessorSetup(MemoryQueue())
    setup.mailer = make_mailer(  # type: ignore[assignment]
        smtp_server.host, smtp_server.port, timeouts=Timeouts(*[1e6] * 7)
    )
    tried: list[float] = []

    def refuse(session: Session) -> object:
        tried.append(clock.now)
        return reply(450, '4.7.1 rate limit')

    smtp_server.always('MAIL', refuse, match='eve@')  # type: ignore[arg-type]
    setup.queue.put([make_envelope(sender='eve@example.org') for _ in range(40)]).publish()
    for _ in range(4):
        setup.put('ann@example.org')
    with setup.running(workers=1, monotonic=clock, pause=1.0, idle=1e9) as processor:
        until(lambda: processor.current)
        active_queue = processor.current.active_queue  # type: ignore[union-attr]
        with passing(clock, active_queue.notify_waiters):
            until(lambda: smtp_server.accepted('ann@example.org') == 4)
    assert len(tried) < 20
    assert len(setup.queue) == 40


@pytest.mark.parametrize('code', [250, 550])
def test_some_recipients_are_throttled(
    code: int, smtp_server: ScriptedSMTPServer, tmp_path: object
) -> None:
    """The others have their outcome and their events; these are sent to in a moment, without an
    event."""
    clock = Clock()
    setup = ProcessorSetup(MemoryQueue(clock=clock), clock=clock)
    setup.dispatcher = RecordingDispatcher('sent', 'deferred', 'error')
    setup.mailer = make_mailer(smtp_server.host, smtp_server.port)  # type: ignore[assignment]
    smtp_server.always('RCPT', reply(code, 'so'), match='ann@')
    smtp_server.script('RCPT', reply(450, '4.7.1 too much mail from 192.0.2.1'), match='bob@')
    setup.put('ann@example.org', 'bob@example.org')
    setup.processor(workers=1, pause=0.001).run_once()
    kind = 'sent' if code == 250 else 'error'
    assert setup.dispatcher.dispatched() == [(kind, ('ann@example.org',))]
    _, due = setup.queue.scan(clock.now)
    assert due == clock.now + 1
    clock.now += 1
    setup.processor(workers=1, pause=0.001).run_once()
    assert setup.dispatcher.dispatched()[1:] == [('sent', ('bob@example.org',))]
    assert smtp_server.accepted('ann@example.org') == (code == 250)
    assert smtp_server.accepted('bob@example.org') == 1
