"""A small Pyramid application that shows the way of a mail: request, commit, Maildir, queue
processor, SMTP, event. ``make demo`` runs it; ``demo/development.ini`` is its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .locations import Locations

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyramid.router import Router

__all__ = ['main', 'server']


def main(global_config: Mapping[str, str], **settings: str) -> Router:
    """Return the WSGI application; pserve and psendmail-qp both call this.

    ``DEMO_PORT`` and ``DEMO_VAR`` in the environment override development.ini.
    """
    # Imported here: the relay and the supervisor need no Pyramid and start faster without it.
    from pyramid.config import Configurator

    with Configurator(settings=Locations.from_environment().applied_to(settings)) as config:
        config.include('pyramid_tm')
        config.include('pyramid_jinja2')
        config.include('pyramid_sendmail')
        config.include('.models')
        config.include('.subscribers')
        config.include('.views')
        return config.make_wsgi_app()


def server(global_config: Mapping[str, str], **settings: str) -> Callable[[Any], None]:
    """Return the server: waitress, on the port that ``DEMO_PORT`` names."""
    from waitress import serve

    port = Locations.from_environment().port
    if port is not None:
        settings['listen'] = f'127.0.0.1:{port}'
    return partial(serve, **settings)
