"""``psendmail-qp --reload``: starts the processor again when the code or the ini file changes.

hupper does it, as for ``pserve --reload``. The reloader is a process of its own, which loads
nothing of the application.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from traceback import walk_tb

from ..processor.options import SHUTDOWN_GRACE
from .signals import SCAN_SIGNAL

__all__ = ['is_reloaded', 'run', 'watch', 'watch_failed']

_WORKER = 'pyramid_sendmail.scripts.qp.main'

_MARGIN = 10.0
"""Seconds beyond the processor's own shutdown time until the reloader kills it."""


def is_reloaded() -> bool:
    """Return whether a reloader has started this process."""
    import hupper  # not loaded in production

    return bool(hupper.is_active())


def watch(*paths: str) -> None:
    """Have the reloader watch files, besides the modules that this process loads."""
    import hupper

    hupper.get_reloader().watch_files([os.path.abspath(path) for path in paths])


def watch_failed(error: BaseException) -> None:
    """Have the reloader watch the code that an error came from: a module that cannot be imported is
    not among those that are loaded."""
    paths = set()
    cause: BaseException | None = error
    while cause is not None:
        paths |= {frame.f_code.co_filename for frame, _ in walk_tb(cause.__traceback__)}
        if isinstance(cause, SyntaxError) and cause.filename:
            paths.add(cause.filename)
        cause = cause.__cause__ or cause.__context__
    watch(*(path for path in paths if os.path.isfile(path)))


def run(argv: Sequence[str], *, quiet: bool) -> int:
    """Run the processor, again and again, until Ctrl-C or SIGTERM; return its exit status.

    A processor that ends by itself, because the code or the settings are wrong, starts again after
    the next change. What is in flight is finished first.
    """
    import hupper

    # It would end the reloader, which has no queue to scan.
    before = signal.signal(SCAN_SIGNAL, signal.SIG_IGN)
    try:
        hupper.start_reloader(
            _WORKER,
            shutdown_interval=SHUTDOWN_GRACE + _MARGIN,
            verbose=0 if quiet else 1,
            worker_kwargs={'argv': list(argv)},
        )
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        signal.signal(SCAN_SIGNAL, before)
    return 0
