"""How long a mail takes from the commit to the relay's 250, and how many a drain sends a second.

The application commits in this process; an idle ``psendmail-qp`` child delivers; the relay is a
small real SMTP server on loopback, in this process too. Everything is as it is by default, fsync
included.

``commit to 250``: from the moment before ``transaction.commit()`` is called, with the message
composed and ``send`` behind us, to the moment at which the relay has the whole message and writes
its 250. The processor is idle each time: the mail before has left the queue. The first mails, which
open the connection, are not counted.

``commit``: that part of it which the request waits for.

``psendmail-qp --once``: mails by the seconds between the first and the last 250, and by the
whole life of the process, imports included.

Run by ``python -m tests.benchmarks.latency [MAILS]``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import transaction
from pyramid.paster import get_app

from pyramid_sendmail import Message
from pyramid_sendmail.interfaces import IMailDelivery

from ..functional.test_qp import Place
from ..queue_fixtures import files, until
from ..smtp_server import Action, ScriptedSMTPServer, Session

__all__ = ['main']

MAILS = 50
WARM_UP = 5
DRAINED = 500

BODY = 'A line of an ordinary mail, about as long as such lines are.\n' * 30


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    arguments = sys.argv[1:] if argv is None else argv
    mails = int(arguments[0]) if arguments else MAILS
    with tempfile.TemporaryDirectory() as folder, ScriptedSMTPServer() as server:
        place = Place(Path(folder), server)
        arrivals: list[float] = []

        def note(session: Session) -> Action | None:
            arrivals.append(time.perf_counter())
            return None

        server.always('dot', note)
        ini = place.ini(mail_queue_sync='always')
        delivery = get_app(str(ini)).registry.getUtility(IMailDelivery)
        commits, latencies = latency(place, delivery, arrivals, ini, mails)
        drain, life = throughput(place, delivery, arrivals, ini)
        place.queue.close()
    print(f'{"milliseconds":32}{"median":>10}{"p95":>10}{"max":>10}')
    for name, seconds in ((f'commit to 250, {mails} mails', latencies), ('commit', commits)):
        ordered = sorted(seconds)
        figures = (median(ordered), ordered[int(len(ordered) * 0.95)], ordered[-1])
        print(f'{name:32}' + ''.join(f'{figure * 1000:10.2f}' for figure in figures))
    print()
    print(f'{"mails a second":32}{"sending":>10}{"in all":>10}')
    print(f'{f"psendmail-qp --once, {DRAINED} mails":32}{drain:10.0f}{life:10.0f}')
    return 0


def latency(
    place: Place, delivery: Any, arrivals: list[float], ini: Path, mails: int
) -> tuple[list[float], list[float]]:
    """Seconds that each commit took, and from its beginning to the relay's 250."""
    child = place.start(ini)
    child.says('watching')
    commits, latencies = [], []
    for number in range(WARM_UP + mails):
        send(delivery)
        start = time.perf_counter()
        transaction.commit()
        committed = time.perf_counter()
        until(lambda number=number: len(arrivals) > number)  # type: ignore[misc]
        place.drained()
        if number >= WARM_UP:
            commits.append(committed - start)
            latencies.append(arrivals[number] - start)
    child.stop()
    return commits, latencies


def throughput(
    place: Place, delivery: Any, arrivals: list[float], ini: Path
) -> tuple[float, float]:
    """Mails a second while sending, and over the whole life of the process."""
    for _ in range(DRAINED):
        send(delivery)
    transaction.commit()
    assert len(files(place.queue)) == DRAINED
    arrivals.clear()
    start = time.perf_counter()
    child = place.start(ini, '--once', '--quiet')
    child.wait(60)
    end = time.perf_counter()
    assert len(arrivals) == DRAINED, child.text
    return DRAINED / (arrivals[-1] - arrivals[0]), DRAINED / (end - start)


def send(delivery: Any) -> None:
    """Begin a transaction if there is none, and send a mail of 2 KB in it."""
    if not getattr(transaction.manager.manager, '_txn', None):
        transaction.begin()
    delivery.send(
        Message(
            subject='A benchmark',
            sender='shop@example.org',
            to=['ann@example.org'],
            text=BODY,
        )
    )


if __name__ == '__main__':
    sys.exit(main())
