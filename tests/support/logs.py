"""Keep what a test sets up for the log from the tests after it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest

__all__ = ['logging_as_before']


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Undo the logging set-up of an .ini file, which ``psendmail-qp`` reads in this process."""
    root = logging.root
    handlers, level = root.handlers[:], root.level
    own = logging.getLogger('pyramid_sendmail')
    own_level = own.level
    disabled = {
        name: logger.disabled
        for name, logger in logging.Logger.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    yield
    root.handlers[:], own.level = handlers, own_level
    root.setLevel(level)
    for name, value in disabled.items():
        logging.getLogger(name).disabled = value
    own.propagate = True
    gc.collect()
