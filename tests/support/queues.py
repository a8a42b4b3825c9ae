"""Shared by the tests of the queues: envelopes, events, a clock that stands still, children."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyramid_sendmail.envelope import Envelope, PendingEvent, Reply
from pyramid_sendmail.queue import MaildirQueue

__all__ = [
    'CALLS',
    'NOW',
    'Clock',
    'child',
    'claimed',
    'crashes',
    'deferred',
    'failed',
    'files',
    'forked',
    'interrupted_rename',
    'make_envelope',
    'open_files',
    'open_to_others',
    'reap',
    'sent',
    'the_file',
    'until',
]

NOW = 1_700_000_000.0


class Clock:
    """Epoch seconds that only a test moves on, or back."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now
        self.step = 0.0
        """By how much each call moves it on, or back."""

    def __call__(self) -> float:
        if self.step:
            self.now = max(self.now + self.step, 1e6)
        return self.now


def make_envelope(*recipients: str, body: str = 'Hello.', **options: Any) -> Envelope:
    id = options.pop('id', None) or secrets.token_hex(16)
    message_id = f'<{id}@web.example.org>'
    options.setdefault('queued_at', NOW)
    options.setdefault('due', options['queued_at'])
    return Envelope(
        id=id,
        message_id=message_id,
        sender=options.pop('sender', 'bounces@example.org'),
        recipients=recipients or ('ann@example.org',),
        raw=(
            f'Message-ID: {message_id}\r\nFrom: shop@example.org\r\nTo: ann@example.org\r\n'
            f'Subject: Welcome\r\n\r\n{body}\r\n'
        ).encode(),
        **options,
    )


def sent(envelope: Envelope, *recipients: str, attempt: int = 1, group: int = 0) -> PendingEvent:
    return PendingEvent(
        id=f'{envelope.id}-{attempt}-sent-{group}',
        kind='sent',
        recipients=recipients or envelope.recipients,
        attempt=attempt,
        mailer='smtp://relay.example.org:25',
        reply=Reply(250, '2.0.0 queued as 4B7C'),
        permanent=False,
    )


def failed(
    envelope: Envelope, *recipients: str, attempt: int = 1, group: int = 0, text: str = ''
) -> PendingEvent:
    reply = Reply(550, text or '5.1.1 no such user')
    return PendingEvent(
        id=f'{envelope.id}-{attempt}-error-{group}',
        kind='error',
        recipients=recipients or envelope.recipients,
        attempt=attempt,
        mailer='smtp://relay.example.org:25',
        reply=reply,
        reason=str(reply),
        permanent=True,
    )


def deferred(
    envelope: Envelope, *recipients: str, attempt: int = 1, group: int = 0, until: float = 0.0
) -> PendingEvent:
    reply = Reply(451, '4.3.0 try again later')
    return PendingEvent(
        id=f'{envelope.id}-{attempt}-deferred-{group}',
        kind='deferred',
        recipients=recipients or envelope.recipients,
        attempt=attempt,
        mailer='smtp://relay.example.org:25',
        reply=reply,
        reason=str(reply),
        permanent=False,
        retry_at=until,
    )


def claimed(queue: Any, now: float = NOW) -> Any:
    """Claim the only mail that is due."""
    (ticket,), _ = queue.scan(now)
    claim = queue.claim(ticket)
    assert claim is not None
    return claim


def files(queue: MaildirQueue) -> list[str]:
    """The mail on disk, as 'folder/name'."""
    root = Path(queue.path)
    return sorted(
        f'{folder}/{path.name}'
        for folder in ('tmp', 'new', 'cur', 'done', 'failed')
        for path in (root / folder).iterdir()
    )


def the_file(queue: MaildirQueue, folder: str) -> Path:
    (path,) = (Path(queue.path) / folder).iterdir()
    return path


def open_files() -> set[tuple[str, str]]:
    """Return what this process has open: descriptors, each with what it stands for.

    Compare by ``open_files() - before``: what an earlier test has dropped may be closed meanwhile.
    """
    found = set()
    for descriptor in os.listdir('/proc/self/fd'):
        with suppress(FileNotFoundError):  # that of the listing
            found.add((descriptor, os.readlink(f'/proc/self/fd/{descriptor}')))
    return found


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for a condition, and return what makes it true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, 'the condition did not become true'
        time.sleep(0.002)
    return found


def forked(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked child that ends with ``os._exit``; return its process id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


@contextmanager
def interrupted_rename(nth: int) -> Iterator[None]:
    """Interrupt what is called here, behind its ``nth`` rename."""
    rename, calls = os.rename, 0

    def interrupted(*args: Any, **folders: Any) -> None:
        nonlocal calls
        calls += 1
        rename(*args, **folders)
        if calls == nth:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'rename', interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


def reap(pid: int) -> int:
    """Wait for a child; return its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """A child that has done ``work`` and waits to be killed at the end."""
    reading, writing = os.pipe()

    def wait() -> None:
        work()
        os.write(writing, b'.')
        threading.Event().wait()

    pid = forked(wait)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b'.', 'the child failed'
        yield pid
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        reap(pid)


CALLS = ('open', 'pwrite', 'fsync', 'rename', 'unlink', 'close', 'stat', 'mkdir')
"""What the queue asks of the system, by the names that the os module has for it."""

STOPPED = 77


def crashes(work: Callable[[], object], check: Callable[[], object]) -> int:
    """Run ``work`` in children that are stopped after the first, the second, ... system call that
    concerns the queue, and ``check`` after each; return how many calls ``work`` makes."""
    for step in range(1, 1000):
        status = reap(forked(partial(_stop_after, step, work)))
        if status == 0:
            return step - 1
        assert status == STOPPED
        check()
    raise AssertionError('it never ends')


def _stop_after(step: int, work: Callable[[], object]) -> None:
    left = step

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            nonlocal left
            try:
                return call(*args, **options)
            finally:
                left -= 1
                if left == 0:
                    os._exit(STOPPED)

        return wrapper

    for name in CALLS:
        setattr(os, name, counting(getattr(os, name)))
    fcntl.flock = counting(fcntl.flock)
    work()


def open_to_others(path: Path) -> None:
    """Let all users enter a folder that pytest made for this user alone."""
    shared = Path(tempfile.gettempdir())
    for folder in (path, *path.parents):
        if folder == shared:
            return
        folder.chmod(0o755)
