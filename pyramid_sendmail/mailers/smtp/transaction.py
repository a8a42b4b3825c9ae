"""Mails that take their turns on a connection, each through one mail transaction or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ...envelope import Envelope, Outcome, Verdict

__all__ = ['Command', 'EnvelopeSource', 'MailTransaction']


class Command(NamedTuple):
    """A line to say; ``recipient``: whom RCPT is about."""

    verb: str
    line: bytes
    recipient: str = ''


@dataclass(slots=True)
class MailTransaction:
    """A mail on its way, and what is known of its recipients."""

    envelope: Envelope
    verdicts: dict[str, Verdict]
    todo: list[str]
    """Recipients that no mail transaction has asked about, or that were one too many for it."""
    asked: list[str] = field(default_factory=list)
    """Recipients of the present mail transaction."""
    accepted: list[str] = field(default_factory=list)
    """Those of them that the relay has accepted, and that have not had the text."""
    opened: bool = False
    """A mail transaction is being opened: its commands are said, or about to be."""
    answered: bool = False
    """The relay has answered MAIL: it is this mail that it talks about."""
    ambiguous: bool = False
    """A final dot was about to leave, or has: the mail is not untouched any more."""

    @property
    def outcome(self) -> Outcome:
        return {each: self.verdicts[each] for each in self.envelope.recipients}

    @property
    def decided(self) -> bool:
        """Whether no answer up to DATA can change anything."""
        if self.accepted or not self.verdicts:
            return False
        return all(each in self.verdicts for each in self.asked)

    @property
    def refused(self) -> bool:
        """Whether the relay has refused it, for somebody at least."""
        return any(verdict.reply for verdict in self.verdicts.values())

    def give(self, recipients: Iterable[str], verdict: Verdict) -> None:
        self.verdicts.update(dict.fromkeys(recipients, verdict))


class EnvelopeSource:
    """The envelopes, of which one may be pulled and looked at before it is taken.

    ``unfit``: gives verdicts for the recipients that the relay cannot be asked about.
    """

    def __init__(
        self, envelopes: Iterable[Envelope], unfit: Callable[[Envelope], dict[str, Verdict]]
    ) -> None:
        self._envelopes = iter(envelopes)
        self._unfit = unfit
        self._ahead: MailTransaction | None = None

    def peek(self) -> MailTransaction | None:
        """The mail whose turn is next, if there is one by now."""
        self._ahead = self._ahead or self._pull()
        return self._ahead

    def take(self) -> MailTransaction | None:
        """The next mail; None at the end."""
        mail, self._ahead = self._ahead, None
        return mail or self._pull()

    def _pull(self) -> MailTransaction | None:
        envelope = next(self._envelopes, None)
        if envelope is None:
            return None
        verdicts = self._unfit(envelope)
        return MailTransaction(
            envelope, verdicts, [each for each in envelope.recipients if each not in verdicts]
        )
