"""A proxy on loopback behind which a server is far away: ``far PORT TARGET SECONDS``.

Every block of bytes arrives so many seconds after it was sent, in either direction, however many
are under way. A new connection costs what it does at such a distance: the server's greeting is
there two round trips after the connection was asked for. Neither congestion windows nor losses are
imitated: large messages are slower on a real network.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

BLOCK = 1 << 16


async def main(port: int, target: int, seconds: float) -> None:
    """Listen until the process is ended."""

    async def accepted(near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        # SYN, SYN and ACK, ACK: then the server knows of the connection.
        await asyncio.sleep(3 * seconds)
        with contextlib.suppress(ConnectionError):
            far, forth = await asyncio.open_connection('127.0.0.1', target)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_carry(near, forth, seconds))
                tasks.create_task(_carry(far, back, seconds))

    server = await asyncio.start_server(accepted, '127.0.0.1', port, backlog=1024, limit=BLOCK)
    async with server:
        await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, by: float) -> None:
    loop = asyncio.get_running_loop()
    last = loop.time()
    with contextlib.suppress(ConnectionError):
        while block := await reader.read(BLOCK):
            last = loop.time() + by
            loop.call_at(last, writer.write, block)
    await asyncio.sleep(max(last - loop.time(), 0) + by)
    with contextlib.suppress(ConnectionError):
        writer.close()
        await writer.wait_closed()


if __name__ == '__main__':
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
