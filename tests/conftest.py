"""What every test may use: the scripted SMTP server, its certificates, the cutting proxy, real
databases, and counts that are printed at the end. A strict reader checks every message that a test
makes.

``@pytest.mark.finding(30)`` marks the tests of a finding in docs/explanation/findings.rst."""

from __future__ import annotations

import gc
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pyramid_sendmail import Message
from pyramid_sendmail.message import EnvelopeFactory
from tests.support.smtp.strict_reader import faults

# The time of an example depends on the machine, not on the code.
settings.register_profile('untimed', deadline=None)
settings.load_profile('untimed')

pytest_plugins = [
    'tests.support.smtp.fixtures',
    'tests.support.databases',
    'tests.support.logs',
    'tests.crash.counts',
]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A hook of pytest. Where several processes share the tests, begin with the files that take
    longest, lest one process has such a file left when the others have nothing: a slow test counts
    with the seconds that it may take, the others count alike."""
    if not hasattr(config, 'workerinput'):
        return
    usual = float(config.getini('timeout'))
    weights: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        timeout = item.get_closest_marker('timeout')
        slow = item.get_closest_marker('slow')
        weights[item.path] += (timeout.args[0] if timeout else usual) if slow else 1
    items.sort(key=lambda item: -weights[item.path])


def pytest_collection_finish() -> None:
    """A hook of pytest. Spare each garbage collection, and each forked child, the walk through the
    tests themselves: they are more objects than most tests make."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def strict_messages() -> Iterator[None]:
    """Have every message of the suite read by a strict reader (finding 123)."""
    made = EnvelopeFactory.envelope

    @wraps(made)
    def envelope(composer: EnvelopeFactory, message: object, **options: Any) -> Any:
        envelope = made(composer, message, **options)
        if isinstance(message, Message):
            domain = envelope.message_id.rpartition('@')[2].rstrip('>')
            head = envelope.raw.partition(b'\r\n\r\n')[0]
            # Headers are in UTF-8 for an address that cannot be written otherwise.
            wide = re.search(rb'[\x80-\xff].*@', head) is not None
            assert faults(envelope.raw, domain=domain, wide=wide) == []
        return envelope

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnvelopeFactory, 'envelope', envelope)
        yield
