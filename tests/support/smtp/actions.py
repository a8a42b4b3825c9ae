"""Actions of a scripted server, as values, and the script that holds them."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from .session import Session

__all__ = [
    'VERBS',
    'AcceptThen',
    'Action',
    'Delay',
    'End',
    'Hang',
    'Hold',
    'Match',
    'Raw',
    'Reply',
    'Script',
    'StreamForever',
    'accept_then',
    'delay',
    'drop',
    'half_close',
    'hang',
    'hold',
    'raw',
    'reply',
    'reply_code',
    'reply_then_drop',
    'reset',
    'stream_forever',
]

_COMMANDS = (
    *('EHLO', 'HELO', 'LHLO', 'STARTTLS', 'AUTH'),
    *('MAIL', 'RCPT', 'DATA', 'BDAT', 'RSET', 'NOOP', 'QUIT'),
)

VERBS = frozenset({'connect', 'TLS', 'dot', *_COMMANDS})
"""What can be scripted. 'connect': the greeting. 'TLS': the moment before the server's side of a
handshake. 'dot': the reply to a whole message, by DATA or BDAT. 'BDAT': one that does not end a
message, or has no recipients. The others are the commands of that name."""

Match: TypeAlias = 'str | bytes | re.Pattern[str] | None'


@dataclass(frozen=True, slots=True)
class Reply:
    """A well-formed reply of one line or several; then another action, if any."""

    code: int
    lines: tuple[str, ...] = ()
    then: Action | None = None

    @property
    def encoded(self) -> bytes:
        """The reply as it goes over the wire."""
        *first, last = self.lines or ('',)
        text = ''.join(f'{self.code}-{line}\r\n' for line in first)
        return f'{text}{self.code}{" " if last else ""}{last}\r\n'.encode()


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes to write as they are, in one segment; then another action, if any."""

    data: bytes
    then: Action | None = None


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait some seconds, or until the server is stopped."""

    seconds: float
    then: Action | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait for an event, or until the server is stopped."""

    event: threading.Event
    then: Action | None = None


@dataclass(frozen=True, slots=True)
class End:
    """End the connection."""

    how: Literal['drop', 'reset', 'half_close']


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer."""

    reading: bool = True


@dataclass(frozen=True, slots=True)
class StreamForever:
    """Never stop answering."""

    line: bytes


@dataclass(frozen=True, slots=True)
class AcceptThen:
    """Accept the message, even if the client sees another reply."""

    then: Action | None = None


Action: TypeAlias = (
    'Reply | Raw | Delay | Hold | End | Hang | StreamForever | AcceptThen'
    ' | Callable[[Session], Action | None]'
)
"""A callable is called with the session and returns an action, or None for the default reply."""


def reply(code: int, *lines: str, then: Action | None = None) -> Reply:
    """Answer with ``code`` and one line or several; ``then`` follows at once."""
    return Reply(code, lines, then)


def reply_then_drop(code: int, *lines: str) -> Reply:
    """Answer, and close the connection at once."""
    return Reply(code, lines, drop())


def raw(data: bytes, *, then: Action | None = None) -> Raw:
    """Write ``data`` verbatim in one segment; ``then`` follows at once."""
    return Raw(data, then)


def delay(seconds: float, then: Action | None = None) -> Delay:
    """Wait, then do ``then`` (the default reply where there is none)."""
    return Delay(seconds, then)


def hold(event: threading.Event, then: Action | None = None) -> Hold:
    """Wait for ``event``, then do ``then`` (the default reply where there is none)."""
    return Hold(event, then)


def drop() -> End:
    """Close the connection (FIN) without a reply; inside TLS without close_notify."""
    return End('drop')


def reset() -> End:
    """Reset the connection (RST) without a reply."""
    return End('reset')


def half_close() -> End:
    """Send FIN and go on reading, without a reply, until the client leaves."""
    return End('half_close')


def hang(*, reading: bool = True) -> Hang:
    """Never answer, until the client leaves or the server is stopped.

    ``reading=False``: do not read either, so that the client's writes block. A client that leaves
    meanwhile is not noticed, since its FIN comes after the unread bytes.
    """
    return Hang(reading)


def stream_forever(line: bytes = b'250-and so on\r\n') -> StreamForever:
    """Write ``line`` again and again, until the client leaves or the server is stopped."""
    return StreamForever(line)


def accept_then(action: Action | None = None) -> AcceptThen:
    """For 'dot': count the message as accepted, then do ``action`` (default: the usual reply)."""
    return AcceptThen(action)


_LAST_LINE = re.compile(rb'(?:\A|\r\n)([0-9]{3})(?: [^\r\n]*)?\r\n')


def reply_code(data: bytes) -> int:
    """Return the code of the first complete reply in ``data``, or 0."""
    found = _LAST_LINE.search(data)
    return int(found[1]) if found else 0


class _Rule:
    __slots__ = ('_match', 'actions')

    def __init__(self, match: Match, actions: tuple[Action, ...]) -> None:
        self._match = match.decode() if isinstance(match, bytes) else match
        self.actions = deque(actions)

    def fits(self, text: str) -> bool:
        if self._match is None:
            return True
        if isinstance(self._match, str):
            return self._match in text
        return self._match.search(text) is not None


class Script:
    """Chooses actions: queued ones first, in order; then the newest lasting one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queued: dict[str, list[_Rule]] = {}
        self._always: dict[str, list[_Rule]] = {}

    def queue(self, verb: str, actions: tuple[Action, ...], match: Match) -> None:
        """Add actions that happen once each. Raises ValueError for an unknown verb."""
        self._add(self._queued, verb, _Rule(match, actions))

    def always(self, verb: str, action: Action, match: Match) -> None:
        """Add an action that happens each time. Raises ValueError for an unknown verb."""
        self._add(self._always, verb, _Rule(match, (action,)))

    def reset(self) -> None:
        """Go back to default replies."""
        with self._lock:
            self._queued.clear()
            self._always.clear()

    def left(self) -> dict[str, int]:
        """Return how many queued actions have not happened yet, by verb."""
        with self._lock:
            counts = {
                verb: sum(len(rule.actions) for rule in rules)
                for verb, rules in self._queued.items()
            }
        return {verb: count for verb, count in counts.items() if count}

    def choose(self, verb: str, text: str | bytes) -> Action | None:
        """Take the action for this occurrence of a verb, or None."""
        if verb not in self._queued and verb not in self._always:
            return None
        if isinstance(text, bytes):
            text = text.decode('utf-8', 'surrogateescape')
        with self._lock:
            for rule in self._queued.get(verb, ()):
                if rule.actions and rule.fits(text):
                    return rule.actions.popleft()
            for rule in reversed(self._always.get(verb, [])):
                if rule.fits(text):
                    return rule.actions[0]
        return None

    def _add(self, rules: dict[str, list[_Rule]], verb: str, rule: _Rule) -> None:
        if verb not in VERBS:
            raise ValueError(f'{verb!r} cannot be scripted, only {", ".join(sorted(VERBS))}')
        with self._lock:
            rules.setdefault(verb, []).append(rule)
