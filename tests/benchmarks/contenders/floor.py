"""The limit of a drain in Python: ``floor FOLDER PORT``.

What a queue on disk has to do for each mail that it must neither lose nor send twice, and nothing
else: open the file, lock it, see that it is still the one, read it, mark it as being sent, mark it
as about to leave, send it, remove it. One pipelined connection, one round trip a mail, two mails
under way; no reply is looked at but by its first digit, no setting, name, event, limit or log line
is there, and any trouble ends it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys

from tests.benchmarks.work import RECIPIENT_ADDRESS, SENDER_ADDRESS

_COMMANDS = f'MAIL FROM:<{SENDER_ADDRESS}>\r\nRCPT TO:<{RECIPIENT_ADDRESS}>\r\nDATA\r\n'.encode()


def claimed(path: str) -> tuple[int, bytes]:
    """A file that is locked and marked, and its text."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.fstat(file).st_ino != os.stat(path, follow_symlinks=False).st_ino:
        raise RuntimeError(f'{path} is another file by now')
    data = os.pread(file, os.fstat(file).st_size, 0)
    os.pwrite(file, data[:1], 0)
    return file, data.replace(b'\n', b'\r\n')


def settle(path: str, file: int) -> None:
    """Remove it, and let it go."""
    os.unlink(path)
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def main(folder: str, port: str) -> None:
    """Send all that is there."""
    paths = [f'{folder}/{name}' for name in sorted(os.listdir(folder))]
    with socket.create_connection(('127.0.0.1', int(port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        replies = connection.makefile('rb')

        def expect(digits: bytes) -> None:
            for digit in digits:
                while (line := replies.readline())[3:4] == b'-':
                    pass
                if line[0] != digit:
                    raise RuntimeError(f'the relay answered {line!r}')

        expect(b'2')
        connection.sendall(b'EHLO web.example.org\r\n')
        expect(b'2')
        connection.sendall(_COMMANDS)
        before = None
        for path, after in zip(paths, [*paths[1:], None], strict=True):
            file, data = claimed(path)
            expect(b'223' if before is None else b'2223')
            if before is not None:
                settle(*before)
            os.pwrite(file, data[:1], 0)
            text = data.replace(b'\n.', b'\n..') + b'.\r\n'
            connection.sendall(text + _COMMANDS if after else text)
            before = path, file
        expect(b'2')
        if before is not None:
            settle(*before)
        connection.sendall(b'QUIT\r\n')


if __name__ == '__main__':
    main(*sys.argv[1:])
