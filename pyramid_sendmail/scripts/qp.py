"""``psendmail-qp``: the queue processor as a process."""

from __future__ import annotations

import argparse
import configparser
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import NoReturn

from pyramid.config import global_registries
from pyramid.config.actions import ConfigurationExecutionError
from pyramid.exceptions import ConfigurationError
from pyramid.paster import get_app, setup_logging
from pyramid.registry import Registry

from ..config.factories import has_settings, processor_of, settings_of
from ..envelope import Tally
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import IMailEventDispatcher, IMailQueue, IMailQueueProcessor
from ..settings.table import table_rows

__all__ = ['main', 'run']

log = logging.getLogger(__name__)

EXIT_DONE, EXIT_RELAY_UNAVAILABLE, EXIT_USAGE, EXIT_QUEUE_UNUSABLE, EXIT_SIGNAL = 0, 1, 2, 3, 128

SWITCH_INTERVAL = 0.0005
"""Seconds after which the events thread lets a waiting worker run: Python's switch interval."""

Progress = Callable[[Tally, int], None]


class UsageError(Exception):
    """The command line or the settings are wrong; the text says what to write instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script; return the exit status."""
    try:
        return run(sys.argv[1:] if argv is None else argv)
    finally:
        # The process ends, and the last garbage collection would walk through the whole
        # application. Without it a run with --once takes 0.84 times the CPU: 0.38 s, not 0.45 s.
        gc.freeze()


def run(
    argv: Sequence[str],
    *,
    load: Callable[[str, dict[str, str]], object] | None = None,
    make: Callable[..., IMailQueueProcessor] = processor_of,
) -> int:
    """Run the queue processor and return the exit status.

    0: done, or stopped by a signal. 1: no relay could be used (``--once``). 2: the command line or
    the settings are wrong. 3: the queue cannot be used. 128 plus the number of the signal: a
    signal ended ``--once`` early.

    ``load(config_uri, options)`` returns the WSGI application. ``make(registry, workers=,
    batch=)`` returns the queue processor.
    """
    try:
        parser = _parser()
        if not argv:
            parser.error('name the .ini file of the application: psendmail-qp development.ini')
        arguments = parser.parse_intermixed_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    with Signals() as signals:
        try:
            before = list(global_registries)
            # Keep the application until the end: its registry may not outlive it.
            app = (load or _load)(arguments.config_uri, _options(arguments.options))
            registry = _registry(app, before, arguments.config_uri)
            processor = make(registry, workers=arguments.workers, batch=arguments.batch)
            signals.wake = processor.wake
        except (UsageError, ConfigurationError) as error:
            return _fail(str(error), EXIT_USAGE)
        except KeyboardInterrupt:
            return signals.status if arguments.once else EXIT_DONE
        try:
            if not arguments.quiet:
                _announce_new_queue(registry.queryUtility(IMailQueue))
            with _switch_interval(registry):
                if arguments.once:
                    _once(processor, registry, signals.stop, quiet=arguments.quiet)
                    return signals.status
                _watch(processor, registry, signals, quiet=arguments.quiet)
        except QueueError as error:
            return _fail(str(error), EXIT_QUEUE_UNUSABLE)
        except MailerUnavailable as error:
            text = f'relay unavailable, mail stays queued: {error}'
            return _fail(text, EXIT_RELAY_UNAVAILABLE)
        return EXIT_DONE


def _say(text: str) -> None:
    print(f'psendmail-qp: {text}', file=sys.stderr)


def _fail(text: str, status: int) -> int:
    _say(text)
    return status


def _parser() -> argparse.ArgumentParser:
    rows = '\n'.join(
        f'  {name:22} {text.replace("``", "")} (default: {default.replace("``", "")})'
        for name, default, text in table_rows()
    )
    parser = argparse.ArgumentParser(
        prog='psendmail-qp',
        description='Send the queued mail of a Pyramid application.',
        epilog=f'settings in the .ini file:\n{rows}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'config_uri', help='the .ini file, as for pserve: development.ini or x.ini#name'
    )
    parser.add_argument(
        'options', nargs='*', metavar='key=value', help='variables for the .ini file'
    )
    parser.add_argument('--once', action='store_true', help='send what is due now, then exit')
    parser.add_argument(
        '--workers', type=_count, metavar='N', help='connections at once, instead of mail.workers'
    )
    parser.add_argument(
        '--batch', type=_count, metavar='N', help='mails on one connection, instead of mail.batch'
    )
    parser.add_argument('--quiet', action='store_true', help='print errors only')
    parser.add_argument(
        '--version', action='version', version=f'psendmail-qp {version("pyramid_sendmail")}'
    )
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f'{text!r}: write a number, 1 or more')
    return int(text)


