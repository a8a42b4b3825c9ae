"""One connection of the loop, moved on by hand: each wait, its end, and what the sender gets."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from pyramid_sendmail.envelope import StoredEnvelope, TextTraits
from pyramid_sendmail.exceptions import QueueError
from pyramid_sendmail.mailers.smtp.options import SessionOptions, Timeouts
from pyramid_sendmail.mailers.smtp.tls import client_context
from tests.support.loops import ByHand, full_listener
from tests.support.sessions import envelope
from tests.support.smtp.server import TLSAuthority

TIMEOUTS = Timeouts(connect=11, greeting=13, command=17, data=19, block=23, final=29, quit=3)
"""A different one for each phase."""


def big(size: int) -> Any:
    line = b'x' * 62 + b'\r\n'
    return envelope(raw=b'Subject: big\r\n\r\n' + line * (size // len(line)))


def test_from_connecting_to_quit() -> None:
    """A connection passes through its states, and closes when QUIT has its reply."""
    with ByHand(envelope()) as hand:
        hand.accept()
        assert hand.connection.state == 'speaking'
        hand.greets()
        hand.takes_mail()
        assert (hand.connection.state, hand.sender.said) == ('idle', ['opened', 'out of work'])
        assert hand.sender.verdicts == ['delivered']
        hand.connection.quit()
        hand.reads(b'QUIT\r\n')
        assert hand.connection.state == 'quitting'
        hand.says('221 bye')
        assert hand.connection.state == 'closed'
        assert hand.poller.watched == 0
        hand.reads_end()


def silent_greeting(hand: ByHand) -> None:
    hand.accept()


def silent_after_greeting(hand: ByHand) -> None:
    hand.accept()
    hand.says('220 hello')


def silent_after_mail(hand: ByHand) -> None:
    hand.accept()
    hand.greets()
    hand.reads(b'MAIL')


def silent_after_data(hand: ByHand) -> None:
    silent_after_mail(hand)
    hand.says('250 ok')
    hand.reads(b'RCPT')
    hand.says('250 ok')
    hand.reads(b'DATA')


def silent_after_dot(hand: ByHand) -> None:
    silent_after_data(hand)
    hand.says('354 go')
    hand.reads(b'\r\n.\r\n')


@pytest.mark.parametrize(
    ('stall', 'seconds', 'result'),
    [
        (silent_greeting, 13, 'unavailable'),
        (silent_after_greeting, 17, 'unavailable'),
        (silent_after_mail, 17, 'ended'),
        (silent_after_data, 19, 'deferred'),
        (silent_after_dot, 29, 'ambiguous'),
    ],
)
def test_a_silent_relay(stall: Callable[[ByHand], None], seconds: float, result: str) -> None:
    """Each wait ends by the time-out of its phase, not sooner."""
    with ByHand(envelope(), timeouts=TIMEOUTS) as hand:
        stall(hand)
        said = list(hand.sender.said)
        hand.poller.later(seconds - 0.01)
        assert hand.sender.said == said
        hand.poller.later(0.02)
        assert hand.connection.state == 'closed'
        assert result in (hand.sender.said[-1], *hand.sender.verdicts)
        if hand.sender.errors:
            assert f'timed out after {seconds} s' in str(hand.sender.errors[0])


def test_part_of_a_reply_gives_no_time() -> None:
    """A relay that drips a reply byte by byte has no more time than another one."""
    with ByHand(envelope(), timeouts=TIMEOUTS) as hand:
        silent_after_mail(hand)
        for byte in b'250-still':
            hand.poller.later(2)
            if hand.connection.state == 'closed':
                break
            hand.sends(bytes([byte]))
        assert hand.connection.state == 'closed'
        assert hand.poller.now <= 1000 + 17 + 2


def test_a_host_that_never_accepts() -> None:
    """An address that does not answer costs the time-out for connecting."""
    with ByHand(timeouts=TIMEOUTS) as hand, full_listener() as port:
        object.__setattr__(hand.mailer.address, 'port', port)
        hand.connection.open()
        hand.poller.step()
        assert hand.connection.state == 'connecting'
        hand.poller.later(10.9)
        assert hand.sender.said == []
        hand.poller.later(0.2)
        assert (hand.sender.said, hand.connection.state) == (['unavailable'], 'closed')
        assert 'timed out after 11 s' in str(hand.sender.errors[0])
        assert hand.poller.watched == 0


def test_a_handshake_that_never_ends(tls_authority: TLSAuthority) -> None:
    """A handshake has the time of a greeting, by STARTTLS that of a command."""
    for mode, seconds in (('implicit', 13), ('starttls', 17)):
        with ByHand(tls=mode, ca_file=str(tls_authority.path), timeouts=TIMEOUTS) as hand:
            hand.accept()
            if mode == 'starttls':
                hand.greets('STARTTLS')
                hand.reads(b'STARTTLS\r\n')
                hand.says('220 go')
            assert hand.connection.state == 'handshake'
            hand.poller.later(seconds - 0.01)
            assert hand.sender.said == []
            hand.poller.later(0.02)
            assert (hand.sender.said, hand.connection.state) == (['unavailable'], 'closed')


def test_a_relay_that_stops_reading() -> None:
    """Each block of a text has its own time; then the mail is deferred."""
    with ByHand(big(8_000_000), buffer=8192, timeouts=TIMEOUTS) as hand:
        hand.accept()
        hand.greets()
        for verb, answer in ((b'MAIL', '250 ok'), (b'RCPT', '250 ok'), (b'DATA', '354 go')):
            hand.reads(verb)
            hand.reads(b'\r\n')
            hand.says(answer)
        for _ in range(3):
            hand.poller.later(22)
            assert hand.connection.state == 'speaking'
            enough = len(hand.received) + 250_000
            hand.poller.until(lambda enough=enough: hand._read() and len(hand.received) > enough)
            while hand.poller.step(0.05):
                pass
        hand.poller.later(24)
        # A relay that stopped reading may have said why.
        hand.poller.later(TIMEOUTS.quit + 0.1)
        assert hand.connection.state == 'closed'
        assert hand.sender.verdicts == ['deferred']


@pytest.mark.slow
def test_a_text_larger_than_all_buffers() -> None:
    """A text leaves in parts while the relay reads slowly, and arrives whole."""
    mail = big(3_000_000)
    with ByHand(mail, buffer=4096, timeouts=TIMEOUTS) as hand:
        hand.accept()
        hand.greets()
        for verb, answer in ((b'MAIL', '250 ok'), (b'RCPT', '250 ok'), (b'DATA', '354 go')):
            hand.reads(verb)
            hand.reads(b'\r\n')
            hand.says(answer)
        hand.poller.until(lambda: hand._read() and hand.received.endswith(b'\r\n.\r\n'))
        assert bytes(hand.received) == mail.raw + b'.\r\n'
        hand.says('250 ok')
        assert hand.sender.verdicts == ['delivered']


@pytest.mark.parametrize('mode', ['implicit', 'starttls'])
def test_tls_in_tiny_pieces(tls_authority: TLSAuthority, mode: str) -> None:
    """Handshake and replies may come byte by byte, and several records at once."""
    with ByHand(
        envelope(),
        envelope(id='1' * 32),
        tls=mode,
        ca_file=str(tls_authority.path),
        context=tls_authority.context(),
    ) as hand:
        hand.accept()
        if mode == 'starttls':
            hand.greets('STARTTLS')
            hand.reads(b'STARTTLS\r\n')
            hand.says('220 go')
        hand.write_bytes = 1
        hand.start_tls()
        if mode == 'implicit':
            hand.greets()
        else:
            hand.hello()
        hand.takes_mail()
        hand.write_bytes = 1 << 20
        hand.takes_mail()
        assert hand.sender.verdicts == ['delivered'] * 2


def test_more_decrypted_than_read(tls_authority: TLSAuthority) -> None:
    """A record that is larger than one read is read whole: the selector does not report the
    rest."""
    with ByHand(
        envelope(), tls='implicit', ca_file=str(tls_authority.path), context=tls_authority.context()
    ) as hand:
        hand.accept(tls=True)
        hand.says('220 hello')
        hand.reads(b'EHLO web.example.org\r\n')
        lines = ''.join(f'250-X-{number:03} {"y" * 200}\r\n' for number in range(150))
        hand.sends(f'{lines}250 OK\r\n'.encode())
        hand.takes_mail()
        assert hand.sender.verdicts == ['delivered']


class AwkwardSocket(ssl.SSLSocket):
    """Wants to read before a write, and to write before a read, as TLS may at any time."""

    trouble: ClassVar[list[tuple[str, type[OSError]]]] = []

    def _raise(self, call: str) -> None:
        if AwkwardSocket.trouble and AwkwardSocket.trouble[0][0] == call:
            raise AwkwardSocket.trouble.pop(0)[1]

    def send(self, data: Any, flags: int = 0) -> int:
        self._raise('send')
        return super().send(data, flags)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        self._raise('recv')
        return super().recv(buflen, flags)


def awkward(hand: ByHand, authority: TLSAuthority) -> None:
    context = client_context(ca_file=str(authority.path))
    context.sslsocket_class = AwkwardSocket
    hand.mailer.handshake.context = lambda: context  # type: ignore[method-assign]


def test_tls_wants_to_read_before_it_writes(tls_authority: TLSAuthority) -> None:
    """A write goes on when the relay has sent what TLS needs."""
    with ByHand(
        envelope(), tls='implicit', ca_file=str(tls_authority.path), context=tls_authority.context()
    ) as hand:
        awkward(hand, tls_authority)
        hand.accept(tls=True)
        AwkwardSocket.trouble = [('send', ssl.SSLWantReadError), ('send', ssl.SSLWantWriteError)]
        hand.says('220 hello')
        assert AwkwardSocket.trouble != [('send', ssl.SSLWantReadError)] * 2
        # Any bytes will do: here those of the reply.
        hand.sends(b'250-relay.example.org\r\n')
        hand.reads(b'EHLO web.example.org\r\n')
        hand.says('250 OK')
        hand.takes_mail()
        assert (hand.sender.verdicts, AwkwardSocket.trouble) == (['delivered'], [])


def test_tls_wants_to_write_before_it_reads(tls_authority: TLSAuthority) -> None:
    """A read goes on when there is room to write; then the loop waits for bytes alone again."""
    with ByHand(
        envelope(), tls='implicit', ca_file=str(tls_authority.path), context=tls_authority.context()
    ) as hand:
        awkward(hand, tls_authority)
        hand.accept(tls=True)
        hand.says('220 hello')
        hand.reads(b'EHLO web.example.org\r\n')
        AwkwardSocket.trouble = [('recv', ssl.SSLWantWriteError), ('recv', ssl.SSLWantReadError)]
        hand.sends(b'250')
        wakes = hand.poller.wakes
        for _ in range(50):
            hand.poller.step()
        assert hand.poller.wakes <= wakes + 1
        hand.says(' OK')
        hand.takes_mail()
        assert hand.sender.verdicts == ['delivered']


def test_before_final_dot_raises() -> None:
    """A mail that cannot be marked never leaves: the session ends at once."""
    with ByHand(envelope(), timeouts=TIMEOUTS) as hand:
        error = QueueError(28, 'no space')

        def fail(_mail: object) -> None:
            raise error

        hand.sender.before_dot = fail
        silent_after_data(hand)
        hand.says('354 go')
        assert hand.connection.state == 'closed'
        assert [end.error for end in hand.sender.ends] == [error]
        assert b'\r\n.\r\n' not in hand.reads_end()


def test_a_reply_that_nothing_asked_for() -> None:
    """A session with a reply too many ends before the next mail, at once."""
    with ByHand(envelope(), timeouts=TIMEOUTS) as hand:
        hand.accept()
        hand.says('220 relay.example.org')
        hand.reads(b'EHLO web.example.org\r\n')
        hand.sends(b'250 OK\r\n250 and more\r\n')
        assert hand.connection.state == 'closed'
        assert hand.sender.said == ['opened', 'ended']


class VanishingText:
    """A text whose file is gone after the first block."""

    size, traits = 200_000, TextTraits(True, False, True, True)

    def blocks(self) -> Any:
        yield b'Subject: gone\r\n\r\n' + b'x\r\n' * 20_000
        raise OSError(9, 'the file is gone')


class UnreadableText(VanishingText):
    """A text that cannot be read at all."""

    def blocks(self) -> Any:
        raise OSError(5, 'Input/output error')
        yield b''


def test_a_text_that_vanishes() -> None:
    """A text that cannot be read further fails the session; QUIT does not stand in the text."""
    values = {name: getattr(envelope(), name) for name in ('id', 'message_id', 'sender')}
    mail = StoredEnvelope(
        **values, recipients=('a@example.org',), queued_at=0.0, text=VanishingText()
    )
    with ByHand(mail) as hand:
        silent_after_data(hand)
        hand.says('354 go')
        hand.poller.until(lambda: hand._read() and hand.sender.said[-1] == 'failed')
        assert str(hand.sender.errors[0]) == '[Errno 9] the file is gone'
        hand.connection.quit()
        assert hand.connection.state == 'closed'
        rest = hand.reads_end()
        assert b'QUIT' not in rest
        assert b'\r\n.\r\n' not in rest


def test_a_text_that_cannot_be_read_behind_a_reply() -> None:
    """The mail before, whose reply came together with that to DATA, has its outcome."""
    usual = envelope(id='1' * 32)
    values = {name: getattr(usual, name) for name in ('id', 'message_id', 'sender', 'recipients')}
    with ByHand(envelope(), StoredEnvelope(**values, queued_at=0.0, text=UnreadableText())) as hand:
        hand.accept()
        hand.greets('PIPELINING')
        hand.reads(b'DATA\r\n')
        hand.says('250 ok', '250 ok', '354 go')
        hand.reads(b'DATA\r\n')
        hand.says('250 2.0.0 taken', '250 ok', '250 ok', '354 go')
        assert hand.sender.verdicts == ['delivered']
        assert hand.sender.said[-1] == 'failed'


def test_quit_has_its_own_time_out() -> None:
    """A relay that does not answer QUIT is waited for as long as QUIT may take, and no longer."""
    with ByHand(timeouts=TIMEOUTS) as hand:
        hand.accept()
        hand.greets()
        hand.connection.quit()
        hand.reads(b'QUIT\r\n')
        hand.poller.later(2.9)
        assert hand.connection.state == 'quitting'
        hand.poller.later(0.2)
        assert hand.connection.state == 'closed'


def test_quit_is_said_once() -> None:
    """A connection that says QUIT already is not asked to say it again."""
    with ByHand() as hand:
        hand.accept()
        hand.greets()
        hand.connection.deadline = hand.poller.now + 5
        hand.poller.later(6)
        hand.reads(b'QUIT\r\n')
        hand.connection.quit()
        hand.says('221 bye')
        assert hand.connection.state == 'closed'
        assert hand.reads_end() == b''


@pytest.mark.parametrize('how', ['FIN', 'RST', '421', '421 and FIN'])
def test_an_idle_connection_ends(how: str) -> None:
    """An idle connection that the relay gives up is noticed, and is stale."""
    with ByHand(envelope()) as hand:
        hand.accept()
        hand.greets()
        hand.takes_mail()
        assert hand.relay is not None
        if '421' in how:
            hand.relay.send(b'421 4.4.2 idle\r\n')
        if 'FIN' in how:
            hand.relay.shutdown(socket.SHUT_WR)
        elif how == 'RST':
            hand.relay.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
            hand.relay.close()
        hand.poller.until(lambda: hand.sender.ends)
        [end] = hand.sender.ends
        assert end.stale
        assert end.error is None
        if how == '421':
            hand.reads(b'QUIT\r\n')
            hand.says('221 bye')
        hand.poller.until(lambda: hand.connection.state == 'closed')


@pytest.mark.parametrize(
    ('greeting', 'quits'), [('554 5.7.1 no', True), ('421 4.3.2 later', True), ('nonsense', False)]
)
def test_a_refused_greeting(greeting: str, quits: bool) -> None:
    """A relay that refuses is left by QUIT; one that speaks another protocol is not."""
    with ByHand() as hand:
        hand.accept()
        hand.says(greeting)
        assert hand.sender.said == ['unavailable']
        if quits:
            hand.reads(b'QUIT\r\n')
            hand.says('221 bye')
        assert hand.connection.state == 'closed'


@pytest.mark.parametrize('bad', ['wrong_host', 'expired', 'untrusted'])
def test_a_wrong_certificate(tls_authority: TLSAuthority, bad: str) -> None:
    """A certificate that does not fit makes the relay unavailable, and says what to do."""
    with ByHand(
        envelope(),
        tls='implicit',
        ca_file=str(tls_authority.path),
        context=getattr(tls_authority, bad)(),
    ) as hand:
        hand.accept()
        with pytest.raises(ssl.SSLError):
            hand.start_tls()
        hand.poller.until(lambda: hand.connection.state == 'closed')
        assert hand.sender.said == ['unavailable']
        assert 'the TLS handshake: ' in str(hand.sender.errors[0])
        assert hand.poller.watched == 0


def test_a_client_certificate_that_is_refused_late(tls_authority: TLSAuthority) -> None:
    """By TLS 1.3 our handshake ends before the relay refuses our certificate."""
    with ByHand(
        envelope(),
        tls='implicit',
        ca_file=str(tls_authority.path),
        context=tls_authority.demanding(),
    ) as hand:
        hand.accept()
        with pytest.raises(ssl.SSLError):
            hand.start_tls()
        hand._send_pieces(hand._outgoing.read())
        hand.poller.until(lambda: hand.sender.said)
        assert hand.sender.said == ['unavailable']
        assert 'client_cert= in mail.url' in str(hand.sender.errors[0])


def test_close_while_resolving() -> None:
    """A connection that was closed meanwhile does not connect."""
    with ByHand() as hand:
        hand.connection.open()
        hand.connection.close()
        hand.poller.step()
        assert (hand.connection.state, hand.sender.said) == ('closed', [])
        assert hand.poller.watched == 0


def test_a_refused_connection() -> None:
    """A relay that is down is unavailable, however soon the system knows."""
    with ByHand() as hand:
        hand._listening.close()
        hand.connection.open()
        hand.poller.until(lambda: hand.sender.said)
        assert hand.sender.said == ['unavailable']
        assert 'Connection refused' in str(hand.sender.errors[0])


def test_outcomes_that_came_together_are_all_recorded() -> None:
    """If one outcome cannot be written, those that came with it are recorded all the same."""
    mails = [envelope(id=f'{number:032x}') for number in range(3)]
    with ByHand(*mails, options=SessionOptions(window=5)) as hand:
        recorded: list[Any] = []

        def record(outcome: Any) -> None:
            recorded.append(outcome)
            if len(recorded) == 1:
                raise QueueError(28, 'no space')

        hand.sender.record = record  # type: ignore[method-assign]
        hand.accept()
        hand.greets('PIPELINING', 'CHUNKING')
        hand.reads(b'RCPT')
        hand.reads(b'\r\n')
        hand.says('250 ok', '250 ok')
        for _ in mails:
            hand.reads(b'BDAT')
        hand.says('250 ok', *['250 ok'] * 8)
        assert [len(recorded), hand.sender.said[-1]] == [3, 'failed']
