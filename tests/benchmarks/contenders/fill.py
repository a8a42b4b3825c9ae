"""Fills a queue by ``request.mailer.send``: ``fill INI KIND COUNT [SECONDS]``.

A file a mail, as any application would leave it; due in so many seconds, or at once.
"""

from __future__ import annotations

import sys
from datetime import timedelta

from pyramid.paster import bootstrap

from ..work import mail_of
from .request import message

_A_TRANSACTION = 500


def main(ini: str, kind: str, count: str, seconds: str = '0') -> None:
    """Fill it."""
    mail = mail_of(kind)
    due = timedelta(seconds=int(seconds)) if int(seconds) else None
    with bootstrap(ini) as environment:
        request = environment['request']
        for begin in range(0, int(count), _A_TRANSACTION):
            with request.tm:
                for _ in range(min(_A_TRANSACTION, int(count) - begin)):
                    request.mailer.send(message(mail), due=due)


if __name__ == '__main__':
    main(*sys.argv[1:])
