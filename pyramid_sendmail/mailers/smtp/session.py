"""A session by SMTP or LMTP that blocks: the driver of one SMTPClient on one socket.

Direct delivery, ``send_now`` and code that calls ``connect`` use it. The queue processor drives the
same SMTPClient without blocking.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from zope.interface import implementer

from ...envelope import Envelope, Outcome
from ...exceptions import MailerUnavailable, QueueError
from ...interfaces import IMailSession
from ..session import BeforeFinalDot, describe_error
from .connection import ConnectionLost, SMTPConnection
from .protocol.client import SMTPClient
from .tls import HandshakeSettings
from .tls import remedy as tls_remedy

__all__ = ['SMTPSession']


@implementer(IMailSession)
class SMTPSession:
    """A session on a connected socket."""

    def __init__(self, connection: SMTPConnection, client: SMTPClient) -> None:
        self._connection = connection
        self._client = client
        self._raised = False  # the error of before_final_dot

    @property
    def name(self) -> str:
        return self._client.name

    def open(self, handshake: HandshakeSettings) -> None:
        """Do everything up to the first mail. Raises MailerUnavailable; close the session then."""
        client = self._client
        while not client.ready and client.error is None:
            if client.handshake is not None:
                self._start_tls(handshake)
            elif not self._write_once():
                self._read_reply()
        if client.error is not None:
            raise client.error

    def send(
        self, envelopes: Iterable[Envelope], *, before_final_dot: BeforeFinalDot | None = None
    ) -> Iterator[Outcome]:
        """See IMailSession."""
        client = self._client
        if client.outcomes or not (client.idle or client.end is not None):
            self._stop('an earlier send was not finished')
            client.outcomes.clear()
        client.before_final_dot = before_final_dot
        source: Iterator[Envelope] | None = iter(envelopes)
        while True:
            while client.outcomes:
                yield client.outcomes.popleft()
            while source is not None and client.wants_mail:
                envelope = self._next(source)
                if envelope is None:
                    source = None
                else:
                    client.send(envelope)
            if client.end is not None:
                self._raise_end(source)
                return
            try:
                wrote = self._write_once()
                if wrote or client.outcomes or client.end is not None:
                    continue
                if client.idle:
                    return
                self._read_reply()
            except BaseException:
                # The transfer stopped in the middle of a message; those before it count.
                outcomes = list(client.outcomes)
                self.abandon()
                yield from outcomes
                raise

    def close(self) -> None:
        """See IMailSession."""
        client, connection = self._client, self._connection
        if client.at_rest and not connection.lost:
            client.quit()
            connection.limit_writes(client.timeout)
            if self._write_once():
                self._read_reply()
        self.abandon()

    def abandon(self) -> None:
        """See IMailSession."""
        self._stop('the session is closed')

    def _stop(self, reason: str) -> None:
        self._connection.close()
        self._client.close(reason)

    def _next(self, source: Iterator[Envelope]) -> Envelope | None:
        """Return the next mail; None at the end, or if those in flight have to be finished first.

        Raises what the source raises.
        """
        try:
            return next(source, None)
        except BaseException as error:
            if isinstance(error, QueueError) and self._client.source_failed(error):
                return None
            if not self._client.idle:
                self.abandon()
            raise

    def _raise_end(self, source: Iterator[Envelope] | None) -> None:
        """Raise why nothing more can be sent, if there is more to send."""
        client = self._client
        end = client.end
        assert end is not None
        if not client.may_quit:
            self._connection.close()
        if end.error is not None and not self._raised:
            self._raised = True
            raise end.error
        if not client.idle or (source is not None and next(source, None) is not None):
            raise MailerUnavailable(
                f'{client.name}: {end.reason}', stale=end.stale, reply=end.reply
            )

    def _write_once(self) -> bool:
        """Write what may leave now; return whether there was anything."""
        client = self._client
        try:
            data = client.data_to_send()
            if not data:
                return False
            self._connection.write(data)
        except ConnectionLost as lost:
            client.write_failed(str(lost), lost.unsent, lost.remedy)
        return True

    def _read_reply(self) -> None:
        """Wait until a reply is complete, or the connection is lost."""
        client, connection = self._client, self._connection
        timeout = client.timeout
        deadline = time.monotonic() + timeout
        before = client.replies
        while client.replies == before and (
            client.quitting or (client.end is None and client.error is None)
        ):
            try:
                data = connection.receive(deadline, timeout)
            except ConnectionLost as lost:
                client.connection_lost(str(lost), hung_up=lost.hung_up, remedy=lost.remedy)
                return
            client.receive_data(data)

    def _start_tls(self, settings: HandshakeSettings) -> None:
        client = self._client
        handshake = client.handshake
        assert handshake is not None
        try:
            self._connection.start_tls(settings.context(), settings.host, handshake.timeout)
        except OSError as error:
            detail = describe_error(error, handshake.timeout)
            remedy = tls_remedy(error, speaks_tls=handshake.phase == 'STARTTLS')
            client.connection_lost(detail, remedy=remedy)
        else:
            client.tls_started(self._connection.version)
