"""What the sessions of all mailers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ..envelope import Envelope, Outcome
from ..exceptions import MailerUnavailable

__all__ = ['BeforeFinalDot', 'ClosableSession', 'describe_error']

BeforeFinalDot = Callable[[Envelope, Sequence[str]], object]
"""Called with a mail, and the recipients that may have it from then on. See IMailSession.send."""


class ClosableSession:
    """A session that holds no connection: closing it is a flag. See IMailSession.

    A subclass sends one mail in ``_send_one``, and sets ``_closed`` when it cannot send another.
    An exception that ``_send_one`` raises ends the session.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._closed = False

    def send(
        self, envelopes: Iterable[Envelope], *, before_final_dot: BeforeFinalDot | None = None
    ) -> Iterator[Outcome]:
        """See IMailSession."""
        for envelope in envelopes:
            if self._closed:
                raise MailerUnavailable(f'{self.name}: the session is closed', stale=True)
            try:
                yield from self._send_one(envelope, before_final_dot)
            except GeneratorExit:
                raise
            except BaseException:
                self._closed = True
                raise

    def close(self) -> None:
        """See IMailSession."""
        self._closed = True

    def abandon(self) -> None:
        """See IMailSession."""
        self._closed = True

    def _send_one(
        self, envelope: Envelope, before_final_dot: BeforeFinalDot | None
    ) -> Iterator[Outcome]:
        """Send one mail and yield its outcome."""
        raise NotImplementedError


def describe_error(error: BaseException, timeout: float = 0) -> str:
    """Return what went wrong, in words. ``timeout``: the seconds after which it timed out."""
    if isinstance(error, TimeoutError):
        return f'timed out after {timeout:g} s'
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__
