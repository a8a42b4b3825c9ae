"""The peers: a message and the commit, by the way that each one's documentation shows.

``peer_request PEER DIRECTORY KIND STEPS THREADS [PORT]``

PEER is ``zope`` (QueuedMailDelivery), ``zope-direct`` (DirectMailDelivery, to PORT), ``repoze``
(QueuedMailDelivery) or ``pyramid_mailer`` (``send_to_queue``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import transaction

from tests.benchmarks.contenders.stopwatch import Step, measure
from tests.benchmarks.work import (
    RECIPIENT,
    RECIPIENT_ADDRESS,
    SENDER,
    SENDER_ADDRESS,
    Mail,
    email_message,
    mail_of,
)


def main(
    peer: str, directory: str, kind: str, steps: str, threads: str, port: str | None = None
) -> None:
    """Measure."""
    queue = f'{directory}/mail'
    for folder in ('cur', 'new', 'tmp'):
        os.makedirs(f'{queue}/{folder}')
    sends = {'zope': zope, 'repoze': repoze, 'pyramid_mailer': pyramid_mailer}
    send = zope_direct(port) if port else sends[peer](queue)
    mail = mail_of(kind)

    def make() -> Step:
        def step() -> None:
            with transaction.manager:
                send(mail)

        return step

    measure(make, steps=int(steps), threads=int(threads))


def zope(queue: str) -> Callable[[Mail], object]:
    """zope.sendmail wants bytes."""
    from zope.sendmail.delivery import QueuedMailDelivery

    delivery = QueuedMailDelivery(queue)
    return lambda mail: delivery.send(
        SENDER_ADDRESS, [RECIPIENT_ADDRESS], email_message(mail).as_bytes()
    )


def zope_direct(port: str) -> Callable[[Mail], object]:
    """A connection a mail, opened in the vote."""
    from zope.sendmail.delivery import DirectMailDelivery
    from zope.sendmail.mailer import SMTPMailer

    delivery = DirectMailDelivery(SMTPMailer('127.0.0.1', int(port)))
    return lambda mail: delivery.send(
        SENDER_ADDRESS, [RECIPIENT_ADDRESS], email_message(mail).as_bytes()
    )


def repoze(queue: str) -> Callable[[Mail], object]:
    """repoze.sendmail wants a message."""
    from repoze.sendmail.delivery import QueuedMailDelivery

    delivery = QueuedMailDelivery(queue)
    return lambda mail: delivery.send(SENDER_ADDRESS, [RECIPIENT_ADDRESS], email_message(mail))


def pyramid_mailer(queue: str) -> Callable[[Mail], object]:
    """pyramid_mailer has a message of its own."""
    from pyramid_mailer.mailer import Mailer
    from pyramid_mailer.message import Attachment, Message

    mailer = Mailer(queue_path=queue)

    def send(mail: Mail) -> None:
        mailer.send_to_queue(
            Message(
                subject=mail.subject,
                sender=SENDER,
                recipients=[RECIPIENT],
                body=mail.text,
                html=mail.html,
                attachments=[
                    Attachment('file.bin', 'application/octet-stream', data)
                    for data in [mail.attachment]
                    if data is not None
                ],
            )
        )

    return send


if __name__ == '__main__':
    main(*sys.argv[1:])
