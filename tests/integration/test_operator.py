"""What an operator sees of ``psendmail-qp``, and the signal that makes it look: real children."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from tests.support.applications import LOGGING
from tests.support.children import Place
from tests.support.queues import until
from tests.support.smtp.server import reply

REQUESTED = 'the queue is scanned now, as requested'

APPLICATION = """\
from pyramid.config import Configurator

def main(global_config, **settings):
    with Configurator(settings=settings) as config:
        config.include('pyramid_sendmail')
        return config.make_wsgi_app()
"""


def without_logging(ini: Path) -> Path:
    """Take the logging sections out of a file."""
    ini.write_text(ini.read_text().replace(LOGGING, ''))
    return ini


@pytest.mark.parametrize('options', [[], ['--quiet']])
def test_a_file_without_logging_sections(options: list[str], place: Place) -> None:
    """Each mail that leaves is a line all the same, with its time; ``--quiet`` shows errors."""
    place.server.always('RCPT', reply(550, '5.1.1 no such user'), match='bob')
    [first] = place.put(1, 'ann@example.org')
    [second] = place.put(1, 'bob@example.org')
    child = place.once(without_logging(place.ini()), *options)
    lines = child.text.splitlines()
    when = r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}'
    sent = [each for each in lines if re.match(f'{when} INFO pyramid_sendmail', each)]
    refused = [each for each in lines if re.match(f'{when} ERROR pyramid_sendmail', each)]
    assert len(refused) == 1
    assert second in refused[0]
    if options:
        assert (sent, len(lines)) == ([], 1)
    else:
        assert len(sent) == 1
        assert first in sent[0]
        assert len(lines) == 4


def test_the_first_line_and_the_last(place: Place) -> None:
    """What waits, and what has left."""
    place.put(3)
    child = place.start(place.ini())
    place.server.wait_for(3, 20)
    place.drained()
    assert child.stop() == 0
    lines = [line for line in child.text.splitlines() if line.startswith('psendmail-qp: ')]
    assert len(lines) == 3
    assert f'watching {place.queue.path}: 3 mails wait, the oldest since ' in lines[0]
    assert lines[1] == 'psendmail-qp: stopped by SIGTERM; unsent mail stays queued'
    assert re.fullmatch(r'psendmail-qp: 3 delivered, 0 deferred, 0 failed in \d+ s', lines[2])


@pytest.mark.parametrize('processes', [1, 2])
def test_a_signal_to_scan(processes: int, place: Place) -> None:
    """SIGUSR1 makes each process scan the queue, and ends none."""
    child = place.start(place.ini(), '--processes', processes)
    child.says('watching')
    if processes > 1:
        until((Path(place.queue.path) / 'processor').exists)
    for times in (1, 2):

        def scanned(times: int = times) -> bool:
            # The other process may have started just now: a signal may come before its first scan.
            child.signal(signal.SIGUSR1)
            return child.text.count(REQUESTED) >= times * processes

        until(scanned, 30)
    assert child.stop() == 0


@pytest.mark.parametrize('first', [signal.SIGUSR1, signal.SIGINT])
def test_two_signals_at_once(first: int, place: Place) -> None:
    """The system may give the second one to another thread than the main thread, which alone
    handles it: it counts all the same."""
    child = place.start(place.ini())
    child.says('watching')
    until((Path(place.queue.path) / 'processor').exists, 20)
    child.signal(first)
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
    assert child.text.count('stopped by') == 1


def test_a_processor_is_seen(place: Place) -> None:
    """The file beside the queue names the process that runs."""
    child = place.start(place.ini())
    path = Path(place.queue.path) / 'processor'
    until(path.exists, 20)
    assert f'pid: {child.process.pid}\n' in path.read_text()
    assert child.stop() == 0
    assert path.exists()


@pytest.mark.slow
def test_reload(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``--reload`` a change of the code or of the file starts the processor again, also after
    a mistake; Ctrl-C ends it with status 0, and no mail is lost."""
    folder = tmp_path / 'code'
    folder.mkdir()
    code = folder / 'shop_of_test_reload.py'
    code.write_text(APPLICATION.replace('import Conf', 'import Nonsense; from x import Conf'))
    monkeypatch.setenv('PYTHONPATH', f'{folder}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    ini = place.ini('call:shop_of_test_reload:main')
    child = place.start(ini, '--reload', group=True)

    def changed(path: Path, text: str, says: str) -> None:
        """Change a file, again if the reloader did not watch it yet, until this is printed."""
        before, at = child.text.count(says), path.stat().st_mtime
        path.write_text(text)
        tries = count(1)

        def printed() -> bool:
            os.utime(path, (at, at + 10 * next(tries)))
            with suppress(AssertionError):
                return bool(until(lambda: child.text.count(says) > before, 5))
            return False

        until(printed, 60)

    child.says('the application could not be loaded', 30)
    changed(code, APPLICATION, 'psendmail-qp: watching')
    place.put()
    place.server.wait_for(1, 20)
    place.drained()
    changed(code, 'def', 'the application could not be loaded:')
    changed(code, APPLICATION, 'psendmail-qp: watching')
    changed(ini, ini.read_text() + '\n# changed', 'psendmail-qp: watching')
    place.put()
    place.server.wait_for(2, 20)
    place.drained()
    os.killpg(child.process.pid, signal.SIGINT)
    assert child.wait() == 0
    assert 'Traceback (most recent call last)' not in child.text.rpartition('watching')[2]
    assert 'stopped by SIGINT' in child.text
