"""Four mails to a scripted server, which replies to one of them as a test wants."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from pyramid_sendmail.envelope import Envelope
from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.smtp.address import open_socket
from pyramid_sendmail.mailers.smtp.connection import SMTPConnection
from tests.support.sessions import (
    CLOSED,
    LOST,
    connect,
    envelope,
    idle,
)
from tests.support.smtp.server import (
    Action,
    ScriptedSMTPServer,
    reply,
)

__all__ = ['ANSWERS', 'Fault', 'RecordingConnection', 'mails', 'outcomes_of', 'script_actions']

ANSWERS: dict[str, Action] = {
    **{str(code): reply(code, '4.2.1 so') for code in (250, 299, 354, 199, 432, 450, 451, 454)},
    **{f'{code} ': reply(code, 'so') for code in (452, 501, 550, 552, 554, 599)},
    '452 full': reply(452, '4.2.2 mailbox full'),
    '452 many': reply(452, '4.5.3 too many'),
    **{name: action for name, action in CLOSED.items() if 'silent' not in name},
    **{name: action for name, (action, timeouts) in LOST.items() if timeouts is None},
}

Fault = tuple[int, str, str]
"""Which mail, at which place, which answer."""


def mails() -> list[Envelope]:
    return [
        envelope(
            *(f'r{place}@{number}.example.org' for place in (1, 2, 3)),
            sender=f'from@{number}.example.org',
            id=f'{number:032x}',
        )
        for number in range(4)
    ]


def script_actions(server: ScriptedSMTPServer, faults: list[Fault]) -> None:
    """Script these actions on the server, in whatever groups the commands arrive."""
    for number, place, answer in faults:
        verb, _, recipient = place.partition(' ')
        action = ANSWERS[answer]
        if verb == 'MAIL':
            server.always('MAIL', action, match=f'<from@{number}.example.org>')
        elif verb == 'RCPT':
            server.always('RCPT', action, match=f'<r{recipient}@{number}.example.org>')
    ends = {(number, place): ANSWERS[answer] for number, place, answer in faults}

    def at(verb: str) -> Callable[[Any], Action | None]:
        # Without an accepted recipient the server refuses DATA by itself.
        return lambda session: (
            ends.get((int(session.sender.split('@')[1][0]), verb)) if session.recipients else None
        )

    for verb in ('DATA', 'dot'):
        server.always(verb, at(verb))


def outcomes_of(extensions: tuple[str, ...], faults: list[Fault], **options: Any) -> list[Any]:
    """Return the outcomes of four mails, over as many connections as it takes, and what arrived."""
    with ScriptedSMTPServer(extensions=extensions) as server:
        script_actions(server, faults)
        results: list[Any] = []
        session = None
        left = mails()
        while left:
            session = session or connect(server, **options)
            try:
                for outcome in session.send(list(left)):
                    results.append(str(outcome).replace(str(server.port), 'PORT'))
                    left.pop(0)
            except MailerUnavailable as error:
                results.append((str(error).replace(str(server.port), 'PORT'), error.stale))
                if not error.stale:
                    left.pop(0)
                session.close()
                session = None
        if session is not None:
            session.close()
        idle(server)
        assert not server.violations, server.dump()
        return [*results, sorted(server.pairs().items()), len(server.messages)]


class RecordingConnection(SMTPConnection):
    """Records each write, and how many commands had no reply after it."""

    def __init__(self, server: ScriptedSMTPServer) -> None:
        super().__init__(open_socket(server.host, server.port, 5), block_timeout=10)
        self.writes: list[bytes] = []
        self.unanswered = 0
        self.most = 0
        self._read()
        super().write(b'EHLO web.example.org\r\n')
        self._read()
        self.unanswered = 0

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self.unanswered += data.count(b'\r\nRCPT') + data.startswith(b'RCPT')
        self.most = max(self.most, self.unanswered)
        super().write(data)

    def receive(self, deadline: float, timeout: float) -> bytes:
        data = super().receive(deadline, timeout)
        self.unanswered -= data.count(b'\n')
        return data

    def _read(self) -> None:
        """Read a reply."""
        data = b''
        while not re.search(rb'(?m)^[0-9]{3} .*\n', data):
            data += self.receive(time.monotonic() + 10, 10)
