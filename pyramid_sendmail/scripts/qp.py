"""``psendmail-qp``: the queue processor as a process."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from pyramid.config import global_registries
from pyramid.config.actions import ConfigurationExecutionError
from pyramid.exceptions import ConfigurationError
from pyramid.paster import get_app, setup_logging
from pyramid.registry import Registry

from ..config import processor_of
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import IMailQueue, IMailSettings
from ..sending import Tally
from ..settings import table_rows

__all__ = ['main', 'run']

log = logging.getLogger(__name__)

DRAINED, UNREACHABLE, USAGE, UNUSABLE = 0, 1, 2, 3


class UsageError(Exception):
    """The command line or the settings are wrong; the text says what to write."""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    return run(sys.argv[1:] if argv is None else argv)


def run(
    argv: Sequence[str],
    *,
    load: Callable[[str, dict[str, str]], Registry] | None = None,
    make: Callable[..., Any] = processor_of,
) -> int:
    """Run the queue processor and return the exit status.

    0: drained, or stopped by a signal; 1: the relay could not be reached (``--once``); 2: usage
    or settings; 3: the queue cannot be used.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as exit:
        return int(exit.code or 0)
    try:
        registry = (load or _load)(arguments.config_uri, _options(arguments.options))
        processor = make(_checked(registry), workers=arguments.workers, batch=arguments.batch)
    except UsageError as error:
        return _complain(str(error), USAGE)
    try:
        if arguments.once:
            return _once(processor, quiet=arguments.quiet)
        return _watch(processor, registry, quiet=arguments.quiet)
    except QueueError as error:
        return _complain(str(error), UNUSABLE)
    except MailerUnavailable as error:
        return _complain(f'the relay could not be reached, all mail waits: {error}', UNREACHABLE)


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
    parser.add_argument(
        '--once', action='store_true', help='deliver what is due, and end'
    )
    parser.add_argument('--workers', type=_count, metavar='N', help='in place of mail.workers')
    parser.add_argument('--batch', type=_count, metavar='N', help='in place of mail.batch')
    parser.add_argument('--quiet', action='store_true', help='print errors only')
    parser.add_argument('--version', action='version', version=version('pyramid_sendmail'))
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
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


def _load(config_uri: str, options: dict[str, str]) -> Registry:
    """The registry of the application in the file, the one with a mail queue if it has several."""
    try:
        setup_logging(config_uri, global_conf=options or None)
        app = get_app(config_uri, options=options or None)
    except ConfigurationExecutionError as error:
        raise UsageError(f'{config_uri}: {error.evalue}') from error
    except (ConfigurationError, OSError, LookupError, ValueError) as error:
        raise UsageError(f'{config_uri}: {error}') from error
    except Exception as error:
        log.exception('%s: the application could not be loaded', config_uri)
        raise UsageError(
            f'{config_uri}: the application could not be loaded: {error!r}'
        ) from error
    own = getattr(app, 'registry', None)
    registries = [own] if own is not None else list(global_registries)
    queued = [registry for registry in registries if registry.queryUtility(IMailQueue) is not None]
    if len(queued) > 1:
        raise UsageError(
            f'{config_uri} has {len(queued)} applications with a mail queue: '
            f'name one, {config_uri.partition("#")[0]}#NAME'
        )
    candidates = queued or registries
    if not candidates:
        raise UsageError(f'{config_uri} has no Pyramid application')
    # The application owns the registry, which is known by a weak reference only.
    candidates[0].__dict__.setdefault('_psendmail_app', app)
    return candidates[0]


def _checked(registry: Registry) -> Registry:
    if registry.queryUtility(IMailSettings) is None:
        raise UsageError(
            "the application does not include pyramid_sendmail: "
            "call config.include('pyramid_sendmail')"
        )
    if registry.queryUtility(IMailQueue) is None:
        raise UsageError(
            'the application has no mail queue: write mail.queue_path = %(here)s/mail'
        )
    return registry


def _watch(processor: Any, registry: Registry, *, quiet: bool) -> int:
    stop = threading.Event()
    _on_signals(stop, processor.wake)
    if not quiet:
        queue = registry.queryUtility(IMailQueue)
        print(f'psendmail-qp: watching {getattr(queue, "path", queue)}', file=sys.stderr)
    processor.run(stop)
    return DRAINED


def _once(processor: Any, *, quiet: bool) -> int:
    stop = threading.Event()
    number = _on_signals(stop, processor.wake)
    if quiet or not sys.stderr.isatty():
        tally = processor.run_once(None, stop)
    else:
        with _progress_bar() as show:
            tally = processor.run_once(show, stop)
    if not quiet:
        print(
            f'psendmail-qp: {tally.delivered} delivered, {tally.deferred} deferred, '
            f'{tally.failed} failed',
            file=sys.stderr,
        )
    return 128 + number[0] if number else DRAINED


def _on_signals(stop: threading.Event, wake: Callable[[], None]) -> list[int]:
    """Stop on SIGTERM and SIGINT; a second one ends the process as it would without us."""
    seen: list[int] = []

    def handler(number: int, frame: object) -> None:
        seen.append(number)
        stop.set()
        wake()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)
    return seen


class _progress_bar:
    """A bar on the terminal: how many mails have gone, of how many."""

    def __enter__(self) -> Callable[[Tally, int], None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        task = self._bar.add_task('delivering', total=None)

        def show(tally: Tally, left: int) -> None:
            self._bar.update(task, completed=tally.total, total=tally.total + left)

        return show

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()


if __name__ == '__main__':
    sys.exit(main())
