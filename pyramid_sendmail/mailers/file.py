"""Mail into a Maildir of files that any mail program opens; nothing leaves this machine."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from zope.interface import implementer

from ..envelope import Envelope, Outcome, Reply, Verdict
from ..exceptions import MailerUnavailable
from ..interfaces import IMailer, IMailSession
from .path_syntax import is_path
from .smtp.connection import describe
from .smtp.session import Sealing

__all__ = ['FileMailer', 'FileSession']


@implementer(IMailer)
class FileMailer:
    """Writes each mail as a ``.eml`` file into the Maildir at ``path``, made where missing.

    In front of the exact bytes stand ``Return-Path`` and an ``X-Envelope-To`` line for each
    recipient. Files are 0600, folders 0700. Raises ValueError for a path that is not absolute.
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
            for folder in ('', 'tmp', 'new', 'cur'):
                os.makedirs(os.path.join(self._path, folder), mode=0o700, exist_ok=True)
        return FileSession(self._path, name=self.name)


@implementer(IMailSession)
class FileSession:
    """See FileMailer."""

    def __init__(self, path: str, *, name: str) -> None:
        self._path = path
        self.name = name
        self._closed = False

    def send(
        self, envelopes: Iterable[Envelope], *, before_final_dot: Sealing | None = None
    ) -> Iterator[Outcome]:
        """See IMailSession."""
        for envelope in envelopes:
            if self._closed:
                raise MailerUnavailable(f'{self.name}: the session is closed', stale=True)
            verdicts = {
                recipient: Verdict('failed', None, f'{recipient!r} is no address')
                for recipient in envelope.recipients
                if not is_path(recipient)
            }
            accepted = tuple(each for each in envelope.recipients if each not in verdicts)
            if accepted:
                verdicts.update(
                    dict.fromkeys(accepted, self._file(envelope, accepted, before_final_dot))
                )
            yield {each: verdicts[each] for each in envelope.recipients}

    def close(self) -> None:
        """See IMailSession."""
        self._closed = True

    abandon = close

    def _file(
        self, envelope: Envelope, accepted: tuple[str, ...], before_final_dot: Sealing | None
    ) -> Verdict:
        name = f'{int(time.time())}.{secrets.token_hex(8)}.eml'
        written = os.path.join(self._path, 'tmp', name)
        filed = os.path.join(self._path, 'new', name)
        sender = envelope.sender if is_path(envelope.sender) else ''
        lines = [f'Return-Path: <{sender}>', *(f'X-Envelope-To: <{each}>' for each in accepted)]
        try:
            with _reachable(self.name):
                _write(written, '\r\n'.join(lines).encode() + b'\r\n', envelope.blocks())
            if before_final_dot is not None:
                before_final_dot(envelope, accepted)
            with _reachable(self.name):
                os.rename(written, filed)
        except BaseException:
            self._closed = True
            with suppress(OSError):
                os.unlink(written)
            raise
        try:
            _sync(os.path.join(self._path, 'new'))
        except OSError as error:
            return Verdict('ambiguous', None, f'{self.name}: {describe(error, 0)}')
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
    try:
        yield
    except OSError as error:
        detail = describe(error, 0)
        raise MailerUnavailable(f'{name}: {detail}; mail.url names this folder') from error
