"""Ours: ``request.mailer.send`` and the commit, on requests of a real application.

``request DIRECTORY KIND STEPS THREADS [key=value ...]``

Each step has a request of its own, made as the router makes it, so that ``request.mailer`` and
``request.tm`` are new each time. The keys are settings, and: ``mails=10``, so many in each
transaction; ``whole=yes``, each mail by a view, through the router and pyramid_tm, rather than in
``with request.tm:`` as a script does it.
"""

from __future__ import annotations

import sys
from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request, apply_request_extensions

from pyramid_sendmail import Attachment, Message
from tests.benchmarks.contenders.stopwatch import Step, measure
from tests.benchmarks.work import RECIPIENT, SENDER, Mail, mail_of


def main(directory: str, kind: str, steps: str, threads: str, *pairs: str) -> None:
    """Measure."""
    options = dict(pair.split('=', 1) for pair in pairs)
    mails = int(options.pop('mails', 1))
    whole = options.pop('whole', None)
    mail = mail_of(kind)
    app = application({'mail.queue_path': f'{directory}/mail', **options}, mail, mails)

    def make_whole() -> Step:
        def step() -> None:
            response = Request.blank('/send').get_response(app)
            assert response.status_code == 200, response

        return step

    def make() -> Step:
        environ = Request.blank('/send').environ

        def step() -> None:
            request = Request(dict(environ))
            request.registry = app.registry
            apply_request_extensions(request)
            with request.tm:
                for _ in range(mails):
                    request.mailer.send(message(mail))

        return step

    measure(
        make_whole if whole else make,
        steps=int(steps),
        mails_a_step=mails,
        threads=int(threads),
    )


def application(settings: dict[str, Any], mail: Mail, mails: int) -> Any:
    """The smallest one that sends mail."""

    def send(request: Any) -> dict[str, bool]:
        for _ in range(mails):
            request.mailer.send(message(mail))
        return {'sent': True}

    settings = {'mail.hostname': 'web.example.org', **settings}
    if settings.get('mail.delivery') == 'direct':
        del settings['mail.queue_path']
    with Configurator(settings=settings) as config:
        config.include('pyramid_tm')
        config.include('pyramid_sendmail')
        config.add_route('send', '/send')
        config.add_view(send, route_name='send', renderer='json')
        return config.make_wsgi_app()


def message(mail: Mail) -> Message:
    """The mail, as an application writes it."""
    return Message(
        subject=mail.subject,
        sender=SENDER,
        to=[RECIPIENT],
        text=mail.text,
        html=mail.html,
        attachments=[Attachment('file.bin', data=mail.attachment)] if mail.attachment else (),
    )


if __name__ == '__main__':
    main(*sys.argv[1:])
