"""The demo's relay: an SMTP server on loopback that keeps what it accepts.

Its replies depend on the domain of the recipient: it refuses ``refused.example`` for good (550),
defers ``later.example`` at the first try (451) and accepts everything else.
``python -m demo.relay`` runs it by hand.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope

from .locations import Locations

__all__ = ['LATER', 'REFUSED', 'Relay', 'main', 'serve']

REFUSED = 'refused.example'
LATER = 'later.example'
KEPT_MAILS = 200


class Relay:
    """The handler of aiosmtpd. ``folder``: where each accepted mail becomes a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: set[str] = set()
        self._count = 0

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        domain = address.rpartition('@')[2].lower()
        if domain == REFUSED:
            return f'550 5.1.1 <{address}>: no such mailbox here'
        if domain == LATER and address not in self._seen:
            self._seen.add(address)
            return f'451 4.7.1 <{address}>: greylisted, please try again in a few seconds'
        envelope.rcpt_tos.append(address)
        return '250 2.1.5 Ok'

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        self._count += 1
        name = f'{time.time_ns():020d}-{self._count}'
        facts = {
            'sender': envelope.mail_from,
            'recipients': envelope.rcpt_tos,
            'received_at': time.time(),
        }
        self._store(name, json.dumps(facts).encode() + b'\n' + content)
        print(f'accepted {name} for {", ".join(envelope.rcpt_tos)}', flush=True)
        return f'250 2.0.0 Ok: stored as {name}'

    def _store(self, name: str, data: bytes) -> None:
        """Write one file for a mail: a line of JSON with the envelope, then the exact bytes."""
        written = self._folder / f'.{name}'
        written.write_bytes(data)
        written.rename(self._folder / name)
        for old in sorted(self._folder.glob('[0-9]*'))[:-KEPT_MAILS]:
            old.unlink(missing_ok=True)


async def serve(folder: Path, port: int) -> None:
    """Listen on loopback until SIGTERM or SIGINT."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    protocol = partial(
        SMTP,
        Relay(folder),
        hostname='relay.example.org',
        ident='the relay of the demo',
        enable_SMTPUTF8=True,
        loop=loop,
    )
    server = await loop.create_server(protocol, '127.0.0.1', port)
    print(f'listening on 127.0.0.1:{port}', flush=True)
    await stopped.wait()
    server.close()


def main() -> int:
    """Run the relay; return its exit status."""
    try:
        locations = Locations.from_environment()
        asyncio.run(serve(locations.delivered, locations.relay_port))
    except (OSError, ValueError) as error:
        print(f'demo.relay: {error}', file=sys.stderr)
        return 1
    return os.EX_OK


if __name__ == '__main__':
    sys.exit(main())
