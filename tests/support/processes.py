"""Work done in a child process, with limits, a user and locks of its own."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from tests.support.queues import reap

__all__ = ['PROCESSOR_THREAD', 'in_child']

PROCESSOR_THREAD = """
import os, sys, threading, time, warnings

import transaction
from pyramid.config import Configurator
from pyramid.response import Response
from webtest import TestApp
from pyramid_sendmail import Message
from pyramid_sendmail.config.factories import IProcessorThread
from pyramid_sendmail.interfaces import IMailDelivery

warnings.simplefilter('error')
warnings.filterwarnings('ignore', '.*fork.*', DeprecationWarning)

def view(request):
    send(request.mailer, 'request')
    return Response('sent')

def send(mailer, subject):
    mailer.send(
        Message(subject=subject, to='ann@example.org', text='Hi', sender='shop@example.org')
    )

def send_outside(subject):
    with transaction.manager:
        send(config.registry.getUtility(IMailDelivery), subject)

def running():
    return any(thread.name == 'pyramid_sendmail queue' for thread in threading.enumerate())

settings = dict(item.split('=', 1) for item in sys.argv[1:])
config = Configurator(settings={'mail.processor': 'thread', **settings})
config.include('pyramid_sendmail')
config.add_route('send', '/')
config.add_view(view, route_name='send')
app = TestApp(config.make_wsgi_app())
"""
"""The beginning of a program: an application with a queue processor in a thread. Its arguments are
settings."""


def in_child(work: Callable[[], object]) -> None:
    """Call ``work`` in a forked child, which must succeed; print its traceback otherwise."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    assert reap(pid) == 0
