"""A yardstick for a drain in Python, one flat loop in one thread: ``flat MAILDIR PORT [COUNT]``.

It sends an ordinary queue of pyramid_sendmail, over four connections by epoll, and keeps the same
promises for each mail that it takes. No mail is lost: a file is removed after the relay's 250. None
is sent twice without a trace: the file is locked, is still the one of its name, has its checksum,
and is marked before the attempt (``S``) and before the dot (``?``). Every reply is read with its
code. The folder is synced every hundred mails.

What it does not handle: anything that is not ordinary. It has no retries, deferrals or failures, no
events, no log, no history, no second recipient, no priorities among mail that arrives, no mail that
is due later or expires, no rate limit, no TLS, no AUTH, no relay without PIPELINING, no mail with
8-bit or bare line ends, no failover, no wake-up, no signals, and no other processor beside it.
Where it meets any of these it ends, and whatever was under way is as after a crash.

The format of the files is that of docs/explanation/queue-format.rst.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import socket
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from zlib import crc32

_SYNC_EVERY = 100
_TIMEOUT = 300.0
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NAME = re.compile(r'[159]-([0-9]{15})-0000-[0-9a-f]{32}')
_BLOCK = re.compile(
    rb'X-Envelope: (2 ([0-9]{8}) ([0-9]{12}) message=([0-9a-f]{8})) rest=([0-9a-f]{8}) '
    rb'(crlf no-dots ascii {15})\r\n'
    rb'X-Envelope-State: (C) [0-9]{15} ([0-9]{15})\r\n'
    rb'X-Envelope-Outcome: \[\[\]\] {972}\r\n'
    rb'(X-Envelope-Id: [0-9a-f]{32}\r\n'
    rb'X-Envelope-Message-Id: <[^\r\n]+>\r\n'
    rb'X-Envelope-From: ([^\r\n]*)\r\n'
    rb'X-Envelope-Options: (\{[^\r\n]+\})\r\n)'
    rb'X-Envelope-To: (T00000T) ([^\r\n]+)\r\n'
)
_PATH = re.compile(rb'[!#-;=?A-Z^-~]+@[A-Za-z0-9.-]+')


class Unusual(Exception):
    """What a real processor is needed for."""


class Mail:
    """A claimed mail: its file is open and locked."""

    __slots__ = ('commands', 'file', 'mark_at', 'path', 'text')

    def __init__(self, path: str, file: int, mark_at: int, commands: bytes, text: bytes) -> None:
        self.path, self.file, self.mark_at = path, file, mark_at
        self.commands, self.text = commands, text


class Connection:
    """A connection, the mail whose commands are under way, and the one behind whose text they
    follow."""

    __slots__ = ('before', 'deadline', 'expected', 'mail', 'rest', 'socket')

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(('127.0.0.1', port), timeout=_TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.before: Mail | None = None
        self.mail: Mail | None = None
        self.rest = b''
        self.expected = b''
        self.deadline = 0.0

    def greet(self) -> None:
        """Read the greeting, and see what the relay offers."""
        with self.socket.makefile('rb') as replies:
            if not replies.readline().startswith(b'220 '):
                raise Unusual('the relay does not greet')
            self.socket.sendall(b'EHLO web.example.org\r\n')
            offers = [replies.readline()]
            while offers[-1].startswith(b'250-'):
                offers.append(replies.readline())
        if not any(offer[4:].strip().upper() == b'PIPELINING' for offer in offers):
            raise Unusual('the relay does not offer PIPELINING')
        self.socket.setblocking(False)


@lru_cache
def ordinary(address: bytes) -> bool:
    """Return whether an address may stand in a command as it is."""
    return _PATH.fullmatch(address) is not None


def claimed(folder: str, name: str) -> Mail:
    """Lock a mail, read it, verify it and mark it."""
    named = _NAME.fullmatch(name)
    now = time.time()
    if named is None or int(named[1]) > now * 1000:
        raise Unusual(f'{name} is not due, or was tried before')
    path = f'{folder}/{name}'
    file = os.open(path, _OPEN)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    here, there = os.fstat(file), os.stat(path, follow_symlinks=False)
    if (here.st_ino, here.st_dev) != (there.st_ino, there.st_dev):
        raise Unusual(f'{path} is another file by now')
    data = os.pread(file, here.st_size, 0)
    block = _BLOCK.match(data)
    if block is None:
        raise Unusual(f'{path} is no ordinary mail')
    start, size, rest, text_sum, rest_sum, traits, _, retry_at, fixed, sender, words, _, to = (
        block.groups()
    )
    text = data[block.end() :]
    if int(size) != block.end() or int(rest) != len(text) or int(retry_at):
        raise Unusual(f'{path} is no ordinary mail')
    if (int(text_sum, 16), int(rest_sum, 16)) != (crc32(text), crc32(start + traits + fixed + to)):
        raise Unusual(f'{path} is damaged')
    options = json.loads(words.decode())
    if options['expires'] is not None or options['due'] > now:
        raise Unusual(f'{path} expires, or is due later')
    if not ordinary(sender) or not ordinary(to):
        raise Unusual(f'{path} has an unusual address')
    if not text.endswith(b'\r\n'):
        raise Unusual(f'{path} ends within a line')
    os.pwrite(file, b'S', block.start(7))
    commands = b'MAIL FROM:<%b> SIZE=%d\r\nRCPT TO:<%b>\r\nDATA\r\n' % (sender, len(text), to)
    return Mail(path, file, block.start(12), commands, text)


def send_all(connection: Connection, data: bytes) -> None:
    """Send, and wait where the relay does not take more."""
    sent = connection.socket.send(data)
    while sent < len(data):
        if not select.select([], [connection.socket], [], _TIMEOUT)[1]:
            raise Unusual('the relay takes no more')
        sent += connection.socket.send(data[sent:])
    connection.deadline = time.monotonic() + _TIMEOUT


def settle(mail: Mail) -> None:
    """Remove a delivered mail, and let it go."""
    os.unlink(mail.path)
    os.close(mail.file)


def sync(folder: str) -> None:
    """Have the removals on disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(file)
    os.close(file)


