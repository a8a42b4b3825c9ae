"""``psendmail-qp``: the queue processor as a process."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version

from pyramid.config import global_registries
from pyramid.exceptions import ConfigurationError
from pyramid.registry import Registry

from ..config.factories import has_settings, processor_of, register_settings, settings_of
from ..envelope import Tally
from ..exceptions import MailerUnavailable, QueueError
from ..interfaces import (
    IBrowsableQueue,
    IMailEventDispatcher,
    IMailQueue,
    IMailQueueProcessor,
    IMonitoredQueue,
)
from ..settings import converters
from ..settings.overrides import overriding
from ..settings.shares import share, share_of_settings, useful_processes
from ..settings.table import table_rows
from ..threads import BackgroundThread
from . import reloading
from .application import UsageError, file_of, registry_of
from .application import load as load_application
from .children import SupervisorLink, command_line
from .signals import Signals, blocked_signals
from .supervisor import supervise
from .terminal import Output, Terminal, Waiting, standard_streams

__all__ = ['main', 'run']

COUNTED_AT_ONCE = 5_000
"""Mails that are counted before the first one leaves, at most: more would hold it up, by half a
second for 200,000."""

COUNT_DELAY = 2.0
"""Seconds until more than that are counted."""

COUNTING = 'pyramid_sendmail count'
"""The name of the thread that does it."""

EXIT_DONE, EXIT_RELAY_UNAVAILABLE, EXIT_USAGE, EXIT_QUEUE_UNUSABLE = 0, 1, 2, 3


_SIGNALS = """\
signals:
  TERM, INT, HUP         finish what is in flight, then end; a second one ends it at once
  USR1                   scan the queue and try an unavailable relay now"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the console script; return the exit status."""
    try:
        with standard_streams():
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
    execute: Callable[[str, list[str], dict[str, str]], int] = os.execve,
) -> int:
    """Run the queue processor and return the exit status.

    0: done, or stopped by a signal. 1: no relay could be used (``--once``). 2: the command line or
    the settings are wrong. 3: the queue cannot be used. 128 plus the number of the signal: a
    signal ended ``--once`` early.

    ``load(config_uri, options)`` returns the WSGI application. ``make(registry, workers=,
    batch=)`` returns the queue processor. ``execute(path, command line, environment)`` replaces
    this process by another program.
    """
    try:
        parser = _parser()
        if not argv:
            parser.error('name the .ini file of the application: psendmail-qp development.ini')
        arguments = parser.parse_intermixed_args(argv)
        if arguments.reload:
            _check_reload(parser, arguments)
    except SystemExit as end:
        return int(end.code or 0)
    if arguments.reload:
        if not reloading.is_reloaded():
            return reloading.run(argv, quiet=arguments.quiet)
        reloading.watch(file_of(arguments.config_uri))
        arguments.processes = 1
    supervisor: SupervisorLink | None = arguments.child
    output: Output = supervisor or Terminal(quiet=arguments.quiet)
    if isinstance(output, Terminal) and (arguments.processes or 1) > 1:
        command = command_line(argv)
        return supervise(command, arguments.processes, output, once=arguments.once)
    environ = dict(os.environ)
    with Signals() as signals, supervisor or nullcontext():
        try:
            if supervisor is not None:
                supervisor.follow(signals)
            before = list(global_registries)
            # Keep the application until the end: its registry may not outlive it.
            load = load or partial(load_application, quiet=arguments.quiet)
            with overriding(_overrides(arguments.set)):
                app = load(arguments.config_uri, _variables(arguments.options))
            registry = registry_of(app, before, arguments.config_uri)
            if supervisor is None and arguments.processes is None:
                processes = _processes(registry)
                if processes > 1:
                    # Nothing of the application stays in the supervisor.
                    words = command_line(argv).with_option(f'--processes={processes}')
                    with blocked_signals():
                        return execute(words[0], words, environ)
            workers = _take_share(registry, supervisor, arguments.workers)
            processor = make(registry, workers=workers, batch=arguments.batch)
            signals.wake = processor.wake
        except (UsageError, ConfigurationError) as error:
            if arguments.reload:
                reloading.watch_failed(error)
            return output.fail(str(error), EXIT_USAGE)
        except KeyboardInterrupt:
            return signals.status if arguments.once else EXIT_DONE
        try:
            with _begun(registry, output, once=arguments.once):
                if arguments.once:
                    _once(processor, registry, signals.stop, output)
                    return signals.status
                _run(processor, registry, signals, output)
        except QueueError as error:
            return output.fail(str(error), EXIT_QUEUE_UNUSABLE)
        except MailerUnavailable as error:
            text = f'relay unavailable, mail stays queued: {error}'
            return output.fail(text, EXIT_RELAY_UNAVAILABLE)
        return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    rows = '\n'.join(
        f'  {name:22} {text.replace("``", "")} (default: {default.replace("``", "")})'
        for name, default, text in table_rows()
    )
    parser = argparse.ArgumentParser(
        prog='psendmail-qp',
        description='Send the queued mail of a Pyramid application.',
        epilog=f'{_SIGNALS}\n\nsettings in the .ini file:\n{rows}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'config_uri', help='the .ini file, as for pserve: development.ini or x.ini#name'
    )
    parser.add_argument(
        'options', nargs='*', metavar='key=value', help='variables for the .ini file'
    )
    parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='a mail.* setting, instead of the one in the file: --set mail.url=null:',
    )
    parser.add_argument('--once', action='store_true', help='send what is due now, then exit')
    parser.add_argument(
        '--workers', type=_count, metavar='N', help='connections at once, instead of mail.workers'
    )
    parser.add_argument(
        '--batch', type=_count, metavar='N', help='mails on one connection, instead of mail.batch'
    )
    parser.add_argument(
        '--processes',
        type=_processes_option,
        metavar='N',
        help='processes, instead of mail.processes; auto: one for each core',
    )
    parser.add_argument(
        '--reload',
        action='store_true',
        help='for development: start again when the code or the .ini file changes',
    )
    parser.add_argument('--child', type=_child_option, help=argparse.SUPPRESS)
    parser.add_argument('--quiet', action='store_true', help='print errors only')
    parser.add_argument(
        '--version', action='version', version=f'psendmail-qp {version("pyramid_sendmail")}'
    )
    return parser


