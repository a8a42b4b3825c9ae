"""How a scripted server reads lines and does what it is told: the same whatever is being said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from tests.support.smtp.actions import (
    AcceptThen,
    Action,
    Delay,
    End,
    Hang,
    Hold,
    Raw,
    Reply,
    StreamForever,
    reply_code,
)
from tests.support.smtp.channel import Channel, Gone

if TYPE_CHECKING:
    from tests.support.smtp.server import ScriptedSMTPServer
    from tests.support.smtp.session import Session

__all__ = ['Dialogue', 'ReceivedMessage']

_ENDLESS = 1_000_000


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message that the server took.

    ``data``: without stuffed dots, with its last CRLF. ``wire``: as it came, final dot and all.
    ``mail_arguments``: what followed the sender in MAIL. ``acknowledged``: the positive reply was
    sent to a client that was still there; ``reply_code`` is None where it was not.
    """

    sender: str
    recipients: tuple[str, ...]
    data: bytes
    mail_arguments: str
    connection: int
    helo: str
    tls: bool
    authenticated_as: str | None
    reply_code: int | None = None
    acknowledged: bool = False
    wire: bytes = b''
    message_id: str = ''


class Dialogue:
    """Reads strictly and acts by the script. Whatever ends the connection raises Gone.

    ``silence``: the reply before which the client must not have sent more, while we owe it.
    ``draft``: the message being answered. ``said``: what was written since we read something.
    """

    def __init__(self, server: ScriptedSMTPServer, session: Session, channel: Channel) -> None:
        self.channel = channel
        self.silence = ''
        self.draft: ReceivedMessage | None = None
        self.said = b''
        self._server = server
        self._session = session
        self._taken: ReceivedMessage | None = None

    def read_line(self, what: str) -> bytes:
        """Return the octets before the next CRLF."""
        self.said = b''
        buffer = self.channel.buffer
        warned = False
        while (end := buffer.find(b'\r\n')) < 0:
            if b'\n' in buffer and not warned:
                warned = True
                self.violation(f'bare LF in {bytes(buffer[:80])!r}')
            if len(buffer) > _ENDLESS:
                self.violation(f'{what} without an end')
                raise Gone
            self.channel.fill()
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        if b'\n' in line and not warned:
            self.violation(f'bare LF in {line[:80]!r}')
        if b'\r' in line:
            self.violation(f'bare CR in {line[:80]!r}')
        return line

    def read_data(self) -> bytes:
        """Return the octets of a message with their end, CRLF.CRLF, as they came."""
        buffer = self.channel.buffer
        pause = self._server.read_pause
        searched = 0
        while not buffer.startswith(b'.\r\n'):
            end = buffer.find(b'\r\n.\r\n', searched)
            if end >= 0:
                break
            searched = max(0, len(buffer) - 4)
            if pause and self._server.stopping.wait(pause):
                raise Gone
            self.channel.fill()
        else:
            end = -2
        wire = bytes(buffer[: end + 5])
        del buffer[: end + 5]
        return wire

    def read_octets(self, count: int) -> bytes:
        """Return the next so many octets."""
        buffer = self.channel.buffer
        while len(buffer) < count:
            if self._server.read_pause and self._server.stopping.wait(self._server.read_pause):
                raise Gone
            self.channel.fill()
        octets = bytes(buffer[:count])
        del buffer[:count]
        return octets

    def perform(self, verb: str, text: str | bytes, default: Action) -> int:
        """Do what the script says for a verb, and return the code that was sent, or 0."""
        self.said = b''
        self.act(self._server.choose(verb, text), default)
        return reply_code(self.said)

    def act(self, action: Action | None, default: Action) -> None:
        """Do one thing and what follows it."""
        match action:
            case None:
                self.act(default, default)
            case Reply() | Raw():
                self.say(action.encoded if isinstance(action, Reply) else action.data)
                if action.then is not None:
                    self.channel.flush()
                    self.act(action.then, default)
            case Delay() | Hold():
                self._wait(action, default)
                self.act(action.then, default)
            case AcceptThen():
                self._take()
                self.act(action.then, default)
            case End():
                self._end(action)
            case Hang():
                self._hang(reading=action.reading)
            case StreamForever():
                self._stream(action.line)
            case _:
                self.act(action(self._session), default)

    def say(self, data: bytes) -> None:
        """Write ``data``, which may be a part of a reply."""
        if self.silence:
            if self.channel.peek():
                early = bytes(self.channel.buffer[:80])
                self.violation(f'{early!r} sent before {self.silence}')
            self.silence = ''
        self.said += data
        self.channel.write(data)
        if self.draft is not None:
            self._answer_message(reply_code(self.said))
        elif not self.channel.buffer:
            # As servers do, answer what came in one group in one go (RFC 2920, 3.2).
            self.channel.flush()

    def violation(self, text: str) -> None:
        """Log what the client must not do."""
        self._server.note_violation(f'connection {self._session.connection}: {text}')

    def forget_message(self) -> None:
        """There is no message to answer any more."""
        self.draft = self._taken = None

    def _answer_message(self, code: int) -> None:
        positive = code // 100 == 2
        # Logged before it is sent: the client may look as soon as it has read the reply.
        if positive:
            self._take(reply_code=None if self.channel.gone() else code)
        elif self.said.startswith(b'2'):
            self._take()
        try:
            self.channel.flush()
        except Gone:
            if positive:
                self._take()
            raise

    def _wait(self, action: Delay | Hold, default: Action) -> None:
        if self.draft is not None and _accepts(action.then, default):
            self._take()
        self.channel.flush()
        stopping = self._server.stopping
        if isinstance(action, Delay):
            stopping.wait(action.seconds)
        else:
            while not action.event.wait(0.02) and not stopping.is_set():
                pass
        if stopping.is_set():
            raise Gone

    def _end(self, action: End) -> NoReturn:
        if action.how == 'reset':
            self.channel.reset()
        elif action.how == 'half_close':
            self.channel.half_close()
            self._hang(reading=True)
        else:
            self.channel.close()
        raise Gone

    def _hang(self, *, reading: bool) -> NoReturn:
        while reading:
            self.channel.fill()
            self.channel.buffer.clear()
        self.channel.wait_until_gone()
        raise Gone

    def _stream(self, line: bytes) -> NoReturn:
        while True:
            self.channel.write(line * 64)
            self.channel.flush()

    def _take(self, *, reply_code: int | None = None) -> None:
        if self.draft is not None and self.draft.recipients:
            message = replace(
                self.draft, reply_code=reply_code, acknowledged=reply_code is not None
            )
            self._server.note_message(message, instead_of=self._taken)
            self._taken = message


def _accepts(action: Action | None, default: Action) -> bool:
    """Say whether a message is as good as taken before the server waits."""
    match default if action is None else action:
        case Delay(then=then) | Hold(then=then):
            return _accepts(then, default)
        case Raw(data=data):
            return data.startswith(b'2')
        case Reply(code=code):
            return code // 100 == 2
        case AcceptThen():
            return True
    return False
