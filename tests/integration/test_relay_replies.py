"""What the queue makes of the replies of a relay, or of their absence: no loss, no duplicates, no
blockage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.envelope import Reply, Tally
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.interfaces import IMailErrorEvent
from pyramid_sendmail.mailers.smtp.options import Timeouts
from pyramid_sendmail.message import EnvelopeFactory
from pyramid_sendmail.retry import RetryPolicy
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    TLSAuthority,
    accept_then,
    delay,
    drop,
    hang,
    reply,
    reply_then_drop,
    reset,
)
from tests.support.world import MINUTE, World, welcome

Start = Callable[..., ScriptedSMTPServer]
MakeWorld = Callable[..., World]

ANN, BOB, CAT = 'ann@example.org', 'bob@example.org', 'cat@example.org'

SEND_BUFFER = 4 * 2**20
"""The most bytes that a socket takes while its peer reads none (tcp_wmem)."""

HOUR, DAY = 60 * MINUTE, 24 * 60 * MINUTE


def once_each(world: World, count: int) -> bool:
    """Return whether that many pairs of mail and recipient have arrived, each of them once."""
    copies = world.server.pairs()
    return len(copies) == count and set(copies.values()) == {1}


# 1. A session failure changes no mail


CLOSED: dict[str, tuple[str, Action]] = {
    '535 at AUTH': ('AUTH', reply(535, '5.7.8 authentication failed')),
    '530 at AUTH': ('AUTH', reply(530, '5.7.0 must issue STARTTLS first')),
    '534 at AUTH': ('AUTH', reply(534, '5.7.9 mechanism is too weak')),
    '538 at AUTH': ('AUTH', reply(538, '5.7.11 encryption required')),
    '554 at AUTH': ('AUTH', reply(554, '5.7.0 blocked')),
    '454 at AUTH': ('AUTH', reply(454, '4.7.0 temporary failure')),
    '554 greeting': ('connect', reply(554, '5.7.1 your address is blocked')),
    '421 greeting': ('connect', reply(421, '4.3.2 closing')),
    'no greeting': ('connect', drop()),
    '550 at EHLO': ('EHLO', reply(550, '5.7.1 go away')),
    '530 at MAIL': ('MAIL', reply(530, '5.7.0 authentication required')),
    '535 at MAIL': ('MAIL', reply(535, '5.7.8 credentials have expired')),
}


@pytest.mark.finding(1)
@pytest.mark.parametrize('case', CLOSED)
def test_a_session_that_fails_changes_no_mail(
    make_world: MakeWorld, start_smtp_server: Start, case: str
) -> None:
    """A session failure leaves every mail as it was, byte for byte, and counts no attempt; once the
    cause is mended each mail is delivered once, at its first attempt."""
    server = start_smtp_server(auth={'shop': 'secret'})
    world = make_world(
        server, url=f'smtp+insecure://shop:secret@127.0.0.1:{server.port}?timeout=10s'
    )
    for _ in range(3):
        world.send()
    before = world.files()
    server.always(*CLOSED[case])

    for _ in range(3):
        world.closed()

    assert world.files() == before
    assert world.events_of('deferred') == world.events_of('error') == []
    server.reset_script()
    assert world.run() == Tally(delivered=3)
    assert once_each(world, 3)
    assert [event.attempt for event in world.events_of('sent')] == [1, 1, 1]


@pytest.mark.finding(1)
@pytest.mark.parametrize('certificate', ['untrusted', 'wrong_host', 'expired'])
@pytest.mark.parametrize('tls', ['implicit', 'starttls'])
def test_tls_that_fails_changes_no_mail(
    make_world: MakeWorld,
    start_smtp_server: Start,
    tls_authority: TLSAuthority,
    tls: Any,
    certificate: str,
) -> None:
    """So does a certificate that cannot be trusted, until the relay has another."""
    server = start_smtp_server(tls=tls, context=getattr(tls_authority, certificate)())
    scheme, more = ('smtps', '') if tls == 'implicit' else ('smtp', '&tls=required')
    world = make_world(
        server, url=f'{scheme}://127.0.0.1:{server.port}?ca_file={tls_authority.path}{more}'
    )
    for _ in range(3):
        world.send()
    before = world.files()

    for _ in range(3):
        assert 'certificate' in world.closed()

    assert world.files() == before
    assert 'MAIL' not in server.verbs()
    assert world.events_of('deferred') == world.events_of('error') == []
    server.context = tls_authority.context()
    assert world.run() == Tally(delivered=3)
    assert once_each(world, 3)


# 41 and 116. Who we are, seen from the queue


@pytest.mark.finding(41)
def test_a_wrong_password_is_sent_once_a_step(
    make_world: MakeWorld, start_smtp_server: Start
) -> None:
    """However much mail waits, and however many workers there are, a password that the relay
    refuses is sent once for each attempt to connect, so that no account is locked."""
    server = start_smtp_server(auth={'shop': 'right'}, auth_required=True)
    world = make_world(server, url=f'smtp+insecure://shop:wrong@127.0.0.1:{server.port}')
    for _ in range(20):
        world.send()
    before = world.files()
    begun: list[int] = []
    server.always('AUTH', lambda session: begun.append(server.open_connections))

    world.closed(workers=4)
    assert server.verbs() == ['EHLO', 'AUTH', 'QUIT']
    with world.running(workers=4):
        server.wait_for(lambda server: server.connections >= 5)

    assert set(begun) == {1}, 'one worker asks, and the others wait for what it finds'
    assert len(begun) == server.verbs().count('AUTH') <= server.connections
    assert world.files() == before
    assert world.events_of('deferred') == world.events_of('error') == []
    server.auth = {'shop': 'wrong'}
    assert world.run(workers=4) == Tally(delivered=20)
    assert once_each(world, 20)


@pytest.mark.finding(116)
def test_a_token_that_expires(
    make_world: MakeWorld, start_smtp_server: Start, tmp_path: Path
) -> None:
    """A token that the relay refuses by 334 and its JSON counts no attempt of a mail; the next
    attempt to connect uses the token that is in the file then."""
    server = start_smtp_server(
        auth={'shop': 'f1rst'}, auth_mechanisms=('XOAUTH2',), auth_required=True
    )
    token = tmp_path / 'token'
    token.write_text('f1rst\n')
    world = make_world(
        server, url=f'smtp+insecure://shop@127.0.0.1:{server.port}?token_file={token}'
    )
    world.send()
    assert world.run() == Tally(delivered=1)
    server.auth = {'shop': 's3cond'}
    for _ in range(2):
        world.send()
    before = world.files()

    for _ in range(2):
        assert '(status 400)' in world.closed()

    assert world.files() == before
    assert server.verbs(3) == ['EHLO', 'AUTH', 'response', 'QUIT']
    token.write_text('s3cond\n')
    assert world.run() == Tally(delivered=2)
    assert once_each(world, 3)
    assert [event.attempt for event in world.events_of('sent')] == [1, 1, 1]
    assert world.events_of('deferred') == world.events_of('error') == []


# 2 and 9. A temporary answer


@pytest.mark.finding(2, 9)
@pytest.mark.parametrize('code', [450, 451, 452])
def test_greylisting(either: World, code: int) -> None:
    """4xx to RCPT defers to the first step of the retry policy, not earlier and not later, and the
    second attempt delivers."""
    either.server.script('RCPT', reply(code, 'greylisted'))
    message_id = either.send()

    assert either.run() == Tally(deferred=1)

    (event,) = either.events_of('deferred')
    assert (event.message_id, event.recipients, event.attempt) == (message_id, (ANN,), 1)
    assert event.retry_at == either.due() == either.clock() + MINUTE
    either.clock.now += MINUTE - 0.01
    assert either.run() == Tally()
    assert either.server.connections == 1
    either.clock.now += 0.01
    assert either.run() == Tally(delivered=1)
    assert either.server.accepted(ANN) == 1
    (sent,) = either.events_of('sent')
    assert sent.attempt == 2
    assert either.files() == {}


@pytest.mark.finding(2)
def test_421_at_rcpt(either: World) -> None:
    """421 to RCPT is a session failure: no attempt is counted, and nothing is lost."""
    either.server.script('RCPT', reply_then_drop(421, '4.3.2 too busy'))
    either.send()
    before = either.files()

    assert '421' in either.closed()

    assert either.files() == before
    assert either.run() == Tally(delivered=1)
    assert either.server.accepted(ANN) == 1
    assert either.events_of('deferred') == []


# 3 and 18. A permanent answer


@pytest.mark.finding(3)
@pytest.mark.parametrize('code', [550, 551, 553, 554, 599])
def test_a_refused_recipient_is_asked_about_once(either: World, code: int) -> None:
    """5xx for all recipients is one attempt, a dead letter with the relay's text, and one error
    event; it is never tried again."""
    either.server.always('RCPT', reply(code, '5.1.1 no such user here'))
    message_id = either.send()

    assert either.run() == Tally(failed=1)
    for _ in range(3):
        either.clock.now += DAY
        assert either.run() == Tally()

    assert either.server.verbs().count('RCPT') == 1
    ((name, data),) = either.files().items()
    assert name.startswith('failed/')
    assert str(code).encode() in data
    assert b'5.1.1 no such user here' in data
    (event,) = either.events_of('error')
    assert (event.message_id, event.recipients, event.attempt) == (message_id, (ANN,), 1)
    assert event.reply == Reply(code, '5.1.1 no such user here')
    assert event.permanent
    assert event.raw in data


@pytest.mark.finding(18)
def test_a_dead_letter_can_be_sent_again(world: World) -> None:
    """A dead letter keeps the message, the failed recipients and the reasons; moved back by hand it
    is sent, the same bytes under the same Message-ID, to the recipients that have not got it."""
    world.server.script('RCPT', reply(250, 'ok'), reply(550, '5.1.1 no such user'))
    message_id = world.send(welcome(to=[ANN, BOB]))
    world.run()
    (letter,) = (world.path / 'failed').iterdir()
    data = letter.read_bytes()
    assert world.server.messages[0].data in data
    assert b'5.1.1 no such user' in data

    letter.rename(world.path / 'new' / letter.name)

    assert world.run() == Tally(delivered=1)
    assert world.server.pairs() == {(message_id, ANN): 1, (message_id, BOB): 1}
    assert world.server.messages[0].data == world.server.messages[1].data


# 4. Each recipient on its own


@pytest.mark.finding(4)
def test_each_recipient_has_its_own_end(either: World) -> None:
    """250, 550 and 450 are a sent event, an error event and a retry for the third alone; no
    recipient gets a second copy, and the failed one is kept."""
    server = either.server
    server.script('RCPT', reply(550, '5.1.1 no such user'), match=BOB)
    server.script('RCPT', reply(450, '4.2.0 greylisted'), match=CAT)
    message_id = either.send(welcome(to=[ANN, BOB, CAT]))

    assert either.run() == Tally(deferred=1)

    (sent,), (failed,), (deferred,) = map(either.events_of, ('sent', 'error', 'deferred'))
    assert (sent.recipients, sent.reply.code) == ((ANN,), 250)
    assert (failed.recipients, failed.permanent, failed.reply.code) == ((BOB,), True, 550)
    assert (deferred.recipients, deferred.reason) == ((CAT,), '450 4.2.0 greylisted')
    asked = len([line for _, verb, line in server.commands if verb == 'RCPT'])
    either.clock.now += MINUTE
    either.run()
    lines = [line for _, verb, line in server.commands if verb == 'RCPT'][asked:]
    assert lines == [f'RCPT TO:<{CAT}>']
    assert server.pairs() == {(message_id, ANN): 1, (message_id, CAT): 1}
    assert [event.recipients for event in either.events_of('sent')] == [(ANN,), (CAT,)]
    assert len(either.events_of('error')) == 1
    assert either.folders() == ['failed']


@pytest.mark.finding(112)
def test_the_text_is_refused_after_some_recipients(either: World) -> None:
    """550 and 250 to RCPT and 451 to the final dot: one recipient fails for good with its own code,
    the other alone is tried again."""
    server = either.server
    server.script('RCPT', reply(550, '5.1.1 no such user'), match=ANN)
    server.script('dot', reply(451, '4.3.0 try later'))
    either.send(welcome(to=[ANN, BOB]))

    either.run()

    (failed,), (deferred,) = either.events_of('error'), either.events_of('deferred')
    assert (failed.recipients, failed.reply.code) == ((ANN,), 550)
    assert (deferred.recipients, deferred.reason) == ((BOB,), '451 4.3.0 try later')
    either.clock.now += MINUTE
    either.run()
    assert (server.accepted(ANN), server.accepted(BOB)) == (0, 1)
    assert server.verbs().count('RCPT') == 3


# 5 and 6. Around the relay's last word


AFTERWARDS: dict[str, tuple[str, Action]] = {
    'closed behind 250': ('dot', reply_then_drop(250, '2.0.0 queued')),
    'reset behind 250': ('dot', reply(250, '2.0.0 queued', then=reset())),
    '421 to QUIT': ('QUIT', reply(421, '4.3.2 closing')),
    '500 to QUIT': ('QUIT', reply(500, 'what')),
    'closed at QUIT': ('QUIT', drop()),
    'reset at QUIT': ('QUIT', reset()),
    'silent at QUIT': ('QUIT', hang()),
}


@pytest.mark.finding(5)
@pytest.mark.parametrize('secure', [False, True])
@pytest.mark.parametrize('case', AFTERWARDS)
def test_nothing_behind_the_last_250_counts(
    make_world: MakeWorld,
    start_smtp_server: Start,
    tls_authority: TLSAuthority,
    case: str,
    secure: bool,
) -> None:
    """Whatever happens after the 250, TLS that ends without close_notify included, the mail is
    delivered once, its file is gone and its sent event dispatched."""
    tls: Any = (
        {'tls': 'implicit', 'context': tls_authority.context()} if secure else {'tls': 'none'}
    )
    server = start_smtp_server(**tls)
    world = make_world(server, url=f'{server.url}?timeout=2s' + _trust(tls_authority, secure))
    server.script(*AFTERWARDS[case])
    message_id = world.send()

    assert world.run() == Tally(delivered=1)
    world.clock.now += DAY
    assert world.run() == Tally()

    assert server.pairs() == {(message_id, ANN): 1}
    assert world.files() == {}
    assert len(world.events_of('sent')) == 1
    assert world.events_of('deferred') == world.events_of('error') == []


def _trust(authority: TLSAuthority, secure: bool) -> str:
    return f'&ca_file={authority.path}' if secure else ''


@pytest.mark.finding(5, 30)
@pytest.mark.parametrize('end', [drop(), reset()])
def test_a_relay_that_closes_after_each_mail(either: World, end: Action) -> None:
    """A connection for each mail is slow, and nothing else: no attempt is counted, no event is
    dispatched for it, and no mail arrives twice."""
    either.server.always('dot', reply(250, '2.0.0 queued', then=end))
    for _ in range(5):
        either.send()

    assert either.run() == Tally(delivered=5)

    assert once_each(either, 5)
    assert either.server.connections == 5
    assert {event.attempt for event in either.events_of('sent')} == {1}
    assert either.events_of('deferred') == []


@pytest.mark.finding(6)
def test_the_final_reply_may_take_long(make_world: MakeWorld) -> None:
    """A reply to the final dot that takes longer than the time-out of a command is waited for, and
    the mail arrives once."""
    world = make_world(timeouts=Timeouts(command=0.4, data=0.4, block=0.4, final=20))
    world.server.script('dot', delay(0.8))
    world.send()

    assert world.run() == Tally(delivered=1)
    world.clock.now += DAY
    assert world.run() == Tally()

    assert world.server.accepted(ANN) == 1


@pytest.mark.finding(6, 102)
def test_the_final_reply_that_never_comes(make_world: MakeWorld) -> None:
    """Only after the time-out of the final dot the mail is sent again, under the same Message-ID
    and Date, and the log says before that this is ambiguous."""
    world = make_world(timeouts=Timeouts(final=0.3, quit=0.3))
    world.server.script('dot', accept_then(hang()))
    message_id = world.send()

    assert world.run() == Tally(deferred=1)
    (event,) = world.events_of('deferred')
    assert event.reason.startswith('ambiguous: ')
    world.clock.now += MINUTE
    assert world.run() == Tally(delivered=1)

    assert world.server.pairs() == {(message_id, ANN): 2}
    first, second = world.server.messages
    assert first.data == second.data


# 8. A slow line


@pytest.mark.finding(8)
@pytest.mark.slow
def test_a_slow_connection_that_moves(make_world: MakeWorld, start_smtp_server: Start) -> None:
    """20 MB that take longer than the time-out of a block are delivered, as long as bytes keep
    moving."""
    pause, size, block = 0.04, 262_144, 0.8
    server = start_smtp_server(extensions=(), read_pause=pause, read_size=size, socket_buffer=size)
    world = make_world(server, timeouts=Timeouts(block=block, final=30))
    text = ('All work and no play makes Jack a dull boy, all day.\r\n') * 385_000
    assert len(text) > 20 * 10**6
    # The system takes some of it at once; the rest has to wait for the relay.
    assert (len(text) - SEND_BUFFER) / size * pause > 2 * block, 'the relay is slow enough'
    world.send(welcome(text=text))

    assert world.run() == Tally(delivered=1)

    assert server.accepted(ANN) == 1
    assert server.messages[0].data.endswith(text[-100_000:].encode())


# 27. An outage


@pytest.mark.finding(27)
@pytest.mark.parametrize('verb', ['connect', 'MAIL', 'RCPT', 'DATA', 'dot'])
def test_an_hour_without_the_relay(make_world: MakeWorld, verb: str) -> None:
    """With the default settings an outage of an hour, by whatever temporary reply, costs no mail;
    the next attempt delivers it once."""
    world = make_world(policy=RetryPolicy())
    world.server.always(verb, reply(451, '4.3.2 back in an hour'))
    world.send()
    end = world.clock() + HOUR
    attempts = 1
    while world.clock() < end:
        if verb == 'connect':
            world.closed()
            world.clock.now += 5 * MINUTE
        else:
            assert world.run() == Tally(deferred=1)
            world.clock.now = world.due()
            attempts += 1
    assert world.events_of('error') == []

    world.server.reset_script()

    assert world.run() == Tally(delivered=1)
    assert world.server.accepted(ANN) == 1
    assert world.events_of('sent')[0].attempt == attempts


# 28. Nothing leaves silently


def refused(verb: str) -> Callable[[World], None]:
    def arrange(world: World) -> None:
        world.server.script(verb, reply(554, '5.7.1 not you'))
        world.send()

    return arrange


def too_large(world: World) -> None:
    world.server.extensions = ('SIZE 100',)
    world.send()


def not_ascii(world: World) -> None:
    world.server.extensions = ('8BITMIME',)
    world.send(welcome(to=['jörg@example.org']))


def smuggled(world: World) -> None:
    world.put(raw=b'Subject: x\n\nbare line feeds\n')


def expired(world: World) -> None:
    world.send(expires=timedelta(minutes=5))
    world.clock.now += 6 * MINUTE


def given_up(world: World) -> None:
    world.server.script('RCPT', *[reply(450, '4.2.0 greylisted')] * 2)
    world.send()
    world.run()
    world.clock.now += 4 * DAY


def unconfirmed(world: World) -> None:
    world.server.script('dot', drop())
    world.send()


def damaged(world: World) -> None:
    world.send()
    (path,) = (world.path / 'new').iterdir()
    path.write_bytes(path.read_bytes()[:-7])


def doubted(world: World) -> None:
    envelope = EnvelopeFactory(clock=world.clock).envelope(welcome())
    world.queue.put([envelope]).keep_in_doubt()


WAYS_OUT = {
    'MAIL refused': refused('MAIL'),
    'RCPT refused': refused('RCPT'),
    'DATA refused': refused('DATA'),
    'text refused': refused('dot'),
    'larger than SIZE': too_large,
    'needs SMTPUTF8': not_ascii,
    'bare line feeds': smuggled,
    'expired': expired,
    'given up': given_up,
    'ambiguous, and held': unconfirmed,
    'damaged': damaged,
    'in doubt': doubted,
}


@pytest.mark.finding(28)
@pytest.mark.parametrize('way', WAYS_OUT)
def test_every_loss_is_reported(make_world: MakeWorld, way: str) -> None:
    """A mail that leaves the queue without having been accepted is a dead letter and exactly one
    error event, with the reason."""
    world = make_world(ambiguous='hold')
    WAYS_OUT[way](world)

    for _ in range(3):
        world.run()
        world.clock.now += MINUTE

    (event,) = world.events_of('error')
    assert event.reason
    assert event.raw
    assert world.folders() == ['failed']
    assert world.server.messages == []
    assert world.events_of('sent') == []


# 29. Storms


@pytest.mark.finding(29)
def test_mail_about_failures_is_bounded(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """If a subscriber of errors mails through a relay that refuses everything, there is one mail
    about the mail, and a line in the log about that one."""

    def complain(event: Any) -> None:
        event.request.mailer.send(welcome(to=['admin@example.org'], subject='It has failed'))

    world.config.add_subscriber(complain, IMailErrorEvent)
    world.config.commit()
    world.server.always('RCPT', reply(550, '5.7.1 I refuse everything'))
    world.send()
    for _ in range(10):
        world.run()
        world.clock.now += DAY

    assert world.run() == Tally()
    recipients = [line for _, verb, line in world.server.commands if verb == 'RCPT']
    assert recipients == [f'RCPT TO:<{ANN}>', 'RCPT TO:<admin@example.org>']
    assert [event.recipients for event in world.events_of('error')] == [
        (ANN,),
        ('admin@example.org',),
    ]
    unsent = [each for each in caplog.records if 'your error handler keeps mailing' in each.message]
    assert [each.levelno for each in unsent] == [logging.ERROR]


# 30. A connection that was kept


STALE: dict[str, Action] = {
    'dropped': drop(),
    'reset': reset(),
    '421': reply_then_drop(421, '4.4.2 idle for too long'),
    '421 and open': reply(421, '4.4.2 idle for too long'),
}


@pytest.mark.finding(30)
@pytest.mark.parametrize('case', STALE)
def test_a_stale_connection_costs_nothing(either: World, case: str) -> None:
    """If a reused connection ends before MAIL's reply, the mail leaves at once over a new one, no
    attempt is counted, and no event is dispatched."""
    either.server.script('MAIL', reply(250, 'ok'), STALE[case])
    for _ in range(3):
        either.send()

    assert either.run() == Tally(delivered=3)

    assert once_each(either, 3)
    assert either.server.connections == 2
    assert [event.attempt for event in either.events_of('sent')] == [1, 1, 1]
    assert either.events_of('deferred') == either.events_of('error') == []


@pytest.mark.finding(30)
@pytest.mark.parametrize('verb', ['MAIL', 'RCPT', 'DATA', 'dot'])
def test_after_a_time_out_a_connection_is_over(make_world: MakeWorld, verb: str) -> None:
    """A late reply is never taken for another's: nothing more is sent on that connection, and the
    next mail goes over a new one."""
    world = make_world(timeouts=Timeouts(command=0.3, data=0.3, final=0.3, quit=0.3))
    world.server.extensions = ()
    world.server.script(verb, reply(354 if verb == 'DATA' else 250, 'ok'), hang())
    for _ in range(3):
        world.send()

    world.run()
    world.clock.now += MINUTE
    world.run()

    assert world.server.verbs(1)[-1] == verb
    assert once_each(world, 3)
    # What was not answered for good over the first connection came over others.
    assert {message.connection for message in world.server.messages} >= {1, 2}


@pytest.mark.finding(7)
def test_a_time_out_while_connecting(make_world: MakeWorld) -> None:
    """A relay that accepts the connection and sends no greeting is given up after its time-out; all
    mail is as it was."""
    world = make_world(timeouts=Timeouts(greeting=0.3, quit=0.3))
    world.server.script('connect', hang())
    world.send()
    before = world.files()

    with pytest.raises(MailerUnavailable, match=r'the greeting: .*timed out after 0\.3 s'):
        world.run()

    assert world.files() == before
    assert world.server.raw(1) == b''
    assert world.run() == Tally(delivered=1)
