"""One mail on its way through a session, in one mail transaction or several."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ....envelope import Envelope, Outcome, Reply, Verdict
from .extensions import is_command_error

__all__ = ['Command', 'MailTransaction', 'Stage']

Stage = Literal['waiting', 'commands', 'ready', 'text', 'sent']
"""Where the present transaction of a mail is.

============  ==============================================================
``waiting``   nothing of it has left
``commands``  its commands have left, or are about to
``ready``     the relay waits for the text
``text``      a part of the text has left
``sent``      all of the text has left, or nothing more will leave
============  ==============================================================
"""


@dataclass(slots=True, eq=False)
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
    stage: Stage = 'waiting'
    answered: bool = False
    """The relay has replied to MAIL."""
    ambiguous: bool = False
    """A final dot may have left: this attempt counts."""
    replies_due: int = 0
    """How many replies are still to come."""
    behind_dot: bool = False
    """The commands left together with the final dot of the mail before."""
    discarding: bool = False
    """The replies that are still to come change nothing for its recipients."""
    misplaced: bool = False
    """The relay accepted a recipient, though it had refused the mail."""
    surplus: int = 0
    """How many recipients the relay had no room for, in the present transaction."""
    chunked: bool = False
    """The text leaves by BDAT, without waiting for the replies to the commands."""
    may_have_left: bool = True
    """By BDAT: whether the last byte of the text may have left."""
    session_failure: tuple[str, bool] | None = None
    """By BDAT: a reason that is not the mail's fault, and whether the connection was stale."""

    @property
    def outcome(self) -> Outcome:
        """The verdicts, in the order of the recipients. Raises KeyError if one is missing."""
        return {each: self.verdicts[each] for each in self.envelope.recipients}

    @property
    def complete(self) -> bool:
        """Whether every recipient has a verdict, and no reply is due."""
        return self.stage == 'sent' and not (self.replies_due or self.todo or self.session_failure)

    @property
    def decided(self) -> bool:
        """Whether every verdict that can come before the text is known."""
        if self.accepted or not self.verdicts:
            return False
        return all(each in self.verdicts for each in self.asked)

    @property
    def command_error(self) -> Reply | None:
        """A reply by which all of ``asked`` were refused because of the command."""
        replies = [self.verdicts[each].reply for each in self.asked if each in self.verdicts]
        if not replies or len(replies) < len(self.asked):
            return None
        if all(reply is not None and is_command_error(reply) for reply in replies):
            return replies[0]
        return None

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


class Command(NamedTuple):
    """A command line, and the mail that it belongs to; ``recipient``: the one that an RCPT names.

    The verb of a reply to the final dot is '.'; ``recipients`` are those that it is about.
    """

    verb: str
    line: bytes
    mail: MailTransaction
    recipient: str = ''
    recipients: tuple[str, ...] = ()
