"""A relay that answers as a row wants it, and keeps nothing: ``relay PORT [name=value ...]``.

It offers PIPELINING, 8BITMIME and CHUNKING (RFC 3030), and prints its counts as smtp-sink does with
-c. By default it answers at once, and takes everything. Times are seconds:

``round_trip=0.04``
    Each answer leaves so much later than what it answers has come, and a greeting two round trips
    after the connection: as from a relay so far away.
``slow=4``, ``slower=0.4``
    Every fourth connection is slow: each of its answers takes so much longer.
``stalled=10``, ``stall=2``
    Every tenth connection stalls once: after its third mail nothing comes for so long.
``refused=2``
    Every second RCPT is deferred with 450.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

_EHLO = b'250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 CHUNKING\r\n'
_END = b'\r\n.\r\n'
_STALLS_AFTER = 3

_counts = {'sess': 0, 'quit': 0, 'mesg': 0, 'refu': 0}
_numbers = {'connections': 0, 'recipients': 0}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The options."""

    round_trip: float = 0.0
    slow: int = 0
    slower: float = 0.0
    stalled: int = 0
    stall: float = 0.0
    refused: int = 0


class Session(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.buffer = bytearray()
        self.left = 0
        """Bytes still to come of a chunk."""
        self.last = False
        self.data = False
        self.recipients = 0
        self.mails = 0
        self.delay = behaviour.round_trip
        self.stalls = False
        self.next = 0.0
        """When the next answer may leave: none overtakes another."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._answer([b'220 sink\r\n'], 2 * self.behaviour.round_trip)

    def connection_lost(self, exc: Exception | None) -> None:
        _count('sess')

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        replies: list[bytes] = []
        while self._step(replies):
            pass
        self._answer(replies, self.delay)

    def _answer(self, replies: list[bytes], delay: float) -> None:
        if not replies:
            return
        if self.stalls and self.mails >= _STALLS_AFTER:
            self.stalls = False
            delay += self.behaviour.stall
        if delay or self.next:
            loop = asyncio.get_running_loop()
            self.next = max(self.next + 1e-6, loop.time() + delay)
            loop.call_at(self.next, self._write, replies)
        else:
            self._write(replies)

    def _write(self, replies: list[bytes]) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(b''.join(replies))
        if replies[-1].startswith(b'221'):
            self.transport.close()

    def _step(self, replies: list[bytes]) -> bool:
        """Take the next piece of what has come; return False where it is not all there."""
        if self.left:
            taken = min(self.left, len(self.buffer))
            del self.buffer[:taken]
            self.left -= taken
            if self.left:
                return False
            return self._chunk_ends(replies)
        if self.data:
            end = self.buffer.find(_END)
            if end < 0:
                del self.buffer[: -len(_END)]
                return False
            del self.buffer[: end + len(_END)]
            self.data = False
            self._mail_ends(replies)
            return True
        end = self.buffer.find(b'\r\n')
        if end < 0:
            return False
        words = bytes(self.buffer[:end]).upper().split()
        del self.buffer[: end + 2]
        return self._command(words, replies)

    def _command(self, words: list[bytes], replies: list[bytes]) -> bool:
        verb = words[0]
        if verb == b'BDAT':
            self.left = int(words[1])
            self.last = words[2:] == [b'LAST']
            return bool(self.left) or self._chunk_ends(replies)
        if verb == b'RCPT':
            replies.append(self._recipient())
        elif verb == b'DATA' and not self.recipients:
            replies.append(b'554 5.5.1 no valid recipients\r\n')
        elif verb == b'DATA':
            self.data = True
            self.buffer[:0] = b'\r\n'  # the dot may stand on the first line
            replies.append(b'354 go on\r\n')
        elif verb == b'EHLO':
            self._number()
            replies.append(_EHLO)
        elif verb == b'QUIT':
            _count('quit')
            replies.append(b'221 bye\r\n')
        else:
            self.recipients = 0
            replies.append(b'250 ok\r\n')
        return True

    def _number(self) -> None:
        """Decide what kind of connection it is, now that it is used."""
        _numbers['connections'] += 1
        number, behaviour = _numbers['connections'], self.behaviour
        if behaviour.slow and number % behaviour.slow == 0:
            self.delay += behaviour.slower
        # One behind a slow one, so that none is both.
        self.stalls = bool(behaviour.stalled) and number % behaviour.stalled == 1

    def _recipient(self) -> bytes:
        _numbers['recipients'] += 1
        if self.behaviour.refused and _numbers['recipients'] % self.behaviour.refused == 0:
            _count('refu')
            return b'450 4.2.0 come again\r\n'
        self.recipients += 1
        return b'250 2.1.5 ok\r\n'

    def _chunk_ends(self, replies: list[bytes]) -> bool:
        if self.last:
            self._mail_ends(replies)
        else:
            replies.append(b'250 taken\r\n')
        return True

    def _mail_ends(self, replies: list[bytes]) -> None:
        if self.recipients:
            self.mails += 1
            _count('mesg')
            replies.append(b'250 taken\r\n')
        else:
            replies.append(b'554 5.5.1 no valid recipients\r\n')
        self.recipients = 0


def _count(what: str) -> None:
    _counts[what] += 1
    line = ' '.join(f'{name}={value}' for name, value in _counts.items())
    print(line, end='\r', flush=True)


async def main(port: str, *pairs: str) -> None:
    """Listen until the process is ended."""
    options = dict(pair.split('=', 1) for pair in pairs)
    behaviour = Behaviour(
        **{name: type(getattr(Behaviour(), name))(value) for name, value in options.items()}
    )
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Session(behaviour), '127.0.0.1', int(port), backlog=1024
    )
    async with server:
        await server.serve_forever()


if __name__ == '__main__':
    asyncio.run(main(*sys.argv[1:]))
