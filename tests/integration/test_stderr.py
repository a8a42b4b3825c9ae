"""What ``psendmail-qp`` prints, where it cannot be read or is not wanted."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

from tests.support.applications import ROOT
from tests.support.children import MODULE, Place
from tests.support.queues import files, until
from tests.support.smtp.server import reply

REDIRECTIONS = ['2>&-', '<&- >&- 2>&-', '2>/dev/full', '>/dev/full 2>/dev/full', '2>&- --quiet']


@pytest.mark.parametrize('processes', ['', '--processes 2'])
@pytest.mark.parametrize('redirection', REDIRECTIONS)
def test_without_stderr(place: Place, redirection: str, processes: str) -> None:
    """Mail leaves whether or not the lines can be printed, and the status is that of the queue."""
    place.put(3)
    place.put(1, 'bob@example.org')
    place.server.always('RCPT', reply(550, '5.1.1 no such user'), match='bob')
    command = shlex.join([*MODULE, str(place.ini()), '--once'])
    done = subprocess.run(
        ['sh', '-c', f'exec {command} {processes} {redirection}'], cwd=ROOT, timeout=60
    )
    assert done.returncode == 0
    assert len(place.server.pairs()) == 3
    assert [name.split('/')[0] for name in files(place.queue)] == ['failed']


@pytest.mark.parametrize('stderr', ['full', 'closed pipe'])
def test_watching_without_stderr(place: Place, stderr: str) -> None:
    """The same of a processor that goes on."""
    if stderr == 'full':
        output = os.open('/dev/full', os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    try:
        process = subprocess.Popen([*MODULE, str(place.ini())], cwd=ROOT, stderr=output)
    finally:
        os.close(output)
    try:
        for count in (1, 2):
            place.put()
            place.server.wait_for(count)
        until(lambda: not files(place.queue))
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(20) == 0


LOGGING = """
[loggers]
keys = root, shop

[handlers]
keys = console, file

[formatters]
keys =

[logger_root]
level = INFO
handlers = console

[logger_shop]
level = INFO
qualname = pyramid_sendmail
handlers = console, file

[handler_console]
class = StreamHandler
args = (sys.{stream},)

[handler_file]
class = FileHandler
args = ('{path}',)
"""


@pytest.mark.parametrize('stream', ['stderr', 'stdout'])
@pytest.mark.parametrize('processes', ['', '--processes=2'])
def test_quiet(place: Place, stream: str, processes: str) -> None:
    """With --quiet nothing is printed while all is well, whatever the logging section says; errors
    are, and a log file has everything."""
    log = place.path / 'log'
    ini = place.ini()
    text = ini.read_text()
    ini.write_text(text[: text.index('[loggers]')] + LOGGING.format(stream=stream, path=log))
    arguments = [ini, '--quiet', *([processes] if processes else [])]
    [sent] = place.put()
    assert place.once(*arguments).text == ''
    assert f'{sent}: sent for' in log.read_text()
    place.server.always('RCPT', reply(550, '5.1.1 no such user'))
    [refused] = place.put()
    assert f'{refused}: refused for' in place.once(*arguments).text
