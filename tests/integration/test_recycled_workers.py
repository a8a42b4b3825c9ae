"""``mail.processor = thread`` under gunicorn, whose workers are recycled after each request."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.support.applications import ROOT
from tests.support.children import Place
from tests.support.ports import free_port
from tests.support.queues import until
from tests.support.smtp.server import reply

pytestmark = pytest.mark.skipif(
    find_spec('gunicorn') is None, reason='gunicorn: pip install gunicorn'
)

SITE = """\
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid_sendmail import Message

def view(request):
    request.mailer.send(
        Message(subject='Hi', to='ann@example.org', text='Hi', sender='shop@example.org')
    )
    return Response('sent')

def site(**settings):
    with Configurator(settings=settings) as config:
        config.include('pyramid_sendmail')
        config.add_route('send', '/')
        config.add_view(view, route_name='send')
        return config.make_wsgi_app()
"""


@contextmanager
def gunicorn(place: Place, *options: str) -> Iterator[str]:
    """Run one worker, which is recycled after each request; yield its URL."""
    code = place.path / 'recycled_site.py'
    settings = {
        'mail.url': place.server.url,
        'mail.queue_path': place.queue.path,
        'mail.processor': 'thread',
        'mail.hostname': 'web.example.org',
    }
    code.write_text(f'{SITE}\napp = site(**{settings!r})\n')
    port = free_port()
    with (place.path / 'gunicorn.log').open('wb') as log:
        process = subprocess.Popen(
            [
                *(sys.executable, '-W', 'ignore', '-m', 'gunicorn', '--workers', '1'),
                *('--max-requests', '1', '--bind', f'127.0.0.1:{port}', *options),
                'recycled_site:app',
            ],
            cwd=ROOT,
            env={
                **os.environ,
                'PYTHONPATH': os.pathsep.join([str(code.parent), os.environ.get('PYTHONPATH', '')]),
            },
            stdout=log,
            stderr=log,
        )
        try:
            yield f'http://127.0.0.1:{port}/'
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(40)


def get(url: str) -> None:
    def answered() -> bool:
        with suppress(URLError, ConnectionError), urlopen(url, timeout=20) as answer:
            return bool(answer.read() == b'sent')
        return False

    until(answered, 40)


def waiting(place: Place) -> int:
    return len(list((Path(place.queue.path) / 'new').iterdir()))


@pytest.mark.slow
def test_each_worker_sends_its_mail(place: Place) -> None:
    """The mail of each request leaves without another request, although its worker ends."""
    with gunicorn(place) as url:
        for number in range(1, 4):
            get(url)
            place.server.wait_for(number, 20)
    assert place.server.accepted('ann@example.org') == 3


@pytest.mark.slow
def test_a_new_worker_sends_what_waits(place: Place) -> None:
    """Mail that a worker could not send, because the relay was down, is sent by the worker in its
    place, without a request."""
    place.server.always('connect', reply(421, '4.3.2 not now'))
    with gunicorn(place) as url:
        get(url)
        until(lambda: waiting(place) == 1, 20)
        connections = place.server.connections
        # The next worker tries as well.
        until(lambda: place.server.connections > connections + 1, 40)
        place.server.always('connect', reply(220, 'relay.example.org ESMTP'))
        place.server.wait_for(1, 80)
        until(lambda: waiting(place) == 0)
