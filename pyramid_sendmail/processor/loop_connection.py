"""One connection of the loop: from the look-up of a name to the reply to QUIT, without blocking.

============== ==================================  ============================================
state          waits for                           then
============== ==================================  ============================================
``resolving``  the resolver's thread               ``connecting``
``connecting`` a socket that connects              ``speaking``
``handshake``  the other side of the handshake     ``speaking``
``speaking``   a reply, or room to write           ``idle``, ``quitting`` or ``closed``
``idle``       mail                                ``speaking``, ``quitting`` or ``closed``
``quitting``   the reply to QUIT                   ``closed``
============== ==================================  ============================================

It drives the same SMTPClient as the session that blocks, and writes all that may leave before it
reads. Each wait has an end: ``deadline``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from selectors import EVENT_READ, EVENT_WRITE
from typing import Literal, ParamSpec, TypeVar

from ..exceptions import MailerUnavailable, QueueError
from ..mailers.session import describe_error
from ..mailers.smtp.connect_race import ConnectRace
from ..mailers.smtp.mailer import SMTPMailer
from ..mailers.smtp.nonblocking import NonBlockingSocket
from ..mailers.smtp.protocol.client import SMTPClient
from ..mailers.smtp.protocol.opening import Handshake
from ..mailers.smtp.protocol.state import SessionEnd
from ..mailers.smtp.resolver import Resolved
from ..mailers.smtp.tls import remedy as tls_remedy
from .loop_roles import Poller, Sender

__all__ = ['LoopConnection']

P = ParamSpec('P')
T = TypeVar('T')

State = Literal['resolving', 'connecting', 'handshake', 'speaking', 'idle', 'quitting', 'closed']


class LoopConnection:
    """See the module. ``sender``: who sends over it, until it ends."""

    def __init__(self, poller: Poller, mailer: SMTPMailer, sender: Sender) -> None:
        self.state: State = 'resolving'
        self.deadline = inf
        """When the present wait is over, by the monotonic clock."""
        self._poller = poller
        self.sender = sender
        self._mailer = mailer
        self._race: ConnectRace | None = None
        self._connection: NonBlockingSocket | None = None
        self._opened = False
        self._client: SMTPClient | None = None
        self._events = 0
        self._replies = -1

    @property
    def name(self) -> str:
        """Where the mail goes."""
        return self._client.name if self._client is not None else self._mailer.name

    def open(self) -> None:
        """Begin to connect. It calls the sender's ``opened`` or ``unavailable``."""
        self._poller.add(self)
        self._poller.resolver.resolve(
            self._mailer.address,
            lambda found: self._poller.call_soon(partial(self._resolved, found)),
        )

    def send(self) -> None:
        """Ask the sender for mail: the connection is open and was idle."""
        self.state = 'speaking'
        self._pump()

    def quit(self) -> None:
        """Say QUIT, if that is possible, wait for the reply, and close."""
        client = self._client
        if self.state == 'quitting':
            return
        if client is None or self._connection is None or not client.at_rest:
            self.close()
            return
        client.quit()
        self.state = 'quitting'
        self._write(client.data_to_send())
        if self._connection is not None:
            self.deadline = self._poller.monotonic() + client.timeout
            if not self._connection.unsent:
                self._watch(EVENT_READ)

    def close(self) -> None:
        """Close at once."""
        self.state = 'closed'
        self.deadline = inf
        if self._race is not None:
            self._race.close()
            self._race = None
        if self._client is not None:
            self._client.close()
        if self._connection is not None:
            self._watch(0)
            self._connection.close()
            self._connection = None

    def on_ready(self, socket: object) -> None:
        """A socket is ready."""
        connection = self._connection
        if self._race is not None:
            self._run_race((socket,))
        elif connection is None:
            pass  # closed meanwhile
        elif self.state == 'handshake':
            self._shake_hands()
        elif connection.unsent:
            if self._write():
                self._after_write()
        elif self.state == 'quitting':
            self.close()
        elif self.state == 'idle':
            self._read_while_idle(connection)
        else:
            self._receive(connection)

    def on_deadline(self) -> None:
        """The present wait is over."""
        client = self._client
        if self._race is not None:
            self._run_race()
        elif client is None or self.state == 'quitting':
            self.close()
        elif self.state == 'idle':
            self.quit()
        elif self.state == 'handshake':
            assert client.handshake is not None
            self._handshake_failed(TimeoutError())
        elif self._connection is not None and self._connection.unsent:
            self._write_failed(TimeoutError())
            self._pump()
        else:
            client.timed_out()
            self._pump()

    # Connecting

    def _resolved(self, found: Resolved) -> None:
        if self.state != 'resolving':
            return  # closed meanwhile
        try:
            self._connect(found)
        except Exception as error:  # noqa: BLE001 - the sender logs it
            self.sender.failed(error)

    def _connect(self, found: Resolved) -> None:
        mailer = self._mailer
        if isinstance(found, OSError):
            self._unavailable(mailer.connect_error(found))
            return
        self.state = 'connecting'
        self._race = ConnectRace(
            found,
            timeout=mailer.timeouts.connect,
            watch=lambda each: self._poller.watch(each, EVENT_WRITE, self),
            unwatch=lambda each: self._poller.watch(each, 0, self),
            memory=mailer.address.memory,
        )
        self._run_race()

    def _run_race(self, writable: tuple[object, ...] = ()) -> None:
        race = self._race
        assert race is not None
        try:
            race.advance(self._poller.monotonic(), writable)
            if not race.ended:
                self.deadline = race.wake_at
                return
            self._race = None
            self._connection = NonBlockingSocket(race.take())
        except (OSError, OverflowError) as error:
            self._race = None
            self._unavailable(self._mailer.connect_error(error))
            return
        self._client = self._mailer.client()
        self.state = 'speaking'
        self._pump()

    def _unavailable(self, error: MailerUnavailable) -> None:
        self.quit()
        self.sender.unavailable(error)

    # Speaking

    def _pump(self) -> None:
        """Do all that can be done without waiting, and wait for what comes next."""
        client, sender = self._client, self.sender
        assert client is not None
        while self.state == 'speaking':
            if client.error is not None:
                self._unavailable(client.error)
                return
            if client.handshake is not None:
                self._start_handshake(client.handshake)
                return
            if not self._exchange_mails(client, sender):
                return
            data = self._calling(client.data_to_send)
            if data and not self._write(data):
                return
            if client.waits or not (data or client.outcomes or client.end):
                break
        if self.state == 'speaking':
            self._wait(client)

    def _calling(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the client. If it raises, as when a text cannot be read, the mails before that one
        have their outcomes all the same."""
        try:
            return call(*args, **kwargs)
        except Exception:
            assert self._client is not None
            self._record_outcomes(self._client, self.sender)
            raise

    def _exchange_mails(self, client: SMTPClient, sender: Sender) -> bool:
        """Take outcomes and hand out mail. Return False if the session has ended."""
        if not client.ready:
            return True
        if not self._opened:
            self._opened = True
            client.before_final_dot = sender.before_final_dot
            sender.opened()
        self._record_outcomes(client, sender)
        while client.wants_mail:
            try:
                envelope = sender.next_envelope()
            except QueueError as error:
                if not client.source_failed(error):
                    raise
                break
            if envelope is None:
                break
            client.send(envelope)
        end = client.end
        if end is None:
            return True
        self._record_outcomes(client, sender)
        self.quit()
        sender.ended(end)
        return False

    def _record_outcomes(self, client: SMTPClient, sender: Sender) -> None:
        """Have all outcomes recorded, even if one cannot be written. Raises QueueError."""
        failure: QueueError | None = None
        while client.outcomes:
            try:
                sender.record(client.outcomes.popleft())
            except QueueError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _wait(self, client: SMTPClient) -> None:
        if client.ready and client.idle:
            self.state = 'idle'
            self._watch(EVENT_READ)
            self.sender.out_of_work()
            return
        if client.replies != self._replies:
            self._replies = client.replies
            self.deadline = self._poller.monotonic() + client.timeout
        self._watch(EVENT_READ)

    def _receive(self, connection: NonBlockingSocket) -> None:
        client = self._client
        assert client is not None
        try:
            data, wanted = connection.receive()
        except OSError as error:
            client.connection_lost(
                f'while waiting for a reply: {describe_error(error, client.timeout)}',
                hung_up=isinstance(error, ConnectionError),
                remedy=tls_remedy(error, speaks_tls=True),
            )
        else:
            if wanted:
                self._watch(wanted)
                return
            self._calling(client.receive_data, data)
        self._pump()

    def _read_while_idle(self, connection: NonBlockingSocket) -> None:
        """The relay has closed, or says why it will; or TLS has something of its own."""
        try:
            data, wanted = connection.receive()
        except OSError:
            data, wanted = b'', 0
        if wanted:
            return
        if data:
            self.quit()
        else:
            self.close()
        self.sender.ended(SessionEnd('the relay closed the connection', stale=True))

    def _write(self, data: bytes = b'') -> bool:
        """Write, or go on writing. Return False if the rest must wait, or the state has changed."""
        connection = self._connection
        assert connection is not None
        before = connection.unsent
        try:
            wanted = connection.send(data)
        except OSError as error:
            self._write_failed(error)
            return self.state == 'speaking'
        if wanted:
            self._watch(wanted)
            if data or connection.unsent < before:
                # Each part that the socket takes has its own time-out.
                self.deadline = self._poller.monotonic() + self._mailer.timeouts.block
            return False
        self._replies = -1
        return True

    def _after_write(self) -> None:
        if self.state == 'quitting':
            self._watch(EVENT_READ)
        else:
            self._pump()

    def _write_failed(self, error: OSError) -> None:
        client, connection = self._client, self._connection
        assert client is not None
        assert connection is not None
        if self.state == 'quitting':
            self.close()
            return
        client.write_failed(
            f'while sending: {describe_error(error, self._mailer.timeouts.block)}',
            connection.certainly_unsent,
            tls_remedy(error, speaks_tls=True),
        )
        connection.send_no_more()
        self._replies = -1

    # TLS

    def _start_handshake(self, handshake: Handshake) -> None:
        connection = self._connection
        assert connection is not None
        self.state = 'handshake'
        self.deadline = self._poller.monotonic() + handshake.timeout
        self._watch(0)
        try:
            connection.wrap(self._mailer.handshake)
        except OSError as error:
            self._handshake_failed(error)
            return
        self._shake_hands()

    def _shake_hands(self) -> None:
        client, connection = self._client, self._connection
        assert client is not None
        assert connection is not None
        try:
            wanted = connection.shake_hands()
        except OSError as error:
            self._handshake_failed(error)
            return
        if wanted:
            self._watch(wanted)
            return
        self._replies = -1
        self.state = 'speaking'
        client.tls_started(connection.version)
        self._pump()

    def _handshake_failed(self, error: OSError) -> None:
        client = self._client
        assert client is not None
        assert client.handshake is not None
        phase, timeout = client.handshake
        remedy = tls_remedy(error, speaks_tls=phase == 'STARTTLS')
        client.connection_lost(describe_error(error, timeout), remedy=remedy)
        self.state = 'speaking'
        self._pump()

    # The socket

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            assert self._connection is not None
            self._poller.watch(self._connection.socket, events, self)
