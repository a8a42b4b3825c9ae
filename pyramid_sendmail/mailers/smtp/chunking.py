"""Several mails under way on a connection at once, by CHUNKING (RFC 3030).

BDAT says how long a text is, so that nobody need be asked before it comes: MAIL, RCPT, BDAT and the
text of one mail after the other leave without waiting for answers. These come in the same order,
and mean what they mean in lock-step, but that the text has left already:

=============================  =============================================================
answer                         outcome
=============================  =============================================================
the road is closed, 452 at     nobody has got the mail: MailerUnavailable, if nobody has got
MAIL                           one behind it either; else deferred
lost, and all of the text      ambiguous for all who were not refused, with those behind it
may have left
lost, and it has not; or the   MailerUnavailable: the mail is untouched
relay has said 421 before it
hung up
=============================  =============================================================

A relay to which a text comes although its transaction was refused reads it, throws it away and
refuses it as well. RSET stands in front of each MAIL, and costs no round trip.

The first mail is asked about before its text leaves: of a connection that has died in silence
nothing is in doubt. Large mail, and mail to many recipients, goes by DATA while nothing else is
under way; so does the rest of a mail to more recipients than the relay takes in one go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...envelope import BLOCK_SIZE, Outcome, Reply, Verdict
from ...exceptions import MailerUnavailable, QueueError
from .connection import ConnectionLost
from .extensions import SessionOptions, closes, is_crowded, refusal
from .session import WINDOW, Sealing, SMTPSession
from .transaction import Command, EnvelopeSource, MailTransaction

__all__ = ['ChunkingSession']

OCTETS = 4 * BLOCK_SIZE
"""Octets of text that are under way at most: what is in doubt when the line is lost."""

_AROUND = 3
"""Commands of a mail besides its RCPTs: RSET, MAIL, BDAT."""


@dataclass(slots=True)
class Underway:
    """A mail whose text has left, or is about to.

    ``due``: answers that are to come. ``left``: whether its last octet may have left.
    ``closed``: why it could not be sent, without anybody's fault; and if the connection is stale.
    """

    mail: MailTransaction
    due: int = 0
    left: bool = True
    closed: tuple[str, bool] | None = None

    @property
    def settled(self) -> bool:
        return not (self.due or self.closed or self.mail.todo)

    def untouched(self, carried: bool) -> bool:
        """Whether the mail may be sent once more as if nothing had been; see SMTPSession."""
        return (
            self.closed is not None
            and not self.mail.ambiguous
            and (carried or not self.mail.refused)
        )


@dataclass(slots=True)
class Flight:
    """What is under way, in order, and what has come of it.

    ``ending``: nothing more is to join. ``farewell``: what the relay has said as it closes.
    """

    source: EnvelopeSource
    before_final_dot: Sealing | None
    mails: deque[Underway] = field(default_factory=deque)
    ending: bool = False
    farewell: str = ''
    lost: ConnectionLost | None = None
    hung_up: bool = False
    trouble: QueueError | None = None

    @property
    def octets(self) -> int:
        return sum(each.mail.envelope.size for each in self.mails if each.due)


class ChunkingSession(SMTPSession):
    """See SMTPSession; for a relay that offers PIPELINING and CHUNKING."""

    def __init__(self, *arguments: Any, options: SessionOptions, **named: Any) -> None:
        super().__init__(*arguments, options=options, **named)
        self._mails = options.window

    def _turn(
        self, mail: MailTransaction, source: EnvelopeSource, before_final_dot: Sealing | None
    ) -> Iterator[Outcome]:
        if not (mail.todo and self._is_light(mail)):
            yield from super()._turn(mail, source, before_final_dot)
            return
        flight = Flight(source, before_final_dot)
        try:
            self._ask(mail)
            if mail.accepted and self._over is None:
                self._fill(flight, self._sealed(flight, mail, mail.accepted))
        except MailerUnavailable:
            raise
        except BaseException:
            self.abandon()
            raise
        if not flight.mails:
            yield mail.outcome
            return
        yield from self._fly(flight)

    def _follower(self, mail: MailTransaction, source: EnvelopeSource) -> MailTransaction | None:
        return mail if mail.todo else None

    def _is_light(self, mail: MailTransaction) -> bool:
        """Whether it may share the line."""
        recipients = len(mail.todo)
        return (
            mail.envelope.size <= BLOCK_SIZE
            and recipients <= self._max_recipients
            and recipients + _AROUND <= WINDOW
        )

    def _ask(self, mail: MailTransaction) -> None:
        """Have the recipients of the first mail accepted."""
        try:
            self._open(mail, data=False)
            self._converse(mail)
            mail.opened = False
            self._carried = self._carried or not mail.accepted
        except ConnectionLost as lost:
            self._bear(mail, lost)

    def _fly(self, flight: Flight) -> Iterator[Outcome]:
        """Keep the window full, and yield what comes of each mail."""
        while True:
            while flight.mails and flight.mails[0].settled:
                yield flight.mails.popleft().mail.outcome
            try:
                if not (flight.ending or self._wire.unread):
                    self._fill(flight)
                if not self._said:
                    break
                self._hear(flight)
            except BaseException:
                self.abandon()
                raise
        untouched = self._land(flight)
        for each in flight.mails:
            if each.mail.todo and self._over is not None:
                self._lose(each.mail, self._over[0])
            try:
                # What is left of a mail to many goes by DATA, now that it can.
                yield from super()._turn(each.mail, flight.source, flight.before_final_dot)
            except QueueError as error:
                # Those behind it have had their answers.
                flight.trouble = flight.trouble or error
        if flight.trouble is not None:
            raise flight.trouble
        if untouched is not None:
            reason, stale = untouched
            self._unavailable(reason, stale=stale)

    def _fill(self, flight: Flight, texts: bytes = b'') -> None:
        """Have as many mails leave as the window has room for, behind these texts."""
        group, length = [texts], len(texts)
        ends = [(each, length) for each in flight.mails if texts]
        try:
            while (mail := self._next(flight)) is not None:
                text = self._sealed(flight, mail, mail.todo)
                group.append(text)
                length += len(text)
                ends.append((flight.mails[-1], length))
        except QueueError as error:
            flight.trouble, flight.ending = error, True
        if length:
            try:
                self._wire.write(b''.join(group))
            except ConnectionLost as lost:
                flight.lost, flight.ending = lost, True
                for each, end in ends:
                    each.left = end <= length - lost.unsent

    def _next(self, flight: Flight) -> MailTransaction | None:
        """The mail that may join, if there is one by now."""
        mail = None if flight.ending else flight.source.peek()
        if mail is None or not self._is_light(mail):
            flight.ending = True
        elif (
            len(flight.mails) < self._mails
            and len(self._said) + len(mail.todo) + _AROUND <= WINDOW
            and flight.octets + mail.envelope.size <= OCTETS
        ):
            return flight.source.take()
        return None

    def _sealed(self, flight: Flight, mail: MailTransaction, recipients: list[str]) -> bytes:
        """What leaves for a mail that joins; somebody has written down that it does."""
        if not recipients:
            # This relay cannot be asked about any of them.
            flight.mails.append(Underway(mail))
            return b''
        if flight.before_final_dot is not None:
            flight.before_final_dot(mail.envelope, tuple(recipients))
        if not mail.accepted:
            self._open(mail, data=False, reset=True)
            mail.opened = False
        raw = mail.envelope.raw
        self._unsaid.append(Command('BDAT', b'BDAT %d LAST\r\n' % len(raw)))
        flight.mails.append(Underway(mail, len(self._unsaid)))
        lines = [command.line for command in self._unsaid]
        self._said.extend(self._unsaid)
        self._unsaid.clear()
        return b''.join((*lines, raw))

    def _hear(self, flight: Flight) -> None:
        """Hear the next answer."""
        each = next(each for each in flight.mails if each.due)
        command = self._said.popleft()
        timeout = self._timeouts.final if command.verb == 'BDAT' else self._timeouts.command
        if flight.lost is not None or flight.farewell:
            timeout = self._timeouts.quit
        try:
            reply = self._wire.reply(timeout)
            self._expect_silence()
            self._note(flight, each, command, reply)
            each.due -= 1
        except ConnectionLost as lost:
            flight.lost, flight.ending = flight.lost or lost, True
            flight.hung_up = lost.hung_up
            self._said.clear()

    def _note(self, flight: Flight, each: Underway, command: Command, reply: Reply) -> None:
        verb, mail = command.verb, each.mail
        if reply.code == 421:
            flight.farewell = flight.farewell or f'{verb} was answered {reply}'
            flight.ending = True
        if reply.code // 100 not in (2, 4, 5):
            raise ConnectionLost(f'the relay answered {verb} with {reply}')
        if verb == 'BDAT':
            self._carried, self._begun = True, reply.code >= 400
            recipients, mail.accepted = mail.accepted, []
            if recipients:
                mail.ambiguous = True
                positive = reply.code < 400
                mail.give(recipients, Verdict('delivered', reply) if positive else refusal(reply))
        elif verb == 'RCPT' and not self._begun:
            return  # as it was to be expected
        elif closes(reply) or (verb == 'MAIL' and reply.code == 452 and is_crowded(reply)):
            each.closed = each.closed or (
                f'{verb} was answered {reply}',
                reply.code in (421, 452),
            )
            self._begun = self._begun and verb == 'RCPT'
            flight.ending = True
        else:
            self._heed(mail, command, reply)
            flight.ending = flight.ending or bool(mail.todo)

    def _land(self, flight: Flight) -> tuple[str, bool] | None:
        """Nothing more is heard. Have verdicts for all, but for the last mails if they are
        untouched: these are taken off; return why they are, and whether the connection is stale."""
        mails, reason = flight.mails, f'the connection was lost: {flight.lost}'
        for each in mails:
            if each.due and not each.mail.decided:
                self._judge(flight, each, reason)
        closed = next((each.closed for each in mails if each.closed), None)
        if flight.lost is not None:
            self._break(reason)
        elif flight.farewell or closed:
            self._wire.lost = bool(flight.farewell)
            told, stale = closed or (flight.farewell, True)
            self._end(told, stale=stale)
        behind = []
        while mails and (mails[-1].untouched(self._carried) or not mails[-1].mail.asked):
            behind.append(mails.pop())
        untouched = [each for each in behind if each.closed]
        if not untouched:
            # Only mail that this relay cannot be asked about.
            mails.extend(reversed(behind))
        for each in mails:
            if each.closed:
                verdict = Verdict('deferred', None, f'{self.name}: {each.closed[0]}')
                for recipient in each.mail.asked:
                    each.mail.verdicts.setdefault(recipient, verdict)
        return untouched[-1].closed if untouched else None

    def _judge(self, flight: Flight, each: Underway, reason: str) -> None:
        """The line was lost before a mail had its last answer."""
        if not each.left:
            each.closed = each.closed or (reason, True)
        elif flight.farewell and flight.hung_up:
            each.closed = each.closed or (flight.farewell, True)
        else:
            each.closed = None
            verdict = Verdict(
                'ambiguous', None, f'{self.name}: no answer to the whole message: {flight.lost}'
            )
            for recipient in each.mail.asked:
                each.mail.verdicts.setdefault(recipient, verdict)
