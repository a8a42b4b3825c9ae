"""Writing mail as files into a Maildir that any mail program opens; nothing leaves this machine."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from zope.interface import implementer

from ..envelope import Envelope, Outcome, Reply, Verdict
from ..exceptions import MailerUnavailable
from ..folders import make_private_folder
from ..interfaces import IMailer, IMailSession
from .path_syntax import is_valid_path
from .session import BeforeFinalDot, ClosableSession, describe_error

__all__ = ['FileMailer', 'FileSession']


@implementer(IMailer)
class FileMailer:
    """Writes each mail as a ``.eml`` file into the Maildir at ``path``, and makes it if missing.

    A file holds ``Return-Path``, an ``X-Envelope-To`` line for each recipient, and the exact
    bytes. Files are 0600, folders 0700, and missing folders above are made 0755 at most. Raises
    ValueError for a path that is not absolute.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        if not os.path.isabs(self._path):
            raise ValueError(f'file:{self._path} is not absolute')
        self.name = f'file:{self._path}'

    def __repr__(self) -> str:
        return f'<FileMailer {self.name}>'

    def connect(self) -> FileSession:
        """See IMailer."""
        with _reachable(self.name):
            make_private_folder(self._path)
            for folder in ('tmp', 'new', 'cur'):
                make_private_folder(os.path.join(self._path, folder))
        return FileSession(self._path, name=self.name)


@implementer(IMailSession)
class FileSession(ClosableSession):
    """See FileMailer."""

    def __init__(self, path: str, *, name: str) -> None:
        super().__init__(name)
        self._path = path

    def _send_one(
        self, envelope: Envelope, before_final_dot: BeforeFinalDot | None
    ) -> Iterator[Outcome]:
        verdicts = {
            recipient: Verdict('failed', None, f'{recipient!r} is no address')
            for recipient in envelope.recipients
            if not is_valid_path(recipient)
        }
        accepted = tuple(each for each in envelope.recipients if each not in verdicts)
        if accepted:
            verdict = self._store(envelope, accepted, before_final_dot)
            verdicts.update(dict.fromkeys(accepted, verdict))
        yield {each: verdicts[each] for each in envelope.recipients}

    def _store(
        self,
        envelope: Envelope,
        accepted: tuple[str, ...],
        before_final_dot: BeforeFinalDot | None,
    ) -> Verdict:
        """Write the mail into tmp/, then move it to new/."""
        name = f'{int(time.time())}.{secrets.token_hex(8)}.eml'
        written = os.path.join(self._path, 'tmp', name)
        stored = os.path.join(self._path, 'new', name)
        sender = envelope.sender if is_valid_path(envelope.sender) else ''
        lines = [f'Return-Path: <{sender}>', *(f'X-Envelope-To: <{each}>' for each in accepted)]
        try:
            with _reachable(self.name):
                _write(written, '\r\n'.join(lines).encode() + b'\r\n', envelope.blocks())
            if before_final_dot is not None:
                before_final_dot(envelope, accepted)
            with _reachable(self.name):
                os.rename(written, stored)
        except BaseException:
            self._closed = True
            with suppress(OSError):
                os.unlink(written)
            raise
        try:
            _sync(os.path.join(self._path, 'new'))
        except OSError as error:
            return Verdict('ambiguous', None, f'{self.name}: {describe_error(error)}')
        return Verdict('delivered', Reply(250, f'filed as {name}'))


def _write(path: str, head: bytes, blocks: Iterable[bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, 'wb') as file:
        file.write(head)
        file.writelines(blocks)
        file.flush()
        os.fsync(descriptor)


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _reachable(name: str) -> Iterator[None]:
    """Raise MailerUnavailable for an OSError inside."""
    try:
        yield
    except OSError as error:
        detail = describe_error(error)
        raise MailerUnavailable(f'{name}: {detail}; mail.url names this folder') from error