def _check_reload(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.once:
        parser.error('--reload: it is for a processor that goes on; leave out --once')
    if (arguments.processes or 1) > 1:
        parser.error('--reload: it is for one process; leave out --processes')


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f'{text!r}: write a number, 1 or more')
    return int(text)


def _child_option(text: str) -> SupervisorLink:
    try:
        return SupervisorLink.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _processes_option(text: str) -> int:
    try:
        return converters.processes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r}: {error}') from error


def _variables(pairs: Sequence[str]) -> dict[str, str]:
    """Return the variables for the .ini file."""
    variables = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals or not key:
            raise UsageError(f'{pair!r}: write variables as key=value')
        if key.startswith('mail.'):
            # PasteDeploy would take the setting out of the section of the application, and mail
            # would go to the default relay. The value may be a secret.
            raise UsageError(
                f'{key}=: key=value is a variable for the .ini file, and would remove the setting '
                f'of this name; to override it write --set {key}=VALUE'
            )
        variables[key] = value
    return variables


def _overrides(pairs: Sequence[str]) -> dict[str, str]:
    """Return the settings of ``--set``."""
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals or not key.startswith('mail.'):
            raise UsageError(
                f'--set {key}: write a setting as mail.NAME=VALUE; a variable for the .ini file is '
                f'written without --set'
            )
        settings[key] = value
    return settings


def _processes(registry: Registry) -> int:
    """Return how many processes the settings ask for, as far as they are of use."""
    if not has_settings(registry):
        return 1
    settings = settings_of(registry)
    return useful_processes(settings.processes, settings.rate)


def _take_share(
    registry: Registry, supervisor: SupervisorLink | None, workers: int | None
) -> int | None:
    """Reduce the settings to the share of this process. Return the workers in their place.

    This process may be the first that knows ``mail.rate``, and with it how many are of use.
    """
    if supervisor is None or not has_settings(registry):
        return workers
    settings = settings_of(registry)
    if supervisor.number == 1:
        supervisor.processes = useful_processes(supervisor.processes, settings.rate)
    number, of = supervisor.number, supervisor.processes
    register_settings(registry, share_of_settings(settings, number, of))
    return workers and max(share(workers, number, of), 1)


@contextmanager
def _begun(registry: Registry, output: Output, *, once: bool) -> Iterator[None]:
    """Say that the run begins, what waits, and whether the queue is new: its path may be
    mistyped."""
    queue = registry.queryUtility(IMailQueue)
    path = getattr(queue, 'path', None)
    name = str(queue if path is None else path)
    is_new = path is not None and _is_missing(path)
    waiting = None
    if output.wants_waiting and not is_new:
        waiting = _waiting(queue, COUNTED_AT_ONCE)
    output.begin(name, is_new=is_new, once=once, waiting=waiting)
    over = threading.Event()
    if waiting is not None and waiting.more:
        BackgroundThread(
            target=_count_later, args=(queue, name, output, over), name=COUNTING, daemon=True
        ).start()
    try:
        yield
    finally:
        over.set()


def _is_missing(path: str) -> bool:
    """Whether nothing has this path. What cannot be seen may be there: the run says why not."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _waiting(queue: object, limit: int | None = None) -> Waiting | None:
    """Return how much mail waits; None if that cannot be seen. ``limit``: count no further."""
    try:
        if IMonitoredQueue.providedBy(queue):
            counted = queue.count_waiting(limit)
            return Waiting(limit or 0, None, more=True) if counted is None else Waiting(*counted)
        if IBrowsableQueue.providedBy(queue):
            stats = queue.stats()
            return Waiting(stats.counts['new'] + stats.counts['deferred'], stats.oldest_due)
    except QueueError:
        pass  # the run says why
    return None


def _count_later(queue: object, name: str, output: Output, over: threading.Event) -> None:
    """Count what waits, when the first mail has left: it takes a second for half a million."""
    if over.wait(COUNT_DELAY):
        return
    waiting = _waiting(queue)
    if waiting is not None and not over.is_set():
        output.counted(name, waiting)


def _run(
    processor: IMailQueueProcessor, registry: Registry, signals: Signals, output: Output
) -> None:
    began = time.monotonic()
    signals.scan_now = getattr(processor, 'scan_now', processor.wake)
    processor.run(signals.stop)
    if signals.number:
        output.stopped(signals.number)
    # A processor of the application's own may not count.
    tally: Tally | None = getattr(processor, 'tally', None)
    if tally is not None:
        output.end(tally, _failures(registry), time.monotonic() - began)


def _failures(registry: Registry) -> int:
    dispatcher = registry.queryUtility(IMailEventDispatcher)
    return dispatcher.failures if dispatcher is not None else 0


def _once(
    processor: IMailQueueProcessor, registry: Registry, stop: threading.Event, output: Output
) -> None:
    last, began = Tally(), time.monotonic()

    def show_and_keep(tally: Tally, left: int) -> None:
        nonlocal last
        last = tally
        show(tally, left)

    try:
        with output.progress() as show:
            processor.run_once(show_and_keep, stop)
    finally:
        output.end(last, _failures(registry), time.monotonic() - began)


if __name__ == '__main__':
    sys.exit(main())