def _options(pairs: Sequence[str]) -> dict[str, str]:
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals or not key:
            raise UsageError(f'{pair!r}: write variables as key=value')
        options[key] = value
    return options


def _load(config_uri: str, options: dict[str, str]) -> object:
    """Set up logging as the file says, and return its application."""
    try:
        setup_logging(config_uri, global_conf=options or None)
    except OSError as error:
        raise UsageError(f'{config_uri}: {error.strerror or error}') from error
    except (ValueError, configparser.Error) as error:
        raise _unreadable(config_uri, error) from None
    except Exception as error:
        raise UsageError(f'{config_uri}: its logging sections are wrong: {error!r}') from error
    try:
        return get_app(config_uri, options=options or None)
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
            raise UsageError(f'{config_uri}: {error}') from error
        _unloadable(config_uri, error)


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


def _registry(app: object, before: list[Registry], config_uri: str) -> Registry:
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


@contextmanager
def _switch_interval(registry: Registry) -> Iterator[None]:
    """Let workers interrupt the events thread sooner if events are dispatched in batches.

    A batch computes for long, and each worker, which needs the interpreter for a moment, would
    wait for 5 ms each time: half a millisecond makes such a drain 1.4 times as fast. Without
    batches it would only cost time.
    """
    before = sys.getswitchinterval()
    if has_settings(registry) and settings_of(registry).event_batch > 1:
        sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _announce_new_queue(queue: IMailQueue | None) -> None:
    """Say so if the queue's folder does not exist yet: its path may be mistyped."""
    path = getattr(queue, 'path', None)
    if path is not None and not os.path.lexists(path):
        _say(f'{path} does not exist yet: creating a new queue')


def _watch(
    processor: IMailQueueProcessor, registry: Registry, signals: Signals, *, quiet: bool
) -> None:
    if not quiet:
        queue = registry.queryUtility(IMailQueue)
        _say(f'watching {getattr(queue, "path", queue)}')
    processor.run(signals.stop)
    if signals.number and not quiet:
        _say(f'stopped by {signal.Signals(signals.number).name}; unsent mail stays queued')


def _once(
    processor: IMailQueueProcessor, registry: Registry, stop: threading.Event, *, quiet: bool
) -> None:
    last = Tally()

    def show_and_keep(tally: Tally, left: int) -> None:
        nonlocal last
        last = tally
        show(tally, left)

    bar = _progress_bar() if sys.stderr.isatty() and not quiet else nullcontext(_no_progress)
    try:
        with bar as show:
            processor.run_once(show_and_keep, stop)
    finally:
        if not quiet:
            _say(f'{last.delivered} delivered, {last.deferred} deferred, {last.failed} failed')
            dispatcher = registry.queryUtility(IMailEventDispatcher)
            failures = dispatcher.failures if dispatcher is not None else 0
            if failures:
                _say(
                    f'events that subscribers failed to handle: {failures} (see the log); '
                    'they are dispatched again later'
                )


class Signals:
    """Handles SIGTERM, SIGINT (Ctrl-C) and SIGHUP (the terminal was closed).

    The first of each sets ``stop`` and calls ``wake``; before there is a ``wake``, it raises
    KeyboardInterrupt. A second one of the same kind ends the process at once. Under nohup SIGHUP
    stays ignored. Only a repeated signal of the same kind is a second one: a process manager that
    gets Ctrl-C sends SIGTERM to its children, which had the SIGINT of the terminal already.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.number = 0
        """The number of the last signal, or 0."""
        self.wake: Callable[[], None] | None = None

    @property
    def status(self) -> int:
        """The exit status of a run that a signal may have ended early."""
        return EXIT_SIGNAL + self.number if self.number else EXIT_DONE

    def __enter__(self) -> Signals:
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def _handle(self, number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.number = number
        self.stop.set()
        if self.wake is None:
            raise KeyboardInterrupt
        self.wake()

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _no_progress(tally: Tally, left: int) -> None:
    """Show nothing: without a terminal the log is enough."""


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """Show on the terminal how many mails are done, of how many; log lines appear above it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as ProgressBar

    terminal = sys.stderr
    handlers = [
        handler
        for handler in logging.root.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is terminal
    ]
    bar = ProgressBar(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task('sending', total=None)

    def show(tally: Tally, left: int) -> None:
        bar.update(task, completed=tally.total, total=tally.total + left)

    with bar:
        for handler in handlers:
            handler.setStream(sys.stderr)
        try:
            yield show
        finally:
            for handler in handlers:
                handler.setStream(terminal)


if __name__ == '__main__':
    sys.exit(main())
