"""A loop that a test moves on by hand, its clock included, and the relay at the other end."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from pyramid_sendmail.envelope import Envelope, Outcome
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.protocol.state import SessionEnd
from pyramid_sendmail.mailers.smtp.resolver import Resolver
from pyramid_sendmail.mailers.smtp.token_fetcher import TokenFetcher
from pyramid_sendmail.processor.loop_connection import LoopConnection
from tests.support.sessions import make_mailer

__all__ = [
    'ByHand',
    'LoopSession',
    'Names',
    'Recorder',
    'SteppedPoller',
    'cpu_seconds',
    'full_listener',
    'loop_thread',
]

PATIENCE = 60.0
"""Seconds for which a test waits for what must happen."""


class SteppedPoller:
    """A Poller that handles what is ready when a test says so; its time stands still meanwhile."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.resolver = Resolver()
        self.token_fetcher = TokenFetcher()
        self.connections: list[LoopConnection] = []
        self.wakes = 0
        """How often a socket was ready."""
        self._calls: deque[Callable[[], object]] = deque()
        self._selector = selectors.DefaultSelector()

    def monotonic(self) -> float:
        return self.now

    def call_soon(self, call: Callable[[], object]) -> None:
        self._calls.append(call)

    def add(self, connection: LoopConnection) -> None:
        self.connections.append(connection)

    def watch(self, connection: socket.socket, events: int, owner: LoopConnection) -> None:
        with suppress(KeyError):
            self._selector.unregister(connection)
        if events:
            self._selector.register(connection, events, owner)

    @property
    def watched(self) -> int:
        """How many sockets are watched."""
        return len(self._selector.get_map())

    def step(self, seconds: float = 0.0) -> bool:
        """Handle what is ready; return whether there was anything."""
        ready = self._selector.select(0 if self._calls else seconds)
        for key, _ in ready:
            self.wakes += 1
            self._guarded(key.data, lambda key=key: key.data.on_ready(key.fileobj))
        called = bool(self._calls)
        while self._calls:
            self._calls.popleft()()
        return called or bool(ready)

    def later(self, seconds: float) -> None:
        """Let time pass, and have deadlines handled."""
        self.now += seconds
        for connection in self.connections:
            if connection.state != 'closed' and connection.deadline <= self.now:
                self._guarded(connection, connection.on_deadline)

    def until(self, condition: Callable[[], object]) -> None:
        """Handle what is ready until a condition is true."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, 'the condition did not become true'
            self.step(0.002)

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        self._selector.close()

    def _guarded(self, connection: LoopConnection, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - as the loop does
            connection.sender.failed(error)


class Recorder:
    """A Sender that hands out ``mails`` and records what the connection says."""

    def __init__(self, mails: Sequence[Envelope] = ()) -> None:
        self.mails = deque(mails)
        self.said: list[str] = []
        self.outcomes: list[Outcome] = []
        self.ends: list[SessionEnd] = []
        self.errors: list[Exception] = []
        self.before_dot: Callable[[Envelope], object] = lambda envelope: None

    def before_final_dot(self, envelope: Envelope, recipients: Sequence[str]) -> None:
        self.before_dot(envelope)

    def opened(self) -> None:
        self.said.append('opened')

    def next_envelope(self) -> Envelope | None:
        return self.mails.popleft() if self.mails else None

    def record(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def out_of_work(self) -> None:
        self.said.append('out of work')

    def ended(self, end: SessionEnd) -> None:
        self.said.append('ended')
        self.ends.append(end)

    def unavailable(self, error: MailerUnavailable) -> None:
        self.said.append('unavailable')
        self.errors.append(error)

    def failed(self, error: Exception) -> None:
        self.said.append('failed')
        self.errors.append(error)

    @property
    def verdicts(self) -> list[str]:
        """The status of each verdict so far."""
        return [each.status for outcome in self.outcomes for each in outcome.values()]


class ByHand:
    """One connection of a loop, and a relay whose every byte is written by the test.

    ``context``: of the relay, which speaks TLS from the first byte then, or after
    ``start_tls``. ``buffer``: bytes of the buffers of the sockets. ``mailer``: options of the
    mailer. The relay reads at most ``read_bytes`` at a time, and only in ``reads``, ``heard_all``
    and ``pump``.
    """

    def __init__(
        self,
        *mails: Envelope,
        context: ssl.SSLContext | None = None,
        buffer: int = 0,
        **mailer: Any,
    ) -> None:
        self.poller = SteppedPoller()
        self.sender = Recorder(mails)
        self.received = bytearray()
        self.write_bytes = 1 << 20
        """How many bytes the relay writes at a time."""
        self._listening = socket.socket()
        if buffer:
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._listening.bind(('127.0.0.1', 0))
        self._listening.listen(8)
        self.relay: socket.socket | None = None
        self._context = context
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        host, port = self._listening.getsockname()
        self.mailer = make_mailer(host, port, **mailer)
        self.connection = LoopConnection(self.poller, self.mailer, self.sender)

    def __enter__(self) -> ByHand:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.poller.close()
        if self.relay is not None:
            self.relay.close()
        self._listening.close()

    # The relay

    def accept(self, *, tls: bool = False) -> None:
        """Open the connection, and accept it at the other end."""
        self.connection.open()
        self.poller.step()
        self.relay, _ = self._listening.accept()
        self.relay.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.relay.setblocking(False)
        self.poller.until(lambda: self.connection.state != 'connecting')
        if tls:
            self.start_tls()

    def start_tls(self) -> None:
        """Do the handshake, ``write_bytes`` at a time."""
        assert self._context is not None
        tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.poller.until(lambda: self._shakes_hands(tls))
        self._tls = tls

    def _shakes_hands(self, tls: ssl.SSLObject) -> bool:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_pieces(self._outgoing.read())
            self._read_wire()
            return False
        self._send_pieces(self._outgoing.read())
        return True

    def says(self, *lines: str) -> None:
        """Have the relay send these lines."""
        self.sends(''.join(f'{line}\r\n' for line in lines).encode())

    def sends(self, data: bytes) -> None:
        """Have the relay send these bytes, and the connection handle them."""
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        self._send_pieces(data)

    def _send_pieces(self, data: bytes) -> None:
        assert self.relay is not None
        for at in range(0, len(data), self.write_bytes):
            self.relay.send(data[at : at + self.write_bytes])
            # On loopback a byte is there at once; to wait for each takes seconds.
            while self.poller.step(0 if self.write_bytes == 1 else 0.005):
                pass

    def reads(self, text: bytes) -> None:
        """Have the relay read until it has received ``text``, and forget what it has read."""

        def found() -> bool:
            self._read()
            return text in self.received

        self.poller.until(found)
        del self.received[: self.received.index(text) + len(text)]

    def reads_end(self) -> bytes:
        """Have the relay read until the connection is closed; return what came before."""
        ended = False

        def closed() -> bool:
            nonlocal ended
            ended = ended or not self._read()
            return ended

        self.poller.until(closed)
        return bytes(self.received)

    def _read(self) -> bool:
        """Read what has come; return False at the end."""
        alive = self._read_wire()
        if self._tls is not None:
            with suppress(ssl.SSLWantReadError, ssl.SSLError):
                while data := self._tls.read():
                    self.received += data
        return alive

    def _read_wire(self) -> bool:
        assert self.relay is not None
        with suppress(BlockingIOError):
            try:
                data = self.relay.recv(65_536)
            except ConnectionResetError:
                return False
            plain = self._context is None or not self._in_tls(data)
            if self._tls is None and plain:
                self.received += data
            else:
                self._incoming.write(data)
            return bool(data)
        return True

    def _in_tls(self, data: bytes) -> bool:
        return data[:1] in (b'\x16', b'\x14', b'\x15', b'\x17') or bool(self._incoming.pending)

    # Whole phases

    def greets(self, *extensions: str) -> None:
        """Greet, and answer EHLO."""
        self.says('220 relay.example.org')
        self.hello(*extensions)

    def hello(self, *extensions: str) -> None:
        """Answer EHLO."""
        self.reads(b'EHLO web.example.org\r\n')
        lines = ['relay.example.org', *extensions]
        self.says(*(f'250-{line}' for line in lines[:-1]), f'250 {lines[-1]}')

    def takes_mail(self, *, last: str = '250 2.0.0 ok') -> None:
        """Take one mail in lock-step."""
        for verb, reply in (
            (b'MAIL', '250 ok'),
            (b'RCPT', '250 ok'),
            (b'DATA\r\n', '354 go'),
            (b'\r\n.\r\n', last),
        ):
            self.reads(verb)
            if verb in (b'MAIL', b'RCPT'):
                self.reads(b'\r\n')
            self.says(reply)


def loop_thread() -> threading.Thread:
    """Return the thread of the one loop in this process."""
    (thread,) = (each for each in threading.enumerate() if each.name == 'pyramid_sendmail loop')
    return thread


def cpu_seconds(thread: threading.Thread) -> float:
    """Return the CPU time that a thread has used."""
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


@contextmanager
def full_listener() -> Iterator[int]:
    """Yield a port at which connections are neither accepted nor refused."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(('127.0.0.1', 0))
        listening.listen(0)
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


