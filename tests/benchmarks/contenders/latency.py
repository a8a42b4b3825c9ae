"""From the commit to the relay's 250, with an idle psendmail-qp: ``latency FOLDER MAILS SECONDS``.

The application commits in this process; a ``psendmail-qp`` child delivers; the relay is a small
real SMTP server on loopback, in this process too. Everything is as it is by default, fsync
included. The time begins before the commit, with ``send`` behind us, and ends when the relay has
the whole message and writes its 250. The processor is idle each time: the mail before has left the
queue. The first mails, which open the connection, are not counted. Then nothing is sent for so many
seconds: what the child uses of the processor in that time is its idle cost.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from pyramid.paster import bootstrap

from tests.benchmarks.application import write_ini
from tests.benchmarks.contenders.request import message
from tests.benchmarks.contenders.stopwatch import report
from tests.benchmarks.processes import finish, ours, start, until
from tests.benchmarks.work import mail_of
from tests.support.smtp.server import Action, ScriptedSMTPServer, Session

_WARM_UP = 5


def main(folder: str, mails: str, seconds: str) -> None:
    """Measure."""
    arrivals: list[float] = []

    def note(session: Session) -> Action | None:
        arrivals.append(time.perf_counter())
        return None

    with ScriptedSMTPServer() as server:
        server.always('dot', note)
        queue = Path(folder) / 'mail'
        settings = {
            'mail.queue_path': queue,
            'mail.hostname': 'web.example.org',
            'mail.url': server.url,
        }
        ini = write_ini(Path(folder), settings)
        output = Path(folder) / 'output'
        with bootstrap(str(ini)) as environment:
            child = start(ours('-m', 'pyramid_sendmail.scripts.qp', ini), output=output)
            try:
                until(lambda: 'watching' in output.read_text(), seconds=20.0)
                send = _sender(environment['request'], queue, arrivals)
                took = [send() for _ in range(_WARM_UP + int(mails))][_WARM_UP:]
                idle = _idle(child.pid, float(seconds))
            finally:
                finish(child)
    report(
        median=median(each[1] for each in took),
        worst=max(each[1] for each in took),
        commit=median(each[0] for each in took),
        idle=idle,
    )


def _sender(request: Any, queue: Path, arrivals: list[float]) -> Callable[[], tuple[float, float]]:
    mail = mail_of('2k')

    def send() -> tuple[float, float]:
        before = len(arrivals)
        request.tm.begin()
        request.mailer.send(message(mail))
        began = time.perf_counter()
        request.tm.commit()
        committed = time.perf_counter()
        until(lambda: len(arrivals) > before, seconds=20.0)
        until(lambda: not any(map(_names, _folders(queue))), seconds=20.0)
        return committed - began, arrivals[before] - began

    return send


def _folders(queue: Path) -> list[Path]:
    return [queue / name for name in ('tmp', 'new', 'cur', 'done', 'failed')]


def _names(folder: Path) -> list[str]:
    return os.listdir(folder)


def _idle(pid: int, seconds: float) -> float:
    """Seconds of the processor in a minute in which nothing happens."""
    time.sleep(1.5)  # what the last mail leaves to do is done within a second
    before = _used(pid)
    time.sleep(seconds)
    return (_used(pid) - before) * 60 / seconds


def _used(pid: int) -> float:
    tasks = Path(f'/proc/{pid}/task').glob('*/schedstat')
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


if __name__ == '__main__':
    main(*sys.argv[1:])
