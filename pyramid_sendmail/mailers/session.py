"""A conversation by SMTP: mail after mail on one connection (RFC 5321, 3.3).

What an answer means, for the mail's recipients and for the connection:

=============================  =============================================================
answer                         outcome
=============================  =============================================================
421, 530, 534, 535, 538,       the road is closed: MailerUnavailable, nobody is to blame
454 4.7.x, up to DATA
lost before MAIL's answer      MailerUnavailable
lost before the final dot      a stale connection, MailerUnavailable, if it has answered for a
                               mail before; else deferred
lost after the final dot       ambiguous for the accepted recipients
4xx, 5xx at MAIL               deferred, failed: every recipient
4xx, 5xx at RCPT               deferred, failed: this recipient
4xx, 5xx at DATA, final dot    deferred, failed: the accepted recipients
2xx at the final dot           delivered: the accepted recipients
=============================  =============================================================

Only the first digit of other codes counts (RFC 5321, 4.2.1). A time-out, and a reply that is
none or makes no sense where it came, is a lost line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NoReturn

from zope.interface import implementer

from ..envelope import Envelope, Outcome, Reply, Verdict
from ..exceptions import MailerUnavailable
from ..interfaces import IMailSession
from .path import is_path
from .wire import BLOCK, LineLost, Timeouts, Wire

__all__ = ['SMTPSession', 'Sealing', 'stuffed']

Sealing = Callable[[Envelope, tuple[str, ...]], object]

_CLOSED = frozenset({421, 530, 534, 535, 538})

_END = 5  # octets of CRLF.CRLF


def stuffed(raw: bytes) -> bytes:
    """Return what follows DATA: dots doubled at line starts, CRLF.CRLF at the end (4.5.2)."""
    text = raw.replace(b'\r\n.', b'\r\n..')
    return b''.join(
        (
            b'.' if raw.startswith(b'.') else b'',
            text,
            b'.\r\n' if text.endswith(b'\r\n') or not text else b'\r\n.\r\n',
        )
    )


@implementer(IMailSession)
class SMTPSession:
    """One connection to a relay that has greeted us and knows us.

    ``extensions``: EHLO's keywords, with their parameters. ``name``: the mailer's.
    """

    def __init__(
        self, wire: Wire, *, name: str, extensions: Mapping[str, str], timeouts: Timeouts
    ) -> None:
        self._wire = wire
        self._name = name
        self._extensions = extensions
        self._timeouts = timeouts
        limit = extensions.get('SIZE', '')
        self._limit = int(limit) if limit.isascii() and limit.isdigit() else 0
        self._begun = False  # the relay holds a mail transaction
        self._carried = False  # the relay has answered for a mail: the road was open
        self._over: tuple[str, bool] | None = None  # why nothing more can be sent, and if stale

    def send(
        self, envelopes: Iterable[Envelope], *, sealing: Sealing | None = None
    ) -> Iterator[Outcome]:
        """See IMailSession."""
        for envelope in envelopes:
            if self._over is not None:
                reason, stale = self._over
                raise MailerUnavailable(f'{self._name}: {reason}', stale=stale)
            verdicts = self._unfit(envelope)
            recipients = [each for each in envelope.recipients if each not in verdicts]
            if recipients:
                try:
                    self._converse(envelope, recipients, verdicts, sealing)
                except MailerUnavailable:
                    raise
                except BaseException:
                    # Half a mail is on the line, and nobody knows which half.
                    self.abandon()
                    raise
            yield {each: verdicts[each] for each in envelope.recipients}

    def close(self) -> None:
        """See IMailSession."""
        self._wire.farewell(self._timeouts.quit)
        self._end('the session is closed', stale=True)

    def abandon(self) -> None:
        """See IMailSession."""
        self._wire.close()
        self._end('the session is closed', stale=True)

    def _unfit(self, envelope: Envelope) -> dict[str, Verdict]:
        """Verdicts for the recipients that this relay cannot be asked about."""
        raw = envelope.raw
        unicode_path = 'the relay takes no non-ASCII addresses (SMTPUTF8)'
        reason = ''
        if envelope.sender and not is_path(envelope.sender):
            reason = f'the sender {envelope.sender!r} is no address'
        elif not raw.count(b'\r\n') == raw.count(b'\n') == raw.count(b'\r'):
            reason = 'the message has line ends other than CRLF'
        elif self._limit and len(raw) > self._limit:
            reason = f'the message has {len(raw)} octets, and the relay takes {self._limit} (SIZE)'
        elif not raw.isascii() and '8BITMIME' not in self._extensions:
            reason = 'the message is not ASCII, and the relay takes nothing else (8BITMIME)'
        elif 'SMTPUTF8' not in self._extensions:
            if not envelope.sender.isascii():
                reason = unicode_path
            elif not raw.isascii() and not _head(raw).isascii():
                reason = 'the message has non-ASCII headers, and the relay takes none (SMTPUTF8)'
        verdicts = {}
        for recipient in envelope.recipients:
            if reason:
                verdicts[recipient] = Verdict('failed', None, reason)
            elif not is_path(recipient):
                verdicts[recipient] = Verdict('failed', None, f'{recipient!r} is no address')
            elif not recipient.isascii() and 'SMTPUTF8' not in self._extensions:
                verdicts[recipient] = Verdict('failed', None, unicode_path)
        return verdicts

    def _converse(
        self,
        envelope: Envelope,
        recipients: list[str],
        verdicts: dict[str, Verdict],
        sealing: Sealing | None,
    ) -> None:
        """Send one mail and add the verdicts."""
        answered = False
        try:
            self._reset()
            reply = self._ask(self._mail(envelope, recipients), 2)
            answered = True
            accepted = []
            if reply.code // 100 == 2:
                self._begun = True
                for recipient in recipients:
                    reply = self._ask(f'RCPT TO:<{recipient}>', 2)
                    if reply.code // 100 == 2:
                        accepted.append(recipient)
                    else:
                        verdicts[recipient] = _refusal(reply, crowded=bool(accepted))
                if accepted:
                    verdict = self._data(envelope, tuple(accepted), sealing)
                    verdicts.update(dict.fromkeys(accepted, verdict))
            else:
                verdicts.update(dict.fromkeys(recipients, _refusal(reply)))
            self._carried = True
        except LineLost as lost:
            if self._carried or not answered:
                self._unavailable(f'the connection was lost: {lost}', stale=self._carried)
            verdict = Verdict('deferred', None, f'{self._name}: the connection was lost: {lost}')
            for recipient in recipients:
                verdicts.setdefault(recipient, verdict)
            self._break(f'the connection was lost: {lost}')

    def _mail(self, envelope: Envelope, recipients: list[str]) -> str:
        command = f'MAIL FROM:<{envelope.sender}>'
        if 'SIZE' in self._extensions:
            command += f' SIZE={len(envelope.raw)}'
        paths = (envelope.sender, *recipients)
        if not envelope.raw.isascii():
            command += ' BODY=8BITMIME'
            paths = (*paths, _head(envelope.raw).decode('utf-8', 'replace'))
        if not all(path.isascii() for path in paths):
            command += ' SMTPUTF8'
        return command

    def _data(
        self, envelope: Envelope, accepted: tuple[str, ...], sealing: Sealing | None
    ) -> Verdict:
        reply = self._ask('DATA', 3, timeout=self._timeouts.data)
        if reply.code // 100 != 3:
            return _refusal(reply)
        text = memoryview(stuffed(envelope.raw))
        # The end leaves with the last of the text: one packet for a small mail.
        last = max(len(text) - BLOCK, 0)
        if last:
            self._wire.write(text[:last])
        if sealing is not None:
            sealing(envelope, accepted)
        try:
            self._wire.write(text[last:])
            reply = self._wire.reply(self._timeouts.final)
            if reply.code // 100 == 3:
                raise LineLost(f'the relay answered the final dot with {reply}')
        except LineLost as lost:
            if lost.unsent >= _END:
                raise
            self._break(f'the connection was lost: {lost}')
            return Verdict(
                'ambiguous', None, f'{self._name}: no answer to the whole message: {lost}'
            )
        self._begun = False
        if reply.code == 421:
            self._break(f'the relay has closed the connection: {reply}')
        return _refusal(reply) if reply.code // 100 != 2 else Verdict('delivered', reply)

    def _reset(self) -> None:
        """Have the relay forget a mail that ended before DATA."""
        if self._begun:
            reply = self._ask('RSET', 2)
            if reply.code // 100 != 2:
                self._wire.lost = True
                raise LineLost(f'the relay answered RSET with {reply}')
            self._begun = False

    def _ask(self, command: str, expected: int, *, timeout: float | None = None) -> Reply:
        """Say it and return the reply, of the expected first digit or a refusal.

        Raises LineLost, or MailerUnavailable where the reply closes the road.
        """
        self._wire.write(command.encode() + b'\r\n')
        reply = self._wire.reply(timeout or self._timeouts.command)
        if reply.code in _CLOSED or (reply.code == 454 and reply.text.startswith('4.7.')):
            if reply.code == 421:
                self._wire.lost = True
            verb = command[:4]
            self._unavailable(f'{verb} was answered {reply}', stale=reply.code == 421)
        if reply.code // 100 not in (expected, 4, 5):
            self._wire.lost = True
            raise LineLost(f'the relay answered {command[:4]} with {reply}')
        return reply

    def _unavailable(self, reason: str, *, stale: bool) -> NoReturn:
        stale = stale and self._carried
        self._end(reason, stale=stale)
        raise MailerUnavailable(f'{self._name}: {reason}', stale=stale)

    def _break(self, reason: str) -> None:
        """This mail is answered; the next one needs another connection."""
        self._wire.close()
        self._end(reason, stale=True)

    def _end(self, reason: str, *, stale: bool) -> None:
        self._over = self._over or (reason, stale)


def _refusal(reply: Reply, *, crowded: bool = False) -> Verdict:
    """``crowded``: 552 then says that there are too many recipients, for now (4.5.3.1.10)."""
    passing = reply.code // 100 == 4 or (crowded and reply.code == 552)
    return Verdict('deferred' if passing else 'failed', reply)


def _head(raw: bytes) -> bytes:
    return raw.partition(b'\r\n\r\n')[0]
