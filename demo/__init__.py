"""A small Pyramid application that shows a mail's way: request, commit, Maildir, queue processor,
SMTP, event. ``make demo`` runs it; ``demo/development.ini`` is its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .places import Places

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyramid.router import Router

__all__ = ['main', 'server']


def main(global_config: Mapping[str, str], **settings: str) -> Router:
    """Make the WSGI application; what pserve and psendmail-qp both call.

    ``DEMO_PORT`` and ``DEMO_VAR`` in the environment move the demo away from what
    development.ini says.
    """
    # Here, because the relay and the supervisor, which need no Pyramid, start faster so.
    from pyramid.config import Configurator

    with Configurator(settings=Places.from_environment().applied_to(settings)) as config:
        config.include('pyramid_tm')
        config.include('pyramid_jinja2')
        config.include('pyramid_sendmail')
        config.include('.models')
        config.include('.subscribers')
        config.include('.views')
        return config.make_wsgi_app()


def server(global_config: Mapping[str, str], **settings: str) -> Callable[[Any], None]:
    """Make the server: waitress, listening where ``DEMO_PORT`` says."""
    from waitress import serve

    port = Places.from_environment().port
    if port is not None:
        settings['listen'] = f'127.0.0.1:{port}'
    return partial(serve, **settings)
