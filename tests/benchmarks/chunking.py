"""A sink that offers PIPELINING and CHUNKING (RFC 3030): ``chunking PORT``.

It prints its counts as smtp-sink does with -c, and takes DATA from those who do not know BDAT.
"""

from __future__ import annotations

import asyncio
import sys

_EHLO = b'250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 CHUNKING\r\n'
_END = b'\r\n.\r\n'

_counts = {'sess': 0, 'quit': 0, 'mesg': 0}


class Session(asyncio.Protocol):
    """One connection; ``left`` are the bytes still to come of a chunk."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.left = 0
        self.last = False
        self.data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(b'220 sink\r\n')

    def connection_lost(self, exc: Exception | None) -> None:
        _count('sess')

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        replies: list[bytes] = []
        while self._step(replies):
            pass
        self.transport.write(b''.join(replies))
        if replies and replies[-1].startswith(b'221'):
            self.transport.close()

    def _step(self, replies: list[bytes]) -> bool:
        """Take the next piece of what has come; False where it is not all there."""
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
            _count('mesg')
            replies.append(b'250 taken\r\n')
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
        if verb == b'DATA':
            self.data = True
            self.buffer[:0] = b'\r\n'  # the dot may stand on the first line
            replies.append(b'354 go on\r\n')
        elif verb == b'EHLO':
            replies.append(_EHLO)
        elif verb == b'QUIT':
            _count('quit')
            replies.append(b'221 bye\r\n')
        else:
            replies.append(b'250 ok\r\n')
        return True

    def _chunk_ends(self, replies: list[bytes]) -> bool:
        if self.last:
            _count('mesg')
        replies.append(b'250 taken\r\n')
        return True


def _count(what: str) -> None:
    _counts[what] += 1
    line = ' '.join(f'{name}={value}' for name, value in _counts.items())
    print(line, end='\r', flush=True)


async def main(port: int) -> None:
    """Listen until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Session, '127.0.0.1', port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == '__main__':
    asyncio.run(main(int(sys.argv[1])))
