"""Small real applications and the .ini files that configure them, for tests and their children."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request

from pyramid_sendmail import Message

__all__ = [
    'EVENTS',
    'ROOT',
    'WAITING',
    'broken',
    'events',
    'foreign',
    'late',
    'main',
    'mount',
    'quiet',
    'shout',
    'slow',
    'waiting',
    'without_mail',
    'write_ini',
]

ROOT = Path(__file__).resolve().parents[2]

EVENTS = 'tests.database'
"""The setting that names the SQLite file of ``main``."""

WAITING = 'call:tests.support.applications:waiting'
"""An application whose subscriber waits until a file exists."""

LOGGING = """\
[loggers]
keys = root, mail

[logger_root]
level = WARN
handlers = console

[logger_mail]
level = INFO
handlers =
qualname = pyramid_sendmail

[handlers]
keys = console

[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
formatter = line

[formatters]
keys = line

[formatter_line]
format = %(levelname)s %(message)s
"""


def write_ini(
    path: Path,
    settings: Mapping[str, object],
    *,
    use: str = 'call:tests.support.applications:main',
    more: str = '',
) -> Path:
    """Write an .ini file with one application and logging to stderr; return its path."""
    lines = [f'{key} = {value}'.replace('%', '%%') for key, value in settings.items()]
    path.write_text('\n'.join(['[app:main]', f'use = {use}', *lines, '', more, LOGGING]))
    return path


def quiet(global_config: Mapping[str, str], **settings: str) -> Any:
    """Return an application that sends mail and has no subscribers: the fastest to start."""
    with Configurator(settings=settings) as config:
        config.include('pyramid_sendmail')
        return config.make_wsgi_app()


def main(global_config: Mapping[str, str], **settings: str) -> Any:
    """Return an application with a database.

    ``POST /send?to=...`` writes a row and sends a mail; with ``raise`` it fails afterwards. Its
    subscribers write each event to the same database.
    """
    import zope.sqlalchemy
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import sessionmaker

    engine = create_engine(f'sqlite:///{settings.pop(EVENTS)}', connect_args={'timeout': 30})
    with engine.begin() as connection:
        connection.execute(text('CREATE TABLE IF NOT EXISTS orders (message_id TEXT)'))
        connection.execute(
            text(
                'CREATE TABLE IF NOT EXISTS events '
                '(id TEXT UNIQUE, kind TEXT, message_id TEXT, recipients TEXT, pid INT)'
            )
        )
    factory = sessionmaker(engine)

    def dbsession(request: Request) -> Any:
        session = factory()
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        # Without it a session that executes nothing but text joins no transaction.
        zope.sqlalchemy.mark_changed(session, request.tm)
        return session

    def send(request: Request) -> dict[str, str]:
        message_id = request.mailer.send(
            Message(
                subject='Welcome',
                sender='Shop <shop@example.org>',
                to=request.params.getall('to'),
                text='A line of text.',
            )
        )
        request.dbsession.execute(
            text('INSERT INTO orders VALUES (:message_id)'), {'message_id': message_id}
        )
        if 'raise' in request.params:
            raise ZeroDivisionError('after sending')
        return {'message_id': message_id}

    def subscriber(kind: str) -> Callable[[Any], None]:
        def write(event: Any) -> None:
            event.request.dbsession.execute(
                text('INSERT INTO events VALUES (:id, :kind, :message_id, :recipients, :pid)'),
                {
                    'id': event.id,
                    'kind': kind,
                    'message_id': event.message_id,
                    'recipients': ' '.join(event.recipients),
                    'pid': os.getpid(),
                },
            )

        return write

    with Configurator(settings=settings) as config:
        config.include('pyramid_tm')
        config.include('pyramid_sendmail')
        config.add_request_method(dbsession, reify=True)
        config.add_route('send', '/send')
        config.add_view(send, route_name='send', renderer='json', request_method='POST')
        for kind in ('Sent', 'Deferred', 'Error'):
            config.add_subscriber(
                subscriber(kind.lower()), f'pyramid_sendmail.interfaces.IMail{kind}Event'
            )
        return config.make_wsgi_app()


def waiting(global_config: Mapping[str, str], **settings: str) -> Any:
    """Return an application whose subscriber waits until a file exists.

    ``tests.report``: a file to which the subscriber adds a line when it begins and one when
    it ends.
    ``tests.go_on``: the file that it waits for.
    """
    report, go_on = Path(settings.pop('tests.report')), Path(settings.pop('tests.go_on'))

    def subscriber(event: Any) -> None:
        with report.open('a') as file:
            print('begun', file=file)
        while not go_on.exists():
            time.sleep(0.01)
        with report.open('a') as file:
            print(event.id, file=file)

    with Configurator(settings=settings) as config:
        config.include('pyramid_tm')
        config.include('pyramid_sendmail')
        config.add_subscriber(subscriber, 'pyramid_sendmail.interfaces.IMailSentEvent')
        return config.make_wsgi_app()


def events(database: Path) -> list[tuple[str, str, str, int]]:
    """Return (kind, message_id, recipients, pid) of each event that was dispatched, in order."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(database, timeout=30)) as connection:
        rows = connection.execute('SELECT kind, message_id, recipients, pid FROM events')
        return rows.fetchall()


def broken(global_config: Mapping[str, str], **settings: str) -> Any:
    """Raise KeyError: an application that cannot be made."""
    raise KeyError('tests.missing')


def without_mail(global_config: Mapping[str, str], **settings: str) -> Any:
    """Return an application that does not include pyramid_sendmail."""
    with Configurator(settings=settings) as config:
        return config.make_wsgi_app()


def late(global_config: Mapping[str, str], **settings: str) -> Any:
    """Raise an error in a configuration action."""
    with Configurator(settings=settings) as config:
        config.include('pyramid_sendmail')
        config.action('late', lambda: 1 / 0)
        return config.make_wsgi_app()


def slow(global_config: Mapping[str, str], **settings: str) -> Any:
    """Return an application that takes ``tests.seconds`` to start."""
    time.sleep(float(settings['tests.seconds']))
    return foreign(global_config)


def foreign(global_config: Mapping[str, str], **settings: str) -> Any:
    """Return a WSGI application without Pyramid."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response('204 No Content', [])
        return []

    return application


def shout(global_config: Mapping[str, str], **settings: str) -> Callable[[Any], Any]:
    """Return a filter for pipelines: it hides that the application is a Pyramid application."""

    def filtered(app: Any) -> Any:
        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            return app(environ, start_response)

        return application

    return filtered


def mount(loader: Any, global_config: Mapping[str, str], **settings: str) -> Any:
    """Return a composite: each value is the name of an application."""
    apps = [loader.get_app(name, global_conf=global_config) for name in settings.values()]
    return shout(global_config)(apps[0])
