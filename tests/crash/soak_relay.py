"""The relays of a soak: they refuse and drop by chance, stall at each phase, and answer slowly."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence

from tests.support.smtp.server import (
    EXTENSIONS,
    Action,
    ScriptedSMTPServer,
    Session,
    accept_then,
    delay,
    drop,
    hang,
    raw,
    reply,
    reply_then_drop,
    reset,
)

__all__ = ['BULK_SENDER', 'STALLS', 'TIMEOUT', 'WORKERS', 'SoakRelay']

TIMEOUT = 1.0
"""Seconds that a client waits in each phase."""

WATCHED = 0.8
"""Seconds of a stall in which other connections are watched."""

WORKERS = 4
"""Connections of a processor. All but the one that stalls may have a mail in flight."""

STALLS = {'greeting': 20, 'MAIL': 160, 'text': 2, 'dot': 160, 'accepted dot': 160}
"""The phases in which a connection stalls, and after how many times of it on average; the first
stall comes sooner. 'text': of a large mail, which is not read. 'accepted dot': the relay keeps the
mail and says nothing."""

BULK_SENDER = 'bulk@example.org'
"""Sends mail that fits into no buffer of a socket."""

SLOW_SHARE, SLOWEST = 0.1, 0.3
"""How many connections are slow, and how many seconds they take for a reply at most."""

Choice = Callable[[Session], 'Action | None']


class SoakRelay:
    """One relay of one processor. ``pipelining``: whether it offers that.

    ``stalls``: how often a connection has stalled, by phase. ``beside``: how many mails came over
    the other connections that were open then, at the best of these stalls. ``slow_replies``: how
    many replies took their time.
    """

    def __init__(self, seed: int, *, pipelining: bool) -> None:
        extensions = [each for each in EXTENSIONS if pipelining or each != 'PIPELINING']
        self.server = ScriptedSMTPServer(extensions=extensions, socket_buffer=65_536)
        self.stalls: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()
        self.slow_replies = 0
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._slow: dict[int, bool] = {}
        self._left = {phase: self._chance.randint(1, 1 + STALLS[phase] // 8) for phase in STALLS}
        self._misbehave()

    def _misbehave(self) -> None:
        """Script the answers. What begins with 'nobody' is refused always."""
        always = self.server.always
        busy = reply_then_drop(421, '4.3.2 closing')
        later = reply(451, '4.3.0 later')
        always(
            'connect',
            self._one_of(
                *((0.02, busy), (0.01, reply(554, 'no')), (0.01, drop())), stalls=['greeting']
            ),
        )
        always('EHLO', self._one_of())
        always(
            'MAIL',
            self._one_of(
                *((0.02, later), (0.005, busy), (0.005, drop()), (0.2, delay(0.01))),
                stalls=['MAIL'],
            ),
        )
        always(
            'RCPT',
            self._one_of((0.03, reply(450, '4.2.0 greylisted')), (0.005, busy), (0.005, reset())),
        )
        always('RCPT', reply(550, '5.1.1 no such user'), match='nobody')
        always('DATA', self._one_of((0.01, later), (0.005, busy), (0.005, drop()), stalls=['text']))
        always(
            'dot',
            self._one_of(
                (0.02, later),
                (0.01, reply(554, '5.6.0 not that')),
                (0.01, accept_then(drop())),
                (0.01, accept_then(reset())),
                (0.01, drop()),
                (0.005, busy),
                (0.4, delay(0.03)),
                stalls=['dot', 'accepted dot'],
            ),
        )

    def _one_of(self, *actions: tuple[float, Action], stalls: Sequence[str] = ()) -> Choice:
        """Return what chooses an action: each has its share, and the rest is the usual reply."""

        def choose(session: Session) -> Action | None:
            with self._lock:
                for phase in stalls:
                    if self._stalls_now(phase, session):
                        return self._stall(phase, session)
                left = self._chance.random()
                chosen = None
                for share, action in actions:
                    left -= share
                    if left < 0:
                        chosen = action
                        break
                if self._is_slow(session):
                    self.slow_replies += 1
                    return delay(self._chance.random() * SLOWEST, chosen)
            return chosen

        return choose

    def _stalls_now(self, phase: str, session: Session) -> bool:
        if phase == 'text' and session.sender != BULK_SENDER:
            return False
        self._left[phase] -= 1
        if self._left[phase]:
            return False
        self._left[phase] = self._chance.randint(1, 2 * STALLS[phase] - 1)
        return True

    def _stall(self, phase: str, session: Session) -> Action:
        """Say nothing more, and count what comes over other connections meanwhile."""
        self.stalls[phase] += 1
        open_then, before = self.server.connections, len(self.server.messages)

        def watched(_session: Session) -> Action:
            others = sum(
                message.connection <= open_then and message.connection != session.connection
                for message in self.server.messages[before:]
            )
            with self._lock:
                self.beside[phase] = max(self.beside[phase], others)
            # The text is not read, so the end of the connection is not seen either.
            return delay(2 * TIMEOUT, drop()) if phase == 'text' else hang()

        stall = delay(WATCHED, watched)
        if phase == 'text':
            return raw(b'354 go\r\n', then=stall)
        return accept_then(stall) if phase == 'accepted dot' else stall

    def _is_slow(self, session: Session) -> bool:
        return self._slow.setdefault(session.connection, self._chance.random() < SLOW_SHARE)
