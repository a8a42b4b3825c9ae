"""Test doubles that implement the real interfaces."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from zope.interface import implementer

from pyramid_sendmail.envelope import Envelope, Outcome, Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.interfaces import IMailer, IMailSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ['RecordingMailer', 'RecordingSession']

DELIVERED = Verdict('delivered', Reply(250, '2.0.0 recorded'))


@implementer(IMailer)
class RecordingMailer:
    """Records what is sent, and answers by a script.

    ``sent``: each envelope that has an outcome, in order. ``outcomes``: these outcomes.
    ``ambiguous``: (envelope id, recipients) of each call of ``before_final_dot``. ``connections``
    counts. ``open_sessions``: those neither closed nor abandoned. ``unavailable``: the text that
    ``connect`` raises; None if it succeeds. ``before``: called with each envelope that is pulled;
    what it raises comes out of ``send``.
    """

    def __init__(self, name: str = 'recording:') -> None:
        self.name = name
        self.unavailable: str | None = None
        self.before: Callable[[Envelope], object] | None = None
        self.sent: list[Envelope] = []
        self.outcomes: list[Outcome] = []
        self.ambiguous: list[tuple[str, tuple[str, ...]]] = []
        self.connections = 0
        self.open_sessions: list[RecordingSession] = []
        self._changed = threading.Condition()
        self._next: dict[str, deque[Verdict]] = {}
        self._always: dict[str, Verdict] = {}

    def __repr__(self) -> str:
        return f'<RecordingMailer {self.name}>'

    def connect(self) -> RecordingSession:
        """See IMailer."""
        with self._changed:
            self.connections += 1
            if self.unavailable is not None:
                raise MailerUnavailable(f'{self.name}: {self.unavailable}')
            session = RecordingSession(self)
            self.open_sessions.append(session)
            return session

    # For a test, before mail is sent

    def script(self, recipient: str, *verdicts: Verdict) -> None:
        """Answer for a recipient with each of these once; then as set by ``always``."""
        with self._changed:
            self._next.setdefault(recipient, deque()).extend(verdicts)

    def always(self, recipient: str, verdict: Verdict) -> None:
        """Answer for a recipient with this verdict instead of 'delivered'."""
        with self._changed:
            self._always[recipient] = verdict

    # For a test, afterwards

    def accepted(self, recipient: str) -> int:
        """Return how many copies were delivered to a recipient."""
        with self._changed:
            return sum(
                outcome[recipient].status == 'delivered'
                for outcome in self.outcomes
                if recipient in outcome
            )

    def wait_for(self, mails: int, timeout: float = 10) -> None:
        """Wait until ``mails`` were answered. Raises AssertionError after ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.sent) >= mails, timeout):
                raise AssertionError(f'{len(self.sent)} mails instead of {mails} in {timeout} s')

    # For the sessions

    def answer(self, recipient: str) -> Verdict:
        """Take the next verdict for a recipient."""
        with self._changed:
            if scripted := self._next.get(recipient):
                return scripted.popleft()
            return self._always.get(recipient, DELIVERED)

    def note(self, envelope: Envelope, outcome: Outcome) -> None:
        """Record what was sent."""
        with self._changed:
            self.sent.append(envelope)
            self.outcomes.append(outcome)
            self._changed.notify_all()


@implementer(IMailSession)
class RecordingSession:
    """A session of RecordingMailer."""

    def __init__(self, mailer: RecordingMailer) -> None:
        self.name = mailer.name
        self._mailer = mailer
        self._closed = False

    def send(
        self,
        envelopes: Iterable[Envelope],
        *,
        before_final_dot: Callable[[Envelope, tuple[str, ...]], object] | None = None,
    ) -> Iterator[Outcome]:
        """See IMailSession."""
        for envelope in envelopes:
            if self._closed:
                raise MailerUnavailable(f'{self._mailer.name}: the session is closed', stale=True)
            try:
                outcome = self._send(envelope, before_final_dot)
            except BaseException:
                self.close()
                raise
            self._mailer.note(envelope, outcome)
            yield outcome

    def close(self) -> None:
        """See IMailSession."""
        if not self._closed:
            self._closed = True
            self._mailer.open_sessions.remove(self)

    abandon = close

    def _send(
        self,
        envelope: Envelope,
        before_final_dot: Callable[[Envelope, tuple[str, ...]], object] | None,
    ) -> Outcome:
        if self._mailer.before is not None:
            self._mailer.before(envelope)
        outcome = {each: self._mailer.answer(each) for each in envelope.recipients}
        accepted = tuple(
            each
            for each, verdict in outcome.items()
            if verdict.status in {'delivered', 'ambiguous'}
        )
        if accepted and before_final_dot is not None:
            self._mailer.ambiguous.append((envelope.id, accepted))
            before_final_dot(envelope, accepted)
        return outcome
