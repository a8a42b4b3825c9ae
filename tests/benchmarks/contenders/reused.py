"""Files sent and removed by a library alone:
``reused smtplib|aiosmtplib FOLDER PORT CONNECTIONS [USER PASSWORD CA_FILE]``.

The least that a script would do: each connection is kept; nothing is locked, recorded or retried.
With USER, by STARTTLS and AUTH.
"""

from __future__ import annotations

import asyncio
import os
import smtplib
import ssl
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.work import RECIPIENT_ADDRESS, SENDER_ADDRESS

_HOST, _NAME = '127.0.0.1', 'web.example.org'


def by_smtplib(paths: Iterator[Path], port: int, login: Sequence[str]) -> None:
    """One after the other."""
    with smtplib.SMTP(_HOST, port, local_hostname=_NAME) as connection:
        if login:
            user, password, ca_file = login
            connection.starttls(context=ssl.create_default_context(cafile=ca_file))
            connection.login(user, password)
        for path in paths:
            connection.sendmail(SENDER_ADDRESS, [RECIPIENT_ADDRESS], path.read_bytes())
            path.unlink()


async def by_aiosmtplib(
    paths: Iterator[Path], port: int, connections: int, login: Sequence[str]
) -> None:
    """Each connection takes the next file."""
    import aiosmtplib

    options = {'hostname': _HOST, 'port': port, 'local_hostname': _NAME, 'start_tls': bool(login)}
    if login:
        user, password, ca_file = login
        context = ssl.create_default_context(cafile=ca_file)
        options |= {'username': user, 'password': password, 'tls_context': context}

    async def work() -> None:
        async with aiosmtplib.SMTP(**options) as client:
            for path in paths:
                await client.sendmail(SENDER_ADDRESS, [RECIPIENT_ADDRESS], path.read_bytes())
                path.unlink()

    await asyncio.gather(*(work() for _ in range(connections)))


def main(library: str, folder: str, port: str, connections: str, *login: str) -> None:
    """Send all that is there."""
    paths = iter([Path(folder, name) for name in sorted(os.listdir(folder))])
    if library == 'smtplib':
        by_smtplib(paths, int(port), login)
    else:
        asyncio.run(by_aiosmtplib(paths, int(port), int(connections), login))


if __name__ == '__main__':
    main(*sys.argv[1:])
