"""One mail on its way through a session, in one mail transaction or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ...envelope import Envelope, Outcome, Verdict
from ..session import BeforeFinalDot

__all__ = ['MAX_PIPELINED_COMMANDS', 'Command', 'EnvelopeSource', 'MailTransaction']

MAX_PIPELINED_COMMANDS = 64
"""Commands that may wait for a reply. Their replies, of 512 bytes each, must fit into the buffers
of a connection, or both sides would wait for the other to read (RFC 2920, 3.1)."""


class Command(NamedTuple):
    """A command line; ``recipient``: the one that an RCPT names."""

    verb: str
    line: bytes
    recipient: str = ''


@dataclass(slots=True)
class MailTransaction:
    """A mail on its way, and what is known of its recipients.

    A mail to more recipients than the relay takes at once goes through several mail transactions
    of the protocol: ``todo`` shrinks with each.
    """

    envelope: Envelope
    verdicts: dict[str, Verdict]
    todo: list[str]
    """Recipients that no RCPT has named, or that the relay had no room for."""
    asked: list[str] = field(default_factory=list)
    """Recipients of the present transaction."""
    accepted: list[str] = field(default_factory=list)
    """Those of ``asked`` that the relay accepted, and that the text was not sent to yet."""
    opened: bool = False
    """The commands of a transaction were sent, or are about to be."""
    answered: bool = False
    """The relay has replied to MAIL."""
    ambiguous: bool = False
    """A final dot may have left: this attempt counts."""

    @property
    def outcome(self) -> Outcome:
        """The verdicts, in the order of the recipients. Raises KeyError if one is missing."""
        return {each: self.verdicts[each] for each in self.envelope.recipients}

    @property
    def decided(self) -> bool:
        """Whether every verdict that can come before the text is known."""
        if self.accepted or not self.verdicts:
            return False
        return all(each in self.verdicts for each in self.asked)

    @property
    def refused(self) -> bool:
        """Whether the relay has refused the mail for at least one recipient."""
        return any(verdict.reply for verdict in self.verdicts.values())

    def is_untouched(self, has_answered: bool) -> bool:
        """Return whether the mail may be sent again without counting this attempt.

        ``has_answered``: the relay has answered for a mail on this connection. If not, a refused
        recipient counts: relays hang up after too many unknown recipients, and the mail would be
        sent again for ever.
        """
        return not self.ambiguous and (has_answered or not self.refused)

    def set_verdict(self, recipients: Iterable[str], verdict: Verdict) -> None:
        """Give these recipients one verdict, in place of an earlier one."""
        self.verdicts.update(dict.fromkeys(recipients, verdict))

    def set_missing_verdicts(self, recipients: Iterable[str], verdict: Verdict) -> None:
        """Give those of the recipients that have no verdict this one."""
        for recipient in recipients:
            self.verdicts.setdefault(recipient, verdict)


class EnvelopeSource:
    """Takes envelopes from an iterable, one by one; ``peek`` pulls one before it is taken.

    ``rejected_before_sending``: returns verdicts for the recipients that the relay cannot be
    asked about. ``before_final_dot``: see IMailSession.
    """

    def __init__(
        self,
        envelopes: Iterable[Envelope],
        rejected_before_sending: Callable[[Envelope], dict[str, Verdict]],
        before_final_dot: BeforeFinalDot | None = None,
    ) -> None:
        self._envelopes = iter(envelopes)
        self._rejected_before_sending = rejected_before_sending
        self._before_final_dot = before_final_dot
        self._peeked: MailTransaction | None = None

    def peek(self) -> MailTransaction | None:
        """Return the next mail without taking it; None if there is none now."""
        self._peeked = self._peeked or self._pull()
        return self._peeked

    def take(self) -> MailTransaction | None:
        """Return the next mail; None at the end."""
        mail, self._peeked = self._peeked, None
        return mail or self._pull()

    def before_final_dot(self, mail: MailTransaction, recipients: Sequence[str]) -> None:
        """Announce that the text of a mail is about to leave for these recipients."""
        if self._before_final_dot is not None:
            self._before_final_dot(mail.envelope, tuple(recipients))

    def _pull(self) -> MailTransaction | None:
        envelope = next(self._envelopes, None)
        if envelope is None:
            return None
        verdicts = self._rejected_before_sending(envelope)
        return MailTransaction(
            envelope, verdicts, [each for each in envelope.recipients if each not in verdicts]
        )
