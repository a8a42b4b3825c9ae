"""The mailer that sends nothing: the whole contract at a glance."""

from __future__ import annotations

from collections.abc import Iterator

from zope.interface import implementer

from ..envelope import Envelope, Outcome, Reply, Verdict
from ..interfaces import IMailer, IMailSession
from .session import BeforeFinalDot, ClosableSession

__all__ = ['NullMailer', 'NullSession']


@implementer(IMailer)
class NullMailer:
    """Accepts every mail and drops it."""

    name = 'null:'

    def __repr__(self) -> str:
        return f'<NullMailer {self.name}>'

    def connect(self) -> NullSession:
        """See IMailer."""
        return NullSession()


@implementer(IMailSession)
class NullSession(ClosableSession):
    """See NullMailer."""

    def __init__(self) -> None:
        super().__init__(NullMailer.name)

    def _send_one(
        self, envelope: Envelope, before_final_dot: BeforeFinalDot | None
    ) -> Iterator[Outcome]:
        if before_final_dot is not None and envelope.recipients:
            before_final_dot(envelope, envelope.recipients)
        yield dict.fromkeys(envelope.recipients, Verdict('delivered', Reply(250, 'vanished')))
