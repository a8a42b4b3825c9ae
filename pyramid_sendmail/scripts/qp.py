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
from typing import Any, NoReturn

from pyramid.config import global_registries
from pyramid.config.actions import ConfigurationExecutionError
from pyramid.exceptions import ConfigurationError
from pyramid.paster import get_app, setup_logging
from pyramid.registry import Registry

from ..config.factories import has_settings, processor_of, settings_of
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import IMailEventDispatcher, IMailQueue
from ..sending.outcome import Tally
from ..settings.table import table_rows

__all__ = ['main', 'run']

log = logging.getLogger(__name__)

DRAINED, UNREACHABLE, USAGE, UNUSABLE, SIGNALLED = 0, 1, 2, 3, 128

TURN = 0.0005
"""Seconds that the events thread has the interpreter to itself while workers wait for it."""

Progress = Callable[[Tally, int], None]


class UsageError(Exception):
    """The command line or the settings are wrong; the text says what to write."""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    try:
        return run(sys.argv[1:] if argv is None else argv)
    finally:
        # The process ends: to look through the whole application for what nobody can reach would
        # take ten times as long as the rest of the end.
        gc.freeze()


def run(
    argv: Sequence[str],
    *,
    load: Callable[[str, dict[str, str]], Any] | None = None,
    make: Callable[..., Any] = processor_of,
) -> int:
    """Run the queue processor and return the exit status.

    0: drained, or stopped by a signal; 1: no relay could be used (``--once``); 2: usage
    or settings; 3: the queue cannot be used; 128 and the signal's number: a signal ended ``--once``
    before it was through.

    ``load(config_uri, options)`` returns the WSGI application, ``make(registry, workers=,
    batch=)`` the queue processor.
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
            # Held until the end, though it is never called: its registry is.
            app = (load or _load)(arguments.config_uri, _options(arguments.options))
            registry = _registry(app, before, arguments.config_uri)
            processor = make(registry, workers=arguments.workers, batch=arguments.batch)
            signals.wake = processor.wake
        except UsageError as error:
            return _complain(str(error), USAGE)
        except KeyboardInterrupt:
            return signals.status if arguments.once else DRAINED
        try:
            if not arguments.quiet:
                _announce(registry.queryUtility(IMailQueue))
            with _turns(registry):
                if arguments.once:
                    _once(processor, registry, signals.stop, quiet=arguments.quiet)
                    return signals.status
                _watch(processor, registry, signals.stop, quiet=arguments.quiet)
        except QueueError as error:
            return _complain(str(error), UNUSABLE)
        except MailerUnavailable as error:
            text = f'nothing can be sent now, all mail waits: {error}'
            return _complain(text, UNREACHABLE)
        return DRAINED


def _complain(text: str, status: int) -> int:
    print(f'psendmail-qp: {text}', file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    rows = '\n'.join(
        f'  {name:22} {text.replace("``", "")} (default: {default.replace("``", "")})'
        for name, default, text in table_rows()
    )
    parser = argparse.ArgumentParser(
        prog='psendmail-qp',
        description='Deliver the mail that waits in the queue of a Pyramid application.',
        epilog=f'settings in the .ini file:\n{rows}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'config_uri', help='the .ini file, as pserve takes it: development.ini, x.ini#name'
    )
    parser.add_argument('options', nargs='*', metavar='key=value', help='variables for the .ini')
    parser.add_argument('--once', action='store_true', help='deliver what is due, and end')
    parser.add_argument('--workers', type=_count, metavar='N', help='in place of mail.workers')
    parser.add_argument('--batch', type=_count, metavar='N', help='in place of mail.batch')
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


def _load(config_uri: str, options: dict[str, str]) -> Any:
    """The application in the file, with logging set up as the file says."""
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
        # PasteDeploy's own word for a section that is not there; an application raises KeyError.
        if type(error) is LookupError:
            raise UsageError(f'{config_uri}: {error}') from error
        _unloadable(config_uri, error)


def _unreadable(config_uri: str, error: Exception) -> UsageError:
    """What is wrong with the file, without a value: it may be a password."""
    if isinstance(error, configparser.InterpolationSyntaxError):
        return UsageError(
            f'{config_uri}: {error.option} in [{error.section}] has a % that stands alone: '
            'an ini file has it twice, %%'
        )
    return UsageError(f'{config_uri}: {error}')


def _unloadable(config_uri: str, error: Exception) -> NoReturn:
    log.error('%s: the application could not be loaded', config_uri, exc_info=error)
    raise UsageError(f'{config_uri}: the application could not be loaded: {error!r}') from error


def _registry(app: Any, before: list[Registry], config_uri: str) -> Registry:
    """The registry of the Pyramid application that has a mail queue: this one, or one of those
    that are somewhere inside."""
    own = getattr(app, 'registry', None)
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
def _turns(registry: Registry) -> Iterator[None]:
    """Where events are told in batches, their thread computes for long, and the workers, each of
    which needs the interpreter for a moment, would wait for 5 ms each time: half a millisecond
    makes such a drain 1.4 times as fast. Where a subscriber does little it would cost time."""
    before = sys.getswitchinterval()
    if has_settings(registry) and settings_of(registry).event_batch > 1:
        sys.setswitchinterval(TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _announce(queue: Any) -> None:
    """A queue that is not there yet may be one that is somewhere else: a path was mistyped."""
    path = getattr(queue, 'path', None)
    if path is not None and not os.path.lexists(path):
        print(f'psendmail-qp: {path} is not there: a new queue is made', file=sys.stderr)


def _watch(processor: Any, registry: Registry, stop: threading.Event, *, quiet: bool) -> None:
    if not quiet:
        queue = registry.queryUtility(IMailQueue)
        print(f'psendmail-qp: watching {getattr(queue, "path", queue)}', file=sys.stderr)
    processor.run(stop)


def _once(processor: Any, registry: Registry, stop: threading.Event, *, quiet: bool) -> None:
    last = Tally()

    def keep(tally: Tally, left: int) -> None:
        nonlocal last
        last = tally
        show(tally, left)

    bar = _progress_bar() if sys.stderr.isatty() and not quiet else nullcontext(_no_progress)
    try:
        with bar as show:
            processor.run_once(keep, stop)
    finally:
        if not quiet:
            print(
                f'psendmail-qp: {last.delivered} delivered, {last.deferred} deferred, '
                f'{last.failed} failed',
                file=sys.stderr,
            )
            failures = getattr(registry.queryUtility(IMailEventDispatcher), 'failures', 0)
            if failures:
                print(
                    f'psendmail-qp: failures of subscribers: {failures}; the events that they have '
                    'not taken are told again',
                    file=sys.stderr,
                )


class Signals:
    """SIGTERM, SIGINT, and SIGHUP of a terminal that is closed, set ``stop``, and a second one ends
    the process as it would without us; before there is anything to ``wake``, they raise
    KeyboardInterrupt. Under nohup SIGHUP stays ignored.

    One of each is no second one: a process manager whose terminal gets Ctrl-C sends SIGTERM after
    the SIGINT that its children had from the terminal.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.status = DRAINED
        self.wake: Callable[[], None] | None = None

    def __enter__(self) -> Signals:
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def _handle(self, number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.status = SIGNALLED + number
        self.stop.set()
        if self.wake is None:
            raise KeyboardInterrupt
        self.wake()

    def __exit__(self, *exc_info: object) -> None:
        for number, former in self._before.items():
            signal.signal(number, former)


def _no_progress(tally: Tally, left: int) -> None:
    """A log has lines of its own."""


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """A bar on the terminal: how many mails have gone, of how many; log lines go above it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    terminal = sys.stderr
    handlers = [
        handler
        for handler in logging.root.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is terminal
    ]
    bar = Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task('delivering', total=None)

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
