"""The errors that this package raises.

Each error derives from :class:`SendmailError` and from the builtin that comes nearest, so that
both ``except SendmailError`` and ``except OSError`` work. Settings raise Pyramid's own
``ConfigurationError``.
"""

from __future__ import annotations

from typing import Any

from .envelope import Reply, Report

__all__ = [
    'DamagedMail',
    'MailAmbiguous',
    'MailRefused',
    'MailerUnavailable',
    'MessageError',
    'NoActiveTransaction',
    'QueueError',
    'SendmailError',
]


class SendmailError(Exception):
    """The root of this package's errors."""


class MessageError(SendmailError, ValueError):
    """A message, an address or an option given to ``send`` cannot be used."""


class NoActiveTransaction(SendmailError, RuntimeError):
    """``send`` was called without an active transaction."""


class QueueError(SendmailError, OSError):
    """The queue cannot be used: the disk is full, read-only or without locks, or the queue belongs
    to another user.

    As text it is the message alone; ``errno`` and ``filename`` are those of any OSError.
    """

    def __str__(self) -> str:
        return self.strerror or super().__str__()


class DamagedMail(SendmailError, ValueError):
    """A file in the queue is not a mail of this package; it was moved to ``failed/``.

    ``raw`` is the file's content, at most its first megabyte; ``name`` its new name.
    """

    def __init__(self, name: str, reason: str, raw: bytes) -> None:
        super().__init__(f'{name}: {reason}')
        self.name = name
        self.reason = reason
        self.raw = raw

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.reason, self.raw)


class MailerUnavailable(SendmailError, ConnectionError):
    """There is no session with the relay. The state of every mail is unchanged.

    ``stale``: the connection had carried a mail before, so the next step is to try once more at
    once, on a new connection. ``reply``: that by which the relay ended the session, if it did.
    """

    def __init__(self, message: str, *, stale: bool = False, reply: Reply | None = None) -> None:
        super().__init__(message)
        self.stale = stale
        self.reply = reply


class MailRefused(SendmailError, OSError):
    """The relay accepted none of the recipients of ``send_now``; ``report`` has the replies."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        # An error is made anew from its text alone, when a task queue or a pool sends it on.
        return type(self), (*self.args, self.report)


class MailAmbiguous(MailRefused):
    """The whole mail was sent, and the relay's final reply never came.

    The relay may have accepted the mail: sending it again risks a second copy.
    """
