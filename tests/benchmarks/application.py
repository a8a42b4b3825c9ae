"""The application whose queue psendmail-qp drains, and its .ini file.

``benchmarks.subscriber`` chooses the subscriber of sent events: none, if it is missing;
``counts``, a function that adds one; ``commits``, one that adds a row to a SQLite database by
SQLAlchemy's ORM, joined to ``event.request.tm`` by zope.sqlalchemy, as Pyramid's cookiecutter has
it. ``benchmarks.mail = no`` leaves pyramid_sendmail out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyramid.config import Configurator
from pyramid.request import Request

__all__ = ['main', 'recorded', 'write_ini']

_LOGGING = """\
[loggers]
keys = root

[logger_root]
level = {level}
handlers = console

[handlers]
keys = console

[handler_console]
class = {handler}
args = ({target},)
level = NOTSET
formatter = generic

[formatters]
keys = generic

[formatter_generic]
format = %(asctime)s %(levelname)-5.5s [%(name)s:%(lineno)s][%(threadName)s] %(message)s
"""


def write_ini(folder: Path, settings: Mapping[str, object], *, log: Path | None = None) -> Path:
    """Write an .ini file that logs as production.ini of the cookiecutter does: warnings, to
    stderr; with ``log``, at INFO into that file."""
    lines = [f'{name} = {value}' for name, value in settings.items()]
    path = folder / 'production.ini'
    uses = 'use = call:tests.benchmarks.application:main'
    # Not str.format: the formatter's own text has percent signs and brackets.
    logging = _LOGGING
    for name, value in {
        'level': 'INFO' if log else 'WARN',
        'handler': 'FileHandler' if log else 'StreamHandler',
        'target': repr(str(log)) if log else 'sys.stderr',
    }.items():
        logging = logging.replace(f'{{{name}}}', value)
    path.write_text('\n'.join(['[app:main]', uses, *lines, '', logging]))
    return path


def main(global_config: Mapping[str, str], **settings: str) -> Any:
    """The application."""
    subscriber = settings.pop('benchmarks.subscriber', 'none')
    with Configurator(settings=settings) as config:
        config.include('pyramid_tm')
        if settings.pop('benchmarks.mail', 'yes') == 'yes':
            config.include('pyramid_sendmail')
        if subscriber == 'counts':
            _count(config)
        elif subscriber == 'commits':
            _commit(config, settings['benchmarks.database'], settings['benchmarks.journal'])
        return config.make_wsgi_app()


def _count(config: Configurator) -> None:
    counts = {'sent': 0}

    def sent(event: Any) -> None:
        counts['sent'] += 1

    config.add_subscriber(sent, 'pyramid_sendmail.interfaces.IMailSentEvent')


def _commit(config: Configurator, path: str, journal: str) -> None:
    from tests.benchmarks.database import SentRow, session_factory

    factory, register = session_factory(path, journal)

    def dbsession(request: Request) -> Any:
        session = factory()
        register(session, transaction_manager=request.tm)
        return session

    def sent(event: Any) -> None:
        event.request.dbsession.add(SentRow(message_id=event.message_id, code=event.reply.code))

    config.add_request_method(dbsession, reify=True)
    config.add_subscriber(sent, 'pyramid_sendmail.interfaces.IMailSentEvent')


def recorded(path: Path) -> int:
    """Return how many different mails the subscriber has recorded."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path)) as connection:
        [[count]] = connection.execute('SELECT count(DISTINCT message_id) FROM recorded')
        return int(count)