def step(connection: Connection, mails: Iterator[Mail]) -> bool:
    """Take what the relay has sent; once it is all that was awaited, settle the mail before, send
    the text of this one, and the commands of the next behind it. Return whether one was settled."""
    received = connection.socket.recv(16_384)
    if not received:
        raise Unusual('the relay closed the connection')
    data = connection.rest + received
    expected = connection.expected
    if data.count(b'\n') < len(expected):
        connection.rest = data
        return False
    *lines, connection.rest = data.split(b'\n')
    if connection.rest or len(lines) != len(expected):
        raise Unusual('the relay said more than was asked')
    for digit, line in zip(expected, lines, strict=True):
        if line[0] != digit or line[3:4] != b' ' or not line[:3].isdigit():
            raise Unusual(f'the relay answered {line!r}')
    before, mail = connection.before, connection.mail
    if before is not None:
        settle(before)
    if mail is not None:
        after = next(mails, None)
        os.pwrite(mail.file, b'?00000?', mail.mark_at)
        text = mail.text + b'.\r\n'
        send_all(connection, text + after.commands if after else text)
        connection.expected = b'2223' if after else b'2'
        connection.before, connection.mail = mail, after
    else:
        connection.before = None
    return before is not None


def main(maildir: str, port: str, connections: str = '4') -> None:
    """Send all that is there."""
    folder = f'{maildir}/new'
    mails = (claimed(folder, name) for name in sorted(os.listdir(folder)))
    poll = select.epoll()
    working: dict[int, Connection] = {}
    for _ in range(int(connections)):
        mail = next(mails, None)
        if mail is None:
            break
        connection = Connection(int(port))
        connection.greet()
        connection.mail, connection.expected = mail, b'223'
        send_all(connection, mail.commands)
        working[connection.socket.fileno()] = connection
        poll.register(connection.socket, select.EPOLLIN)
    settled = 0
    while working:
        for number, _ in poll.poll(1.0):
            connection = working[number]
            if step(connection, mails):
                settled += 1
                if settled % _SYNC_EVERY == 0:
                    sync(folder)
            if connection.before is None and connection.mail is None:
                poll.unregister(number)
                del working[number]
                connection.socket.send(b'QUIT\r\n')
                connection.socket.close()
        now = time.monotonic()
        if any(now > connection.deadline for connection in working.values()):
            raise Unusual('the relay does not answer')
    sync(folder)


if __name__ == '__main__':
    main(*sys.argv[1:])
