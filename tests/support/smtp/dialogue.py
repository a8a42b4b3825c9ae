"""Reading lines and data strictly, and performing scripted actions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from .actions import (
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
from .channel import Channel, ConnectionEnded

if TYPE_CHECKING:
    from .server import ScriptedSMTPServer
    from .session import Session

__all__ = ['Dialogue', 'ReceivedMessage']

_MAX_UNENDED_LINE_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message that the server accepted.

    ``data``: without stuffed dots, with its last CRLF. ``wire``: as received, with the final dot.
    ``mail_arguments``: the parameters of MAIL. ``acknowledged``: the positive reply was sent while
    the client was connected; if not, ``reply_code`` is None.
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
    """Reads strictly and acts by the script. Raises ConnectionEnded when the connection ends.

    ``reply_due``: names the reply before which the client must send nothing more; '' if it may.
    ``message``: the message that is answered at present. ``written``: the bytes written since the
    last read.
    """

    def __init__(self, server: ScriptedSMTPServer, session: Session, channel: Channel) -> None:
        self.channel = channel
        self.reply_due = ''
        self.message: ReceivedMessage | None = None
        self.written = b''
        self._server = server
        self._session = session
        self._accepted: ReceivedMessage | None = None

    def read_line(self, what: str) -> bytes:
        """Return the bytes before the next CRLF."""
        self.written = b''
        buffer = self.channel.buffer
        warned = False
        while (end := buffer.find(b'\r\n')) < 0:
            if b'\n' in buffer and not warned:
                warned = True
                self.violation(f'bare LF in {bytes(buffer[:80])!r}')
            if len(buffer) > _MAX_UNENDED_LINE_BYTES:
                self.violation(f'{what} without an end')
                raise ConnectionEnded
            self.channel.fill()
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        if b'\n' in line and not warned:
            self.violation(f'bare LF in {line[:80]!r}')
        if b'\r' in line:
            self.violation(f'bare CR in {line[:80]!r}')
        return line

    def read_data(self) -> bytes:
        """Return the bytes of a message with their end, CRLF.CRLF, as they came."""
        buffer = self.channel.buffer
        pause = self._server.read_pause
        searched = 0
        while not buffer.startswith(b'.\r\n'):
            end = buffer.find(b'\r\n.\r\n', searched)
            if end >= 0:
                break
            searched = max(0, len(buffer) - 4)
            if pause and self._server.stopping.wait(pause):
                raise ConnectionEnded
            self.channel.fill()
        else:
            end = -2
        wire = bytes(buffer[: end + 5])
        del buffer[: end + 5]
        return wire

    def read_bytes(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        buffer = self.channel.buffer
        while len(buffer) < count:
            if self._server.read_pause and self._server.stopping.wait(self._server.read_pause):
                raise ConnectionEnded
            self.channel.fill()
        data = bytes(buffer[:count])
        del buffer[:count]
        return data

    def perform(self, verb: str, text: str | bytes, default: Action) -> int:
        """Do the scripted action for a verb, or ``default``; return the code sent, or 0."""
        self.written = b''
        self.act(self._server.choose(verb, text), default)
        return reply_code(self.written)

    def act(self, action: Action | None, default: Action) -> None:
        """Do one action and those that follow it."""
        match action:
            case None:
                self.act(default, default)
            case Reply() | Raw():
                self.write(action.encoded if isinstance(action, Reply) else action.data)
                if action.then is not None:
                    self.channel.flush()
                    self.act(action.then, default)
            case Delay() | Hold():
                self._wait(action, default)
                self.act(action.then, default)
            case AcceptThen():
                self._accept()
                self.act(action.then, default)
            case End():
                self._end(action)
            case Hang():
                self._hang(reading=action.reading)
            case StreamForever():
                self._stream(action.line)
            case _:
                self.act(action(self._session), default)

    def write(self, data: bytes) -> None:
        """Write ``data``, which may be a part of a reply."""
        if self.reply_due:
            if self.channel.peek():
                early = bytes(self.channel.buffer[:80])
                self.violation(f'{early!r} sent before {self.reply_due}')
            self.reply_due = ''
        self.written += data
        self.channel.write(data)
        if self.message is not None:
            self._answer_message(reply_code(self.written))
        elif not self.channel.buffer:
            # As servers do, answer what came in one group in one go (RFC 2920, 3.2).
            self.channel.flush()

    def violation(self, text: str) -> None:
        """Log a violation of the protocol by the client."""
        self._server.note_violation(f'connection {self._session.connection}: {text}')

    def forget_message(self) -> None:
        """End the answer to a message."""
        self.message = self._accepted = None

    def _answer_message(self, code: int) -> None:
        positive = code // 100 == 2
        # Logged before it is sent: the client may look as soon as it has read the reply.
        if positive:
            self._accept(reply_code=None if self.channel.client_left() else code)
        elif self.written.startswith(b'2'):
            self._accept()
        try:
            self.channel.flush()
        except ConnectionEnded:
            if positive:
                self._accept()
            raise

    def _wait(self, action: Delay | Hold, default: Action) -> None:
        if self.message is not None and _accepts(action.then, default):
            self._accept()
        self.channel.flush()
        stopping = self._server.stopping
        if isinstance(action, Delay):
            stopping.wait(action.seconds)
        else:
            while not action.event.wait(0.02) and not stopping.is_set():
                pass
        if stopping.is_set():
            raise ConnectionEnded

    def _end(self, action: End) -> NoReturn:
        if action.how == 'reset':
            self.channel.reset()
        elif action.how == 'half_close':
            self.channel.half_close()
            self._hang(reading=True)
        else:
            self.channel.close()
        raise ConnectionEnded

    def _hang(self, *, reading: bool) -> NoReturn:
        while reading:
            self.channel.fill()
            self.channel.buffer.clear()
        self.channel.wait_until_client_left()
        raise ConnectionEnded

    def _stream(self, line: bytes) -> NoReturn:
        while True:
            self.channel.write(line * 64)
            self.channel.flush()

    def _accept(self, *, reply_code: int | None = None) -> None:
        if self.message is not None and self.message.recipients:
            message = replace(
                self.message, reply_code=reply_code, acknowledged=reply_code is not None
            )
            self._server.note_message(message, instead_of=self._accepted)
            self._accepted = message


def _accepts(action: Action | None, default: Action) -> bool:
    """Return whether a message counts as accepted before the server waits."""
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
