"""Several mails in flight, by CHUNKING (RFC 3030); see ``transfer``."""

from __future__ import annotations

from ....envelope import BLOCK_SIZE, Reply, Verdict
from .extensions import (
    final_verdict,
    is_sequence_error,
    is_session_failure,
    is_session_full,
    session_failure_reason,
)
from .state import MAX_PIPELINED_COMMANDS, UNASKED_REPLY, TransferState
from .transaction import Command, MailTransaction

__all__ = ['MAX_BYTES_IN_FLIGHT', 'Flight']

MAX_BYTES_IN_FLIGHT = 4 * BLOCK_SIZE
"""Bytes of text in flight at most: what becomes ambiguous if the connection is lost."""

_COMMANDS_BESIDE_RCPT = 3  # RSET, MAIL, BDAT


class Flight:
    """The mails in flight on a connection.

    ``complete``: no more mail joins. ``error``: the mail that could not join, if there is one, and
    why: raised when those in flight have their outcomes. ``ends``: the mails in the last output,
    and how many bytes of it stand behind each.
    """

    def __init__(self, state: TransferState) -> None:
        self.complete = False
        self.error: tuple[MailTransaction | None, BaseException] | None = None
        self.ends: list[tuple[MailTransaction, int]] = []
        self._state = state

    @property
    def active(self) -> bool:
        """Whether mails are in flight."""
        mails = self._state.mails
        return bool(mails) and mails[0].chunked

    def finish(self) -> None:
        """All replies have come: a mail may join again, or the error ends the session."""
        state = self._state
        self.complete = False
        if self.error is not None:
            mail, error = self.error
            if (state.mails[0] if state.mails else None) is mail:
                state.stop('the session is closed', stale=True, error=error)

    def cut_short(self, unsent: int) -> None:
        """The last output could not be sent; ``unsent``: how many bytes of it."""
        self.complete = True
        for each, behind in self.ends:
            each.may_have_left = unsent <= behind

    def may_share(self, mail: MailTransaction) -> bool:
        """Return whether the mail is small enough to be in flight with others."""
        state = self._state
        recipients = len(mail.todo)
        return (
            mail.envelope.size <= BLOCK_SIZE
            and recipients <= state.recipient_limit
            and recipients + _COMMANDS_BESIDE_RCPT <= MAX_PIPELINED_COMMANDS
        )

    def has_room(self) -> bool:
        """Return whether a small mail may join those in flight."""
        state = self._state
        if self.complete or not state.memory.pipelines_behind_dot:
            return False
        leads = state.at is not None and state.at.stage == 'ready'
        if not (leads or self.active):
            return False
        if state.reader.unread:
            return False  # first the replies that have come
        waiting = [each for each in state.mails if each.stage == 'waiting']
        commands = sum(len(each.todo) + _COMMANDS_BESIDE_RCPT for each in waiting)
        size = sum(each.envelope.size for each in waiting)
        return (
            all(map(self.may_share, waiting))
            and len(state.mails) < state.window
            and len(state.awaiting) + commands + _COMMANDS_BESIDE_RCPT < MAX_PIPELINED_COMMANDS
            and self._bytes_in_flight + size < MAX_BYTES_IN_FLIGHT
        )

    @property
    def _bytes_in_flight(self) -> int:
        state = self._state
        return sum(each.envelope.size for each in state.mails if each.chunked and each.replies_due)

    def next_to_join(self) -> MailTransaction | None:
        """Return the mail that may join those in flight now."""
        state = self._state
        if self.complete or self.error is not None:
            return None
        mail = next((each for each in state.mails if each.stage == 'waiting'), None)
        if (
            mail is not None
            and self.may_share(mail)
            and len(state.awaiting) + len(mail.todo) + _COMMANDS_BESIDE_RCPT
            <= MAX_PIPELINED_COMMANDS
            and self._bytes_in_flight + mail.envelope.size <= MAX_BYTES_IN_FLIGHT
        ):
            return mail
        return None

    def fill(self, first: MailTransaction | None) -> bytes:
        """Return commands and texts of as many mails as there is room for, beginning with
        ``first``: the mail that leads the flight, or one that joins it."""
        state = self._state
        group: list[bytes] = []
        joined: list[tuple[MailTransaction, int]] = []
        length = 0
        mail = first
        while mail is not None:
            try:
                text = self._join(mail)
            except BaseException as error:  # noqa: BLE001 - the driver raises it
                if mail is first and not self.active:
                    state.abort(error)
                    return b''
                self.error, self.complete = (mail, error), True
                break
            group.append(text)
            length += len(text)
            joined.append((mail, length))
            mail = self.next_to_join()
        state.at = None
        self.ends = [(each, length - end) for each, end in joined]
        if self.error is not None:
            state.finish_mails()
        return b''.join(group)

    def _join(self, mail: MailTransaction) -> bytes:
        """Add a mail to the flight and return its commands and text."""
        state = self._state
        recipients = tuple(mail.accepted or mail.todo)
        if state.before_final_dot is not None:
            state.before_final_dot(mail.envelope, recipients)
        if not mail.accepted:
            state.open_transaction(mail, data=False, reset=True)
        raw = mail.envelope.raw
        state.unsent.append(Command('BDAT', b'BDAT %d LAST\r\n' % len(raw), mail))
        mail.chunked, mail.stage = True, 'sent'
        mail.replies_due += len(state.unsent)
        lines = [command.line for command in state.unsent]
        state.awaiting.extend(state.unsent)
        state.unsent.clear()
        return b''.join((*lines, raw))

    def on_reply(self, command: Command, reply: Reply) -> str:
        """Record what a reply means for a mail in flight. Return why the connection is lost, or
        ''."""
        state = self._state
        verb, mail = command.verb, command.mail
        if reply.code // 100 not in (2, 4, 5) or state.has_unread():
            mail.replies_due += 1
            known = reply.code // 100 in (2, 4, 5)
            return UNASKED_REPLY if known else f'the relay answered {verb} with {reply}'
        if reply.code == 421:
            state.announce_closing(reply, f'{verb} was answered {reply}')
            self.complete = True
        if verb == 'BDAT':
            state.has_answered, state.in_transaction = True, reply.code >= 400
            recipients, mail.accepted = mail.accepted, []
            if recipients:
                mail.ambiguous = True
                mail.set_verdict(recipients, final_verdict(reply))
        elif verb == 'RCPT' and not state.in_transaction:
            pass  # MAIL was refused, and so is RCPT
        elif reply.code < 400:
            state.accept(command)
        elif verb == 'RSET' and not is_session_failure(reply):
            mail.replies_due += 1
            return f'the relay answered RSET with {reply}'
        elif (
            is_session_failure(reply)
            or is_sequence_error(reply)
            or (verb == 'MAIL' and is_session_full(reply))
        ):
            if is_sequence_error(reply):
                state.memory.refused_behind_dot(state.name)
            mail.session_failure = mail.session_failure or (
                session_failure_reason(verb, reply, secure=state.secure),
                reply.code in (421, 452, 503),
            )
            state.ended_by = state.ended_by or reply
            state.in_transaction = state.in_transaction and verb == 'RCPT'
            self.complete = True
        else:
            state.refuse(command, reply)
            self.complete = self.complete or bool(mail.todo)
        return ''

    def land(self, *, lost: str = '', hung_up: bool = False) -> None:
        """No more replies will come for the mails in flight: give each a verdict, except the
        untouched ones at the end. Mails with recipients left go on by DATA."""
        state = self._state
        flight = [each for each in state.mails if each.chunked]
        lost = state.cut or lost
        reason = f'the connection was lost: {lost}'
        for each in flight:
            if each.replies_due and not each.decided:
                self._lost_in_flight(each, lost, hung_up=hung_up)
            each.replies_due = 0
        failure = next((each.session_failure for each in flight if each.session_failure), None)
        untouched: list[MailTransaction] = []
        for each in reversed(flight):
            if each.session_failure is None or not each.is_untouched(state.has_answered):
                break
            untouched.append(each)
        for each in flight:
            if each.session_failure and each not in untouched:
                state.defer_rest(each, each.session_failure[0])
            elif each.session_failure is None:
                each.stage = 'waiting' if each.todo else 'sent'
                each.chunked = not each.todo
        if not (lost or state.closing or failure):
            return
        for each in flight:
            if each.todo and each not in untouched:
                state.defer_rest(each, reason if lost else (failure or (state.closing,))[0])
        state.may_quit = not (lost or state.closing)
        if untouched:
            end_reason, stale = untouched[0].session_failure or (reason, True)
            state.stop(end_reason, stale=stale and state.has_answered)
        elif lost:
            state.stop(reason, stale=True)
        else:
            end_reason, stale = failure or (state.closing, True)
            state.stop(end_reason, stale=stale)

    def _lost_in_flight(self, mail: MailTransaction, lost: str, *, hung_up: bool) -> None:
        """The connection was lost before a mail had its last reply."""
        state = self._state
        if not mail.may_have_left:
            reason = f'the connection was lost: {lost}'
            mail.session_failure = mail.session_failure or (reason, True)
        elif state.closing and hung_up:
            mail.session_failure = mail.session_failure or (state.closing, True)
        else:
            mail.session_failure = None
            problem = f'{state.name}: no answer to the whole message: {lost}'
            mail.set_missing_verdicts(mail.asked, Verdict('ambiguous', None, problem))
