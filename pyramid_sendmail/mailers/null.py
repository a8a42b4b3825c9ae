"""The mailer that sends nothing: the whole contract at a glance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from zope.interface import implementer

from ..envelope import Envelope, Outcome, Reply, Verdict
from ..exceptions import MailerUnavailable
from ..interfaces import IMailer, IMailSession
from .smtp.session import Sealing

__all__ = ['NullMailer', 'NullSession']


@implementer(IMailer)
class NullMailer:
    """Accepts every mail and lets it vanish."""

    name = 'null:'

    def __repr__(self) -> str:
        return f'<NullMailer {self.name}>'

    def connect(self) -> NullSession:
        """See IMailer."""
        return NullSession()


@implementer(IMailSession)
class NullSession:
    """See NullMailer."""

    name = NullMailer.name
    _closed = False

    def send(
        self, envelopes: Iterable[Envelope], *, before_final_dot: Sealing | None = None
    ) -> Iterator[Outcome]:
        """See IMailSession."""
        for envelope in envelopes:
            if self._closed:
                raise MailerUnavailable('null: the session is closed', stale=True)
            if before_final_dot is not None and envelope.recipients:
                before_final_dot(envelope, envelope.recipients)
            yield dict.fromkeys(envelope.recipients, Verdict('delivered', Reply(250, 'vanished')))

    def close(self) -> None:
        """See IMailSession."""
        self._closed = True

    abandon = close
