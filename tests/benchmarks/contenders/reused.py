"""Files sent and removed by a library alone: ``reused smtplib|aiosmtplib FOLDER PORT CONNECTIONS``.

The least that a script would do: each connection is kept; nothing is locked, recorded or retried.
"""

from __future__ import annotations

import asyncio
import os
import smtplib
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.work import RECIPIENT_ADDRESS, SENDER_ADDRESS

_HOST = '127.0.0.1'


def by_smtplib(paths: Iterator[Path], port: int) -> None:
    """One after the other."""
    with smtplib.SMTP(_HOST, port, local_hostname='web.example.org') as connection:
        for path in paths:
            connection.sendmail(SENDER_ADDRESS, [RECIPIENT_ADDRESS], path.read_bytes())
            path.unlink()


async def by_aiosmtplib(paths: Iterator[Path], port: int, connections: int) -> None:
    """Each connection takes the next file."""
    import aiosmtplib

    async def work() -> None:
        client = aiosmtplib.SMTP(hostname=_HOST, port=port, local_hostname='web.example.org')
        async with client:
            for path in paths:
                await client.sendmail(SENDER_ADDRESS, [RECIPIENT_ADDRESS], path.read_bytes())
                path.unlink()

    await asyncio.gather(*(work() for _ in range(connections)))


def main(library: str, folder: str, port: str, connections: str) -> None:
    """Send all that is there."""
    paths = iter([Path(folder, name) for name in sorted(os.listdir(folder))])
    if library == 'smtplib':
        by_smtplib(paths, int(port))
    else:
        asyncio.run(by_aiosmtplib(paths, int(port), int(connections)))


if __name__ == '__main__':
    main(*sys.argv[1:])