class Names:
    """In place of ``socket.getaddrinfo`` for the host ``relay.test``.

    ``ports``: those of its addresses, call by call; the last one lasts. ``hold``: what a
    look-up waits for, once ``held_from`` look-ups are over. No ports: the name is not found.
    """

    def __init__(self, *ports: Sequence[int]) -> None:
        self.ports = deque(ports)
        self.hold: threading.Event | None = None
        self.held_from = 0
        self.calls = 0
        self.waiting = threading.Event()

    def __call__(self, host: str, port: int, *args: Any, **options: Any) -> Any:
        assert host == 'relay.test'
        self.calls += 1
        if self.hold is not None and self.calls > self.held_from:
            self.waiting.set()
            assert self.hold.wait(PATIENCE)
        ports = self.ports.popleft() if len(self.ports) > 1 else self.ports[0]
        if not ports:
            raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, '', ('127.0.0.1', each)) for each in ports]


class LoopSession:
    """Sends mails as a session that blocks does, over LoopConnections, for a comparison.

    ``results``: the outcomes, and why each session ended that left mail, as
    ``tests.support.pipelining.outcomes_of`` has them.
    """

    def __init__(self, make: Callable[[], SMTPMailer], mails: Sequence[Envelope]) -> None:
        self.results: list[Any] = []
        self.before_final_dot = lambda envelope, recipients: None
        self.error: BaseException | None = None
        self._make = make
        self._left = list(mails)
        self._poller = SteppedPoller()
        self._handed = 0
        self._done = False

    def run(self) -> list[Any]:
        """Send all, and close."""
        try:
            while self._left:
                self._handed, self._done = 0, False
                # A mailer for each: what it remembers of the relay would change the next session.
                self._mailer = self._make()
                connection = LoopConnection(self._poller, self._mailer, self)
                connection.open()
                self._poller.until(lambda: self._done)
                connection.quit()
            self._poller.until(
                lambda: all(each.state == 'closed' for each in self._poller.connections)
            )
        finally:
            self._poller.close()
        if self.error is not None:
            raise self.error
        return self.results

    def opened(self) -> None:
        """Nothing to do."""

    def next_envelope(self) -> Envelope | None:
        if self._handed >= len(self._left):
            return None
        self._handed += 1
        return self._left[self._handed - 1]

    def record(self, outcome: Outcome) -> None:
        self.results.append(str(outcome))
        self._left.pop(0)
        self._handed -= 1

    def out_of_work(self) -> None:
        self._done = True

    def ended(self, end: SessionEnd) -> None:
        self._done = True
        if self._left:
            self.results.append((f'{self._mailer.name}: {end.reason}', end.stale))
            if not end.stale:
                self._left.pop(0)

    def unavailable(self, error: MailerUnavailable) -> None:
        self.failed(error)

    def failed(self, error: Exception) -> None:
        self.error, self._done, self._left = error, True, []
