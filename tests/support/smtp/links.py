"""A driver of SMTPClient without input and output: it moves bytes to a model of a relay and back.

``Link`` is one connection. ``rng`` decides how the bytes are cut, in which order things happen,
and where the connection is lost; without it bytes move whole, or one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from .model_relay import Answer, RelaySession
from .wire_rules import WireRules

__all__ = ['Cut', 'Link', 'Loss', 'Result']


class Loss(NamedTuple):
    """What happens at a step, at random.

    ``how``: 'reset', 'closed', 'timed out', 'write' (one fails), 'dies' (the relay does),
    'interrupted' (the relay says 421 unasked), 'given up' (the driver closes), or 'source' (the
    source of mail fails).
    """

    step: int
    how: str


class Cut(NamedTuple):
    """The connection is lost after a number of bytes.

    ``side``: 'up', to the relay, or 'down', from it. ``how``: 'closed', 'reset', 'timed out', or
    'write': the write fails, ``slack`` bytes fewer than are lost are known not to have left. 'write
    and reset': and no reply comes any more.
    """

    side: str
    after: int
    how: str
    slack: int = 0


@dataclass(slots=True)
class Result:
    """How a connection went. ``pairs``: each mail that was handed out, with its outcome or None.

    ``timeouts``: what was waited for, and how long at most.
    """

    pairs: list[tuple[Any, Any]]
    end: Any
    error: Any
    wrote: bytes
    marked: dict[int, list[str]]
    given_up: bool
    lost: bool
    timeouts: list[tuple[str, float]]


class Link:
    """One connection, run once.

    ``mails``: what there is to send. ``raises``: the numbers of mails for which
    ``before_final_dot`` raises. ``size``: how many bytes move at a time, without ``rng``.
    """

    def __init__(
        self,
        client: Any,
        session: RelaySession,
        rules: Callable[[Callable[[int, list[str]], object]], WireRules],
        mails: Sequence[Any],
        *,
        rng: Random | None = None,
        loss: Loss | None = None,
        cut: Cut | None = None,
        size: int = 1 << 30,
        raises: frozenset[int] = frozenset(),
        times_out_at: int = -1,
    ) -> None:
        self.client = client
        self.session = session
        self.rules = rules(self._on_text_end)
        self.faults = self.rules.faults
        self.log: list[str] = []
        """What was written and received, for people."""
        self.handshakes = 0
        self._source = deque(mails)
        self._rng = rng
        self._loss = loss
        self._cut = cut
        self._size = size
        self._raises = raises
        self._times_out_at = times_out_at
        self._pending: deque[Any] = deque()
        self._pairs: list[tuple[Any, Any]] = []
        self._unwritten = b''
        self._up = bytearray()
        self._down = bytearray()
        self._moved = {'up': 0, 'down': 0}
        self._wrote = bytearray()
        self._marked: dict[int, list[str]] = {}
        self._calls: deque[tuple[int, list[str]]] = deque()
        self._steps = 0
        self._broken = False  # a write has failed
        self._up_lost = False
        self._given_up = False
        self._lost = False
        self._timeouts: list[tuple[str, float]] = []
        self._stopped = False

    def run(self) -> Result:
        """Drive the client until it ends, or all mail has its outcome."""
        client = self.client
        hooked = False
        while client.error is None and not self._stopped:
            if client.ready and not hooked:
                client.before_final_dot, hooked = self._before_final_dot, True
            self._take_outcomes()
            if client.end is not None:
                break
            if client.ready and client.idle and not self._source and not self._unwritten:
                break
            self._steps += 1
            if self._steps > 200_000:
                raise AssertionError('it does not come to an end')
            if self._loss is not None and self._loss.step <= self._steps:
                loss, self._loss = self._loss, None
                self._lose(loss.how)
            elif client.handshake is not None:
                self._shake_hands()
            else:
                self._step()
        self._take_outcomes()
        end = client.end
        self._finish()
        return Result(
            [*self._pairs, *((mail, None) for mail in self._pending)],
            end,
            client.error,
            bytes(self._wrote),
            self._marked,
            self._given_up,
            self._lost,
            self._timeouts,
        )

    # The client

    def _take_outcomes(self) -> None:
        outcomes = self.client.outcomes
        while outcomes:
            if not self._pending:
                self.faults.append('an outcome without a mail')
                outcomes.clear()
                return
            mail, outcome = self._pending.popleft(), outcomes.popleft()
            if list(outcome) != list(mail.recipients):
                self.faults.append(f'an outcome of other recipients: {[*outcome]}')
            self._pairs.append((mail, outcome))

    def _before_final_dot(self, mail: Any, recipients: Sequence[str]) -> None:
        number = int(mail.id, 16)
        if number in self._raises:
            raise OSError('the disk is full')
        self._marked.setdefault(number, []).extend(recipients)
        self._calls.append((number, list(recipients)))

    def _on_text_end(self, number: int, recipients: list[str]) -> None:
        if not self._calls:
            self.faults.append(f'no before_final_dot for mail {number}')
            return
        call = self._calls.popleft()
        if call != (number, recipients):
            self.faults.append(f'before_final_dot {call} for mail {number} to {recipients}')

    def _produce(self) -> bool:
        """Hand out mail, and take what the client has to send; return whether it had something."""
        client, rng = self.client, self._rng
        while self._source and client.wants_mail and (rng is None or rng.random() < 0.9):
            mail = self._source.popleft()
            self._pending.append(mail)
            client.send(mail)
        data = client.data_to_send()
        self.rules.sent(data)
        if data:
            self.log.append(f'C: {_shown(data)}')
        if self._calls:
            self.faults.append(f'before_final_dot without a text: {self._calls}')
            self._calls.clear()
        if client.may_quit and self.rules.in_text:
            self.faults.append('QUIT may stand in a text')
        self._wrote += data
        self._unwritten = data
        return bool(data)

    def _shake_hands(self) -> None:
        self.handshakes += 1
        self.client.tls_started('TLSv1.3')

    def _wait_is_over(self) -> None:
        """Nothing is under way, and the client waits for more."""
        client, session = self.client, self.session
        self._lost = True
        if self._cut is not None and (self._cut.side == 'down' or self._up_lost):
            how = self._cut.how
        elif session.state == 'closed' or self._broken:
            how = 'closed'
        else:
            how = 'timed out'
        self.log.append(how)
        if how == 'timed out':
            client.timed_out()
        elif how == 'reset':
            client.connection_lost('while waiting for a reply: reset', hung_up=True)
        else:
            client.receive_data(b'')

    # The bytes

    def _step(self) -> None:
        rng = self._rng
        if rng is None:
            self._step_in_order()
            return
        self._down += self.session.take_output()
        ways = []
        if self._unwritten:
            ways.append(self._write)
        elif not self._broken:
            ways.append(self._produce_or_idle)
        if self._up and not self._up_lost:
            ways.append(self._to_relay)
        if self._down:
            ways.append(self._to_client)
        if len(ways) == 1 and ways[0] == self._produce_or_idle:
            if not self._produce() and not self._is_idle():
                self._wait_is_over()
        elif ways:
            rng.choice(ways)()
        else:
            self._wait_is_over()

    def _is_idle(self) -> bool:
        client = self.client
        changed = bool(client.outcomes) or client.end is not None or client.error is not None
        return changed or (client.ready and client.wants_mail and bool(self._source))

    def _produce_or_idle(self) -> None:
        self._produce()

    def _step_in_order(self) -> None:
        if self._unwritten:
            self._write()
        elif not ((not self._broken and self._produce()) or self._is_idle()):
            while self._up and not self._up_lost:
                self._to_relay()
            self._down += self.session.take_output()
            self._timeouts.append((self.rules.awaited, self.client.timeout))
            if self._times_out_at == len(self._timeouts) - 1:
                self._lost = True
                self.client.timed_out()
            elif self._down and not self._is_cut('down'):
                self._to_client()
            else:
                self._wait_is_over()

    def _some(self, data: bytes | bytearray) -> int:
        if self._rng is None:
            return self._size
        return self._rng.choice((1, 2, 3, 7, 20, 60, 500, len(data), len(data)))

    def _is_cut(self, side: str) -> bool:
        cut = self._cut
        return cut is not None and cut.side == side and self._moved[side] >= cut.after

    def _limited(self, side: str, count: int) -> int:
        cut = self._cut
        if cut is not None and cut.side == side:
            count = min(count, cut.after - self._moved[side])
        self._moved[side] += count
        return count

    def _write(self) -> None:
        data = self._unwritten
        if self._rng is not None and self.session.state == 'closed' and self._rng.random() < 0.3:
            self._fail_write(self._rng.randint(0, len(data)))
            return
        count = self._limited('up', min(len(data), self._some(data)))
        self._up += data[:count]
        self._unwritten = data[count:]
        if self._is_cut('up') and (self._unwritten or not count):
            assert self._cut is not None
            self._up_lost = True
            # What has left is read; the relay sees the end of it.
            self.session.receive(bytes(self._up))
            self._up.clear()
            lost = len(self._unwritten)
            if self._cut.how.startswith('write'):
                self._fail_write(max(0, lost - self._cut.slack))
            if self._cut.how == 'write and reset':
                self.session.take_output()
                self._down.clear()
                self.client.connection_lost('while waiting for a reply: reset', hung_up=True)
            self._unwritten = b''

    def _fail_write(self, unsent: int) -> None:
        self._lost = self._broken = True
        self._unwritten = b''
        self.log.append(f'the write fails, {unsent} bytes unsent')
        self.client.write_failed('while sending: Broken pipe', unsent)

    def _to_relay(self) -> None:
        count = min(len(self._up), self._some(self._up))
        data = bytes(self._up[:count])
        del self._up[:count]
        self.session.receive(data)
        self._down += self.session.take_output()

    def _to_client(self) -> None:
        count = self._limited('down', min(len(self._down), self._some(self._down)))
        data = bytes(self._down[:count])
        del self._down[:count]
        if data:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        self.log.append(f'R: {_shown(data)}')
        self.rules.received(data)
        self.client.receive_data(data)

    # Losses

    def _lose(self, how: str) -> None:
        client, rng = self.client, self._rng
        assert rng is not None
        self.log.append(f'at random: {how}')
        self._down += self.session.take_output()
        if how == 'interrupted':
            self.session.interrupt(Answer(b'421 4.3.2 shutting down\r\n'))
            return
        if how == 'dies':
            del self._up[rng.randint(0, len(self._up)) :]
            self.session.receive(bytes(self._up))
            self._up.clear()
            self._down += self.session.take_output()
            self.session.state = 'closed'
            return
        if how == 'write':
            if self._unwritten:
                count = rng.randint(0, len(self._unwritten))
                self._up += self._unwritten[:count]
                self._fail_write(rng.randint(0, len(self._unwritten) - count))
            else:
                self._loss = Loss(self._steps + 1, how)
                self._step()
            return
        if how == 'source':
            if not client.wants_mail:
                self._loss = Loss(self._steps + 1, how)
                self._step()
                return
            self._source.clear()
            if not client.source_failed(OSError('the folder is gone')):
                self._give_up()
            return
        if how == 'given up':
            self._give_up()
            return
        self._lost = True
        count = rng.randint(0, len(self._down))
        data = bytes(self._down[:count])
        self._down.clear()
        if data:
            self._receive(data)
        if how == 'reset':
            client.connection_lost('while waiting for a reply: reset', hung_up=True)
        elif how == 'closed':
            client.receive_data(b'')
        else:
            client.timed_out()

    def _give_up(self) -> None:
        self._given_up = self._stopped = True
        self.client.close('the session is closed')

    def _finish(self) -> None:
        """Say QUIT if that may be, and let the relay read what has left."""
        client, rng = self.client, self._rng
        if client.may_quit and not self._given_up and not self._unwritten:
            client.quit()
            data = client.data_to_send()
            self.rules.sent(data)
            self._wrote += data
            self._up += data
            self._timeouts.append(('QUIT', client.timeout))
        if rng is not None:
            if self._lost or self._given_up:
                # The kernel may have taken a part of the last write.
                self._up += self._unwritten
                del self._up[rng.randint(0, len(self._up)) :]
            elif not client.quitting:
                self._up += self._unwritten[: rng.randint(0, len(self._unwritten))]
        if not self._up_lost:
            self.session.receive(bytes(self._up))
        client.close()


def _shown(data: bytes) -> str:
    text = data.decode()
    return repr(text if len(text) < 2_000 else f'{text[:300]} ... {text[-300:]}')
