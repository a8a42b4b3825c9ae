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

from .mail import to_later, to_unknown, welcome
from .models import SignUp
from .status import Delivered, content_of, read_delivered, status

__all__ = ['ChangeOfHeart', 'defer', 'home', 'refuse', 'send_and_raise', 'sign_up']

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
    return {'name': '', 'email': '', 'error': ''}


def sign_up(request: Request) -> Any:
    """Write a row and send a welcome mail: both or neither."""
    name, email = _typed(request)
    try:
        _enter(request, name, email)
    except ValueError as error:
        request.response.status = 400
        return {'name': name, 'email': email, 'error': str(error)}
    return HTTPSeeOther(request.route_path('home'))


def send_and_raise(request: Request) -> Any:
    """Do the same, then raise: neither the row nor the mail is left."""
    name, email = _typed(request)
    raise ChangeOfHeart(_enter(request, name or 'Ann', email or 'ann@example.org'))


def raised(error: ChangeOfHeart, request: Request) -> dict[str, Any]:
    """Render the exception. pyramid_tm aborts the transaction, whatever the response is."""
    request.response.status = 500
    return {'message_id': error.message_id, 'error': str(error)}


def refuse(request: Request) -> Any:
    """Send a mail that the relay refuses: the error event comes after this request."""
    request.mailer.send(to_unknown())
    return HTTPSeeOther(request.route_path('home'))


def defer(request: Request) -> Any:
    """Send a mail that the relay defers: it waits in the queue."""
    request.mailer.send(to_later())
    return HTTPSeeOther(request.route_path('home'))


def _typed(request: Request) -> tuple[str, str]:
    return request.POST.get('name', '').strip(), request.POST.get('email', '').strip()


def _enter(request: Request, name: str, email: str) -> str:
    """Send first: a bad address raises an error there, before the row is written."""
    if not name:
        raise ValueError('Please enter your name.')
    if email.count('@') > 1:
        raise ValueError(f'{email}: one address, please, with one @.')
    message_id: str = request.mailer.send(welcome(request, name, email))
    request.dbsession.add(
        SignUp(at=time.time(), name=name, email=email, message_id=message_id),
    )
    return message_id


def _delivered(request: Request) -> Delivered:
    folder = Path(request.registry.settings['demo.delivered'])
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
    for name, path, view, options in (
        ('home', '/', home, {'renderer': index, 'request_method': 'GET'}),
        ('signup', '/signup', sign_up, {'renderer': index, 'request_method': 'POST'}),
        ('raise', '/raise', send_and_raise, {'request_method': 'POST'}),
        ('refuse', '/refuse', refuse, {'request_method': 'POST'}),
        ('defer', '/defer', defer, {'request_method': 'POST'}),
        ('status', '/status.json', status, {'renderer': 'json'}),
        ('delivered', '/delivered/{id}', delivered, {}),
        ('source', '/delivered/{id}/source', source, {}),
        ('part', r'/delivered/{id}/{number:\d+}', part, {}),
    ):
        config.add_route(name, path)
        config.add_view(view, route_name=name, **options)
    config.add_exception_view(
        raised, context=ChangeOfHeart, renderer='demo:templates/raised.jinja2'
    )
    config.add_static_view('static', 'demo:static')
    config.add_subscriber(guard, NewResponse)
