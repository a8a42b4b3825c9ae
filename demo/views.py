"""The page, its buttons, and what it shows.

The forms carry no CSRF token: the demo listens on loopback and has nothing to lose. An application
that people log into needs one, ``config.set_default_csrf_options(require_csrf=True)``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pyramid.config import Configurator
from pyramid.events import NewResponse
from pyramid.httpexceptions import HTTPNotFound, HTTPSeeOther
from pyramid.request import Request
from pyramid.response import Response

from pyramid_sendmail import MessageError
from pyramid_sendmail.interfaces import IMailQueue

from .code import source_of
from .locations import ROOT
from .mail import reminder, to_later, to_unknown, welcome
from .models import SignUp
from .parts import Parts
from .status import Delivered, content_of, read_delivered, status
from .subscribers import includeme as add_subscribers
from .subscribers import on_deferred, on_error, on_sent, write

__all__ = [
    'ChangeOfHeart',
    'defer',
    'drop',
    'home',
    'refuse',
    'retry',
    'send_and_raise',
    'send_hundred',
    'sign_up',
    'switch',
]

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
MAIL_POLICY = (
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
)


class ChangeOfHeart(Exception):
    """What the view raises after it has sent: to the transaction an error like any other."""

    def __init__(self, message_id: str) -> None:
        super().__init__('something went wrong after the mail was sent')
        self.message_id = message_id


def home(request: Request) -> dict[str, Any]:
    """Render the page."""
    return _page(request)


def sign_up(request: Request) -> Any:
    """Send a welcome mail and write a row: both, or neither."""
    name, email = (request.POST.get(field, '').strip() for field in ('name', 'email'))
    if not name:
        return _page(request, 'Please enter your name.', email=email, wrong='name')
    try:
        message_id = request.mailer.send(welcome(request, name, email))
    except MessageError:
        # Nothing is queued. What the exception says is for developers.
        error = f'No mail can be sent to {name} <{email}>: please check the address.'
        return _page(request, error, name=name, email=email, wrong='email')
    request.dbsession.add(
        SignUp(at=time.time(), name=name, email=email, message_id=message_id),
    )
    return HTTPSeeOther(request.route_path('home', _anchor='signup'))


def send_and_raise(request: Request) -> Any:
    """Send a welcome mail and write a row, then raise: neither is left."""
    message_id = request.mailer.send(welcome(request, 'Ann', 'ann@example.org'))
    request.dbsession.add(
        SignUp(at=time.time(), name='Ann', email='ann@example.org', message_id=message_id),
    )
    raise ChangeOfHeart(message_id)


def raised(error: ChangeOfHeart, request: Request) -> dict[str, Any]:
    """Render the exception. pyramid_tm aborts the transaction, whatever the response is."""
    request.response.status = 500
    return {'message_id': error.message_id, 'error': str(error)}


def refuse(request: Request) -> Any:
    """Send a mail that the relay refuses: the error event comes after this request."""
    request.mailer.send(to_unknown())
    return HTTPSeeOther(request.route_path('home', _anchor='refuse'))


def defer(request: Request) -> Any:
    """Send a mail that the relay defers: it waits in the queue."""
    request.mailer.send(to_later())
    return HTTPSeeOther(request.route_path('home', _anchor='defer'))


def send_hundred(request: Request) -> Any:
    """Send a hundred mails in one transaction: the commit queues all of them, or none."""
    for number in range(1, 101):
        request.mailer.send(reminder(number))
    return HTTPSeeOther(request.route_path('home', _anchor='hundred'))


def retry(request: Request) -> Any:
    """Make a dead letter due now: the recipients that failed are tried again."""
    queue = request.registry.getUtility(IMailQueue)
    mail = queue.get(request.matchdict['id'])
    if mail is not None:  # else it is gone already
        queue.retry(mail.info)
    return HTTPSeeOther(request.route_path('home', _anchor='failed-title'))


def drop(request: Request) -> Any:
    """Remove a dead letter for good."""
    queue = request.registry.getUtility(IMailQueue)
    mail = queue.get(request.matchdict['id'])
    if mail is not None:  # else it is gone already
        queue.drop(mail.info)
    return HTTPSeeOther(request.route_path('home', _anchor='failed-title'))


def switch(request: Request) -> Any:
    """Stop the queue processor or the relay, or start it again: demo/run.py does it."""
    part, action = request.matchdict['part'], request.matchdict['action']
    parts = Parts(Path(request.registry.settings['demo.folder']))
    if part not in parts.read():
        raise HTTPNotFound('Only "make demo" can stop its parts.')
    getattr(parts, action)(part)
    return HTTPSeeOther(request.route_path('home', _anchor=part))


CODE = {
    'signup': source_of(sign_up, welcome, on_sent, write, add_subscribers),
    'raise': source_of(send_and_raise),
    'refuse': source_of(refuse, to_unknown, on_error),
    'defer': source_of(defer, to_later, on_deferred),
    'hundred': source_of(send_hundred, reminder),
    'switch': source_of(switch),
    'failed': source_of(retry, drop),
}


def _page(
    request: Request, error: str = '', *, name: str = '', email: str = '', wrong: str = ''
) -> dict[str, Any]:
    """Return what the page needs. ``wrong``: the field that the error is about."""
    settings = request.registry.settings
    queue = Path(settings['mail.queue_path'])
    if error:
        request.response.status = 400
    return {
        'name': name,
        'email': email,
        'error': error,
        'wrong': wrong,
        'code': CODE,
        'parts': Parts(Path(settings['demo.folder'])).read(),
        'queue': queue.relative_to(ROOT) if queue.is_relative_to(ROOT) else queue,
    }


def _delivered(request: Request) -> Delivered:
    folder = Path(request.registry.settings['demo.folder']) / 'delivered'
    mail = read_delivered(folder, request.matchdict['id'])
    if mail is None:
        raise HTTPNotFound('The relay has no such mail.')
    return mail


def delivered(request: Request) -> Response:
    """Return the html of a delivered mail for a sandboxed frame without scripts."""
    response = Response(_delivered(request).page(), content_type='text/html', charset='utf-8')
    response.headers['Content-Security-Policy'] = MAIL_POLICY
    return response


def source(request: Request) -> Response:
    """Return the exact bytes of a delivered mail, as text."""
    return Response(_delivered(request).raw, content_type='text/plain', charset='utf-8')


def part(request: Request) -> Response:
    """Return an attachment to be saved, not shown: mail may contain anything."""
    parts = _delivered(request).parts
    number = int(request.matchdict['number'])
    if number >= len(parts):
        raise HTTPNotFound('The mail has no such part.')
    return Response(
        content_of(parts[number]),
        content_type='application/octet-stream',
        content_disposition=f"attachment; filename*=UTF-8''{quote(parts[number].get_filename(''))}",
    )


def guard(event: NewResponse) -> None:
    """Set the headers of every response: nothing from outside, nothing guessed, nothing cached."""
    headers = event.response.headers
    headers.setdefault('Content-Security-Policy', PAGE_POLICY)
    headers.setdefault('X-Content-Type-Options', 'nosniff')
    headers.setdefault('Referrer-Policy', 'no-referrer')
    if not event.request.path.startswith('/static/'):
        headers['Cache-Control'] = 'no-store'


def includeme(config: Configurator) -> None:
    """Add routes and views."""
    index = 'demo:templates/index.jinja2'
    config.add_route('home', '/')
    config.add_view(home, route_name='home', renderer=index, request_method='GET')
    config.add_route('signup', '/signup')
    config.add_view(sign_up, route_name='signup', renderer=index, request_method='POST')
    for name, path, view in (
        ('raise', '/raise', send_and_raise),
        ('refuse', '/refuse', refuse),
        ('defer', '/defer', defer),
        ('hundred', '/hundred', send_hundred),
        ('retry', '/failed/{id:[0-9a-f]+}/retry', retry),
        ('drop', '/failed/{id:[0-9a-f]+}/drop', drop),
        ('switch', '/{part:processor|relay}/{action:stop|start}', switch),
    ):
        config.add_route(name, path)
        config.add_view(view, route_name=name, request_method='POST')
    config.add_route('status', '/status.json')
    config.add_view(status, route_name='status', renderer='json')
    for name, path, view in (
        ('delivered', '/delivered/{id}', delivered),
        ('source', '/delivered/{id}/source', source),
        ('part', r'/delivered/{id}/{number:\d+}', part),
    ):
        config.add_route(name, path)
        config.add_view(view, route_name=name)
    config.add_exception_view(
        raised, context=ChangeOfHeart, renderer='demo:templates/raised.jinja2'
    )
    config.add_static_view('static', 'demo:static')
    config.add_subscriber(guard, NewResponse)
