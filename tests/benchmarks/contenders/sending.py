"""An application that sends until a file is there: ``sending INI STOP RATE``.

Two threads, a fresh request for each mail, so many mails a second in all, or as many as there is
time for. It prints how many were committed.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from pyramid.paster import get_app, setup_logging
from pyramid.request import Request, apply_request_extensions

from tests.benchmarks.contenders.request import message
from tests.benchmarks.contenders.stopwatch import report
from tests.benchmarks.work import mail_of

_THREADS = 2


def main(ini: str, stop: str, rate: str) -> None:
    """Send."""
    setup_logging(ini)
    app = get_app(ini)
    mail = mail_of('2k')
    environ = Request.blank('/send').environ
    pause = _THREADS / float(rate)
    counts: list[int] = []

    def work() -> None:
        sent, due = 0, time.monotonic()
        while not os.path.exists(stop):
            request = Request(dict(environ))
            request.registry = app.registry
            apply_request_extensions(request)
            with request.tm:
                request.mailer.send(message(mail))
            sent += 1
            due = max(due + pause, time.monotonic() - 1.0)
            time.sleep(max(due - time.monotonic(), 0.0))
        counts.append(sent)

    threads = [threading.Thread(target=work) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(counts) < _THREADS:
        sys.exit('a thread has failed')
    report(mails=sum(counts))


if __name__ == '__main__':
    main(*sys.argv[1:])
