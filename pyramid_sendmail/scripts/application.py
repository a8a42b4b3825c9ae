"""The application of an ini file, as ``psendmail-qp`` loads it."""

from __future__ import annotations

import configparser
import logging
import os
import sys
from contextlib import suppress
from typing import NoReturn

from pyramid.config import global_registries
from pyramid.config.actions import ConfigurationExecutionError
from pyramid.exceptions import ConfigurationError
from pyramid.paster import get_app, setup_logging
from pyramid.registry import Registry

from ..config.factories import has_settings
from ..interfaces import IMailQueue

__all__ = ['UsageError', 'file_of', 'load', 'registry_of']

log = logging.getLogger(__name__)

LINE_FORMAT = '%(asctime)s %(levelname)s %(name)s: %(message)s'
"""Of the log, where the file has no logging sections."""


class UsageError(Exception):
    """The command line or the settings are wrong; the text says what to write instead."""


def file_of(config_uri: str) -> str:
    """Return the path of the ini file."""
    return config_uri.partition('#')[0]


def load(config_uri: str, options: dict[str, str], *, quiet: bool) -> object:
    """Set up logging as the file says, ``quiet`` or not, and return its application."""
    file = file_of(config_uri)
    if os.path.isdir(file):
        raise UsageError(f'{config_uri}: it is a folder; write the .ini file of the application')
    handlers = logging.root.handlers[:]
    try:
        setup_logging(config_uri, global_conf=options or None)
    except OSError as error:
        raise UsageError(f'{config_uri}: {error.strerror or error}') from error
    except (ValueError, configparser.Error) as error:
        raise _unreadable(config_uri, error) from None
    except Exception as error:
        raise UsageError(f'{config_uri}: its logging sections are wrong: {error!r}') from error
    if quiet:
        _print_only_errors()
    is_set_up = 'loggers' in _sections(file)
    if not is_set_up:
        for handler in logging.root.handlers[len(handlers) :]:
            handler.setFormatter(logging.Formatter(LINE_FORMAT))
        handlers = logging.root.handlers[:]
    try:
        app = get_app(config_uri, options=options or None)
    except ConfigurationExecutionError as error:
        if not isinstance(error.evalue, ConfigurationError):
            _unloadable(config_uri, error)
        raise UsageError(f'{config_uri}: {error.evalue}') from error
    except configparser.Error as error:
        raise _unreadable(config_uri, error) from None
    except ConfigurationError as error:
        raise UsageError(f'{config_uri}: {error}') from error
    except Exception as error:
        # PasteDeploy raises plain LookupError for a missing section, an application its subclasses.
        if type(error) is LookupError:
            raise UsageError(f'{config_uri}: {error}{_applications(file)}') from error
        _unloadable(config_uri, error)
    if not is_set_up and logging.root.handlers == handlers:
        _log_information()
    return app


def _log_information() -> None:
    """Log our lines of level INFO, where neither the file nor the application has set up logging:
    each mail that leaves is one."""
    own = logging.getLogger('pyramid_sendmail')
    if own.level == logging.NOTSET and not own.isEnabledFor(logging.INFO):
        own.setLevel(logging.INFO)


def _print_only_errors() -> None:
    """Have the log print errors only; what it writes into files stays as it is."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [each for logger in loggers for each in getattr(logger, 'handlers', ())]
    for handler in (*handlers, logging.lastResort):
        stream = getattr(handler, 'stream', None)
        if stream in (sys.stdout, sys.stderr) and handler.level < logging.ERROR:
            handler.setLevel(logging.ERROR)


def _applications(path: str) -> str:
    """Return which applications a file has, for an error about one that it has not."""
    kinds = ('app', 'application', 'composite', 'composit', 'pipeline', 'filter-app')
    found = [
        name.strip()
        for kind, _, name in (section.partition(':') for section in _sections(path))
        if kind in kinds
    ]
    return f'; it has {", ".join(found)}: write {path}#{found[0]}' if found else ''


def _sections(path: str) -> list[str]:
    parser = configparser.RawConfigParser(strict=False)
    with suppress(OSError, ValueError, configparser.Error):
        parser.read(path, encoding='utf-8')
    return parser.sections()


def _unreadable(config_uri: str, error: Exception) -> UsageError:
    """Return what is wrong with the file. It names no value: that may be a password."""
    if isinstance(error, configparser.InterpolationSyntaxError):
        return UsageError(
            f'{config_uri}: {error.option} in [{error.section}] has a single %: '
            'write %% in an .ini file'
        )
    return UsageError(f'{config_uri}: {error}')


def _unloadable(config_uri: str, error: Exception) -> NoReturn:
    log.error('%s: the application could not be loaded', config_uri, exc_info=error)
    raise UsageError(f'{config_uri}: the application could not be loaded: {error!r}') from error


def registry_of(app: object, before: list[Registry], config_uri: str) -> Registry:
    """Return the registry of the Pyramid application that has a mail queue: this application, or
    one inside it, behind filters."""
    own: Registry | None = getattr(app, 'registry', None)
    inside = [each for each in global_registries if not any(each is old for old in before)]
    registries = [own] if own is not None else inside
    queued = [each for each in registries if each.queryUtility(IMailQueue) is not None]
    if len(queued) > 1:
        raise UsageError(
            f'{config_uri} has {len(queued)} applications with a mail queue: '
            f'name one, {config_uri.partition("#")[0]}#NAME'
        )
    if queued:
        return queued[0]
    if not registries:
        raise UsageError(f'{config_uri} has no Pyramid application')
    if any(map(has_settings, registries)):
        raise UsageError(
            f'{config_uri}: the application has no mail queue: '
            'write mail.queue_path = %(here)s/mail'
        )
    raise UsageError(
        f'{config_uri}: the application does not include pyramid_sendmail: '
        "call config.include('pyramid_sendmail')"
    )
