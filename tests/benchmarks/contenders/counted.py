"""What is counted, one phase after the other: ``counted FOLDER PORT MAILS [steps]``.

``reference``: the standard library's EmailMessage made into bytes. ``build``: ours. ``send``:
``request.mailer.send`` and the commit, into a queue on disk. ``drain``: the queue processor sends
these mails to the sink at PORT, over one connection. Between the phases stands a call of
getpriority, which nothing else makes: valgrind dumps its counts there, and strace shows it. With
``steps`` it counts the interpreter's own instructions, in all threads, and prints them by phase.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from email import policy
from types import FrameType
from typing import Any

from pyramid.scripting import prepare

from pyramid_sendmail.config.factories import processor_of
from tests.benchmarks.contenders.build import by_ours
from tests.benchmarks.contenders.request import application, message
from tests.benchmarks.work import email_message, mail_of

PHASES = ('reference', 'build', 'send', 'drain')

_WARM_UP = 10


class Steps:
    """Counts the interpreter's instructions (opcodes) from its start on."""

    def __init__(self) -> None:
        self.count = 0

    def start(self) -> None:
        threading.settrace(self._called)
        sys.settrace(self._called)

    def _called(self, frame: FrameType, event: str, argument: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, argument: object) -> Any:
        self.count += event == 'opcode'
        return self._stepped


def main(folder: str, port: str, mails: str, how: str = '') -> None:
    """Warm up, then let each phase be counted."""
    mail = mail_of('2k')
    settings = {
        'mail.queue_path': f'{folder}/mail',
        'mail.url': f'smtp://127.0.0.1:{port}',
        'mail.workers': '1',
        'mail.batch': mails,
    }
    app = application(settings, mail, 1)
    request: Any = prepare(registry=app.registry)['request']
    ours = by_ours()

    def reference(count: int) -> None:
        for _ in range(count):
            email_message(mail, policy.SMTP).as_bytes()

    def build(count: int) -> None:
        for _ in range(count):
            ours(mail)

    def send(count: int) -> None:
        for _ in range(count):
            with request.tm:
                request.mailer.send(message(mail))

    def drain(count: int) -> None:
        processor_of(app.registry).run_once()

    phases = (reference, build, send, drain)
    for phase in phases:
        phase(_WARM_UP)
    steps = Steps()
    if how:
        steps.start()
    found = {}
    for name, phase in zip(PHASES, phases, strict=True):
        before = steps.count
        _mark()
        phase(int(mails))
        found[name] = (steps.count - before) / int(mails)
    _mark()
    if how:
        print(json.dumps(found))


def _mark() -> None:
    os.getpriority(os.PRIO_PROCESS, 0)


if __name__ == '__main__':
    main(*sys.argv[1:])
