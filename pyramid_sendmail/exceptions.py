"""What can go wrong, for the code that calls this package.

Every error derives from :class:`SendmailError` and from the builtin that comes
nearest, so that both ``except SendmailError`` and ``except OSError`` read well.
Settings raise Pyramid's own ``ConfigurationError``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .envelope import Report

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
    """``send`` was called where no transaction can carry the mail."""


class QueueError(SendmailError, OSError):
    """The queue cannot be used: full, read-only, of another owner, without locks.

    As text it is the message alone; ``errno`` and ``filename`` are those of any OSError.
    """

    def __str__(self) -> str:
        return self.strerror or super().__str__()


class DamagedMail(SendmailError, ValueError):
    """A file in the queue is not a mail of ours; it has been moved to ``failed/``.

    ``raw`` holds the bytes that were found, ``name`` the file's name now.
    """

    def __init__(self, name: str, reason: str, raw: bytes) -> None:
        super().__init__(f'{name}: {reason}')
        self.name = name
        self.reason = reason
        self.raw = raw


class MailerUnavailable(SendmailError, ConnectionError):
    """There is no session with the relay: no mail is to blame, and none has changed.

    ``stale`` tells that the connection had carried a mail before, so that the
    next step is to try once more at once, on a new connection.
    """

    def __init__(self, message: str, *, stale: bool = False) -> None:
        super().__init__(message)
        self.stale = stale


class MailRefused(SendmailError, OSError):
    """``send_now`` found no recipient accepted; ``report`` has the replies."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class MailAmbiguous(MailRefused):
    """The relay took the whole mail and its last word never came.

    The mail may or may not have been accepted: to send it again risks a second copy.
    """
