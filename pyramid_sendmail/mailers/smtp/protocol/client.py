"""SMTPClient: one connection to a relay, from the greeting to QUIT, without input and output."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping

from ....envelope import Envelope, Outcome
from ....exceptions import MailerUnavailable
from ...session import BeforeFinalDot
from ..options import DEFAULT_SESSION, DEFAULT_TIMEOUTS, SessionOptions, Timeouts
from .common_exchange import REPLIES, CommonExchange
from .extensions import Extensions
from .opening import Handshake, Opening, Wait
from .relay_memory import RelayMemory
from .replies import ReplyError, ReplyReader
from .state import SessionEnd
from .transfer import MailTransfer

__all__ = ['SMTPClient']

HUNG_UP = 'the relay closed the connection'

Steps = Generator[Wait | Handshake, tuple[int, list[str]], dict[str, str]]


class SMTPClient:
    """Speaks SMTP or LMTP on one connection. A driver moves the bytes and keeps the time.

    Over and over, until ``error`` or ``end`` is set, a driver

    1. takes the ``outcomes``, and hands out mails to ``send`` while ``wants_mail`` is true;
    2. writes what ``data_to_send`` returns, until that is empty; and reports ``write_failed``;
    3. does the ``handshake``, if there is one, and reports ``tls_started``;
    4. waits ``timeout`` seconds for bytes, and reports ``receive_data``, ``connection_lost`` or
       ``timed_out``. The time counts anew whenever ``replies`` has grown.

    ``name``: where the mail goes. ``end``: why nothing more can be sent; the mails without an
    outcome are untouched. ``error``: why the session could not be opened. ``handshake``: a TLS
    handshake that is to be done now. ``replies``: how many replies have come. ``quitting``: QUIT
    was said.
    """

    def __init__(
        self,
        name: str,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        options: SessionOptions = DEFAULT_SESSION,
        memory: RelayMemory | None = None,
        lmtp: bool = False,
        secure: bool = False,
    ) -> None:
        self.name = name
        self.error: MailerUnavailable | None = None
        self.handshake: Handshake | None = None
        self.replies = 0
        self.reader = ReplyReader()
        self.outcomes: deque[Outcome] = deque()
        """What became of the mails, in the order of ``send``; take them out."""
        self._timeouts = timeouts
        self._options = options
        self._memory = memory or RelayMemory()
        self._lmtp = lmtp
        self._secure = secure
        self._version = ''
        self._output: list[bytes] = []
        self._opening: Opening | None = None
        self._steps: Steps | None = None
        self._wait: Wait | None = None
        self._common: CommonExchange | None = None
        self._may_quit = True
        self.quitting = False

    def open(self, opening: Opening) -> None:
        """Begin with the greeting; ``ready`` becomes true."""
        self._opening = opening
        self._steps = opening.steps()
        self._advance(None)

    def write(self, line: bytes) -> None:
        """Put a command of the opening behind what is to be sent."""
        self._output.append(line)

    def start(self, extensions: Mapping[str, str]) -> None:
        """Begin with the first mail: what comes before was done. ``extensions``: the keywords of
        EHLO, with their parameters."""
        transfer = MailTransfer(
            self.name,
            Extensions(extensions, self._options),
            self.reader,
            timeouts=self._timeouts,
            options=self._options,
            memory=self._memory,
            secure=self._secure,
            lmtp=self._lmtp,
        )
        self.outcomes = transfer.outcomes
        self._common = CommonExchange(transfer)

    @property
    def _transfer(self) -> MailTransfer | None:
        """The general code, which is in charge from now on; None before ``start``."""
        common = self._common
        if common is None:
            return None
        if common.active:
            common.leave()
        return common.transfer

    @property
    def ready(self) -> bool:
        """Whether mail may be sent."""
        return self._common is not None

    @property
    def end(self) -> SessionEnd | None:
        return self._common.transfer.end if self._common is not None else None

    @property
    def idle(self) -> bool:
        """Whether no mail waits for its outcome."""
        common = self._common
        return common is None or not (common.active or common.transfer.mails)

    @property
    def may_quit(self) -> bool:
        """Whether QUIT may be sent, as far as the relay is concerned."""
        transfer = self._transfer
        if transfer is not None and (transfer.in_text or not transfer.may_quit):
            return False
        return self._may_quit

    @property
    def at_rest(self) -> bool:
        """Whether QUIT may be sent now: it would not stand in the middle of something."""
        transfer = self._transfer
        if transfer is None:
            return self._may_quit and self.error is not None
        if transfer.end is None and (transfer.awaiting_reply or not transfer.idle):
            return False
        return self.may_quit

    @property
    def waits(self) -> bool:
        """Whether certainly nothing can be done before a reply comes."""
        common = self._common
        return common is not None and common.waiting and not self.outcomes

    @property
    def wants_mail(self) -> bool:
        """Whether another mail may be handed to ``send`` now."""
        common = self._common
        if common is None:
            return False
        return common.wants_mail if common.active else common.transfer.wants_mail

    @property
    def timeout(self) -> float:
        """Seconds in which the next reply must come, or the handshake be done."""
        common = self._common
        if common is not None and common.waiting:
            return self._timeouts.final
        if self.quitting:
            return self._timeouts.quit
        step = self.handshake or self._wait
        if step is not None:
            return step.timeout
        return self._timeouts.command if common is None else common.transfer.timeout

    @property
    def before_final_dot(self) -> BeforeFinalDot | None:
        """See IMailSession.send."""
        return self._common.transfer.before_final_dot if self._common is not None else None

    @before_final_dot.setter
    def before_final_dot(self, call: BeforeFinalDot | None) -> None:
        assert self._common is not None
        self._common.transfer.before_final_dot = call

    def send(self, envelope: Envelope) -> None:
        """Take a mail, where ``wants_mail`` is true."""
        common = self._common
        assert common is not None
        if common.active:
            common.send(envelope)
        else:
            common.transfer.send(envelope)

    def source_failed(self, error: BaseException) -> bool:
        """There is no further mail, because of an error. Return whether the mails in flight are
        finished first; the error is that of ``end`` then."""
        transfer = self._transfer
        return transfer is not None and transfer.source_failed(error)

    def quit(self) -> None:
        """Say QUIT, where ``may_quit`` is true, and wait for the reply."""
        self.quitting = True
        self._output.append(b'QUIT\r\n')

    def close(self, reason: str = 'the session is closed') -> None:
        """Nothing more is sent; the driver closes the connection. Mails without an outcome are
        untouched then."""
        self._may_quit = False
        self.reader.clear()
        transfer = self._transfer
        if transfer is not None:
            transfer.close(reason)

    def data_to_send(self) -> bytes:
        """Return bytes to write now, b'' if there are none; ask again when they have left.

        Raises what reading the text of a mail raises.
        """
        if self._output:
            data = b''.join(self._output)
            self._output.clear()
            return data
        common = self._common
        if common is None or self.quitting:
            return b''
        if common.active:
            return common.data_to_send()
        transfer = common.transfer
        if self.reader.unread and transfer.awaiting_reply:
            self._read_replies(transfer)
        return transfer.data_to_send()

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the relay; b'' if it closed the connection.

        Raises what reading the text of a mail raises: 354 may be among the bytes.
        """
        common = self._common
        if common is not None and common.waiting and common.receive(data):
            self.replies += REPLIES
            return
        if self.quitting:
            self.replies += 1
            return
        if not data:
            self.connection_lost(HUNG_UP, hung_up=True)
            return
        self.reader.feed(data)
        if self.handshake is not None:
            self._not_before_handshake()
        elif common is not None:
            if common.active:
                common.leave()
            self._read_replies(common.transfer)
            common.enter()
        else:
            self._read_opening()

    def tls_started(self, version: str) -> None:
        """The handshake is done. ``version``: of TLS, as 'TLSv1.3'."""
        assert self._opening is not None
        self.handshake = None
        self._opening.secure = self._secure = True
        self._version = version
        self._advance(None)

    def write_failed(self, reason: str, unsent: int, remedy: str = '') -> None:
        """The last ``data_to_send`` could not be written. ``reason``: in words. ``unsent``: how
        many bytes of it certainly did not leave."""
        transfer = self._transfer
        if transfer is not None and not self.quitting:
            transfer.write_failed(reason, unsent)
        else:
            self.connection_lost(reason, remedy=remedy)

    def timed_out(self) -> None:
        """No reply has come in time."""
        self.connection_lost(f'while waiting for a reply: timed out after {self.timeout:g} s')

    def connection_lost(self, reason: str, *, hung_up: bool = False, remedy: str = '') -> None:
        """Nothing more will come. ``hung_up``: the relay closed the connection. ``remedy``: what
        to do about it."""
        self._may_quit = False
        transfer = self._transfer
        if transfer is not None:
            transfer.connection_lost(reason, hung_up=hung_up)
        elif self.error is None and self._opening is not None:
            wait = self.handshake or self._wait
            assert wait is not None
            self.handshake = None
            own = wait.remedy if isinstance(wait, Wait) else ''
            self._failed(self._opening.unavailable(wait.phase, reason, remedy or own))

    def _read_replies(self, transfer: MailTransfer) -> None:
        next_reply = self.reader.next_reply
        try:
            while transfer.awaiting_reply and (reply := next_reply()) is not None:
                self.replies += 1
                transfer.on_reply(reply)
        except ReplyError as error:
            self._may_quit = False
            transfer.connection_lost(str(error))

    def _read_opening(self) -> None:
        try:
            while self._wait is not None and (lines := self.reader.next_lines()) is not None:
                self.replies += 1
                self._advance(lines)
                if self._output and self.reader.unread[:1] in (b'2', b'3'):
                    # It would be taken for the reply to a command that has not left.
                    self.connection_lost('the relay sent more replies than it got commands')
        except ReplyError as error:
            self.connection_lost(str(error))

    def _advance(self, lines: tuple[int, list[str]] | None) -> None:
        """Go on to the next step of the opening."""
        assert self._steps is not None
        assert self._opening is not None
        self._wait = None
        try:
            step = next(self._steps) if lines is None else self._steps.send(lines)
        except StopIteration as end:
            if self._version:
                self.name = f'{self.name} ({self._version})'
            self.reader.secrets = self._opening.secrets
            self._steps = None
            self.start(end.value)
        except MailerUnavailable as error:
            self._failed(error)
        else:
            if isinstance(step, Wait):
                self._wait = step
            else:
                self.handshake = step
                if self.reader.unread:
                    self._not_before_handshake()

    def _not_before_handshake(self) -> None:
        """Refuse bytes in front of the handshake: an attacker could have put replies there, which
        would count as if they had come by TLS (CVE-2011-0411)."""
        self.connection_lost('the relay sent more than its reply before the TLS handshake')

    def _failed(self, error: MailerUnavailable) -> None:
        self._output.clear()
        self._wait = None
        self.error = error.with_traceback(None)
