"""Fills a queue: ``fill INI KIND COUNT [once|SECONDS]``.

A file a mail, as any application would leave it by ``request.mailer.send``; due in so many seconds,
or at once. With ``once`` the same mail is composed once and put there under as many names, which is
quicker.
"""

from __future__ import annotations

import secrets
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any

from pyramid.paster import bootstrap

from pyramid_sendmail.interfaces import IMailQueue
from pyramid_sendmail.message import EnvelopeFactory
from tests.benchmarks.contenders.request import message
from tests.benchmarks.work import mail_of

_A_TRANSACTION = 500


def main(ini: str, kind: str, count: str, how: str = '0') -> None:
    """Fill it."""
    with bootstrap(ini) as environment:
        for begin in range(0, int(count), _A_TRANSACTION):
            mails = min(_A_TRANSACTION, int(count) - begin)
            if how == 'once':
                _put(environment['registry'], kind, mails)
            else:
                _send(environment['request'], kind, mails, int(how))


def _send(request: Any, kind: str, count: int, seconds: int) -> None:
    mail = mail_of(kind)
    due = timedelta(seconds=seconds) if seconds else None
    with request.tm:
        for _ in range(count):
            request.mailer.send(message(mail), due=due)


def _put(registry: Any, kind: str, count: int) -> None:
    envelope = EnvelopeFactory(hostname='web.example.org').envelope(message(mail_of(kind)))
    mails = [replace(envelope, id=secrets.token_hex(16)) for _ in range(count)]
    registry.getUtility(IMailQueue).put(mails).publish()


if __name__ == '__main__':
    main(*sys.argv[1:])
