"""The demo as ``make demo`` runs it: three real processes, a real queue, a real relay."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip('demo.run', reason='the demo is not here: pip install -e .[demo]')

WAIT = 60.0
"""Seconds after which a condition that did not come true is a failure."""

OPENER = urllib.request.build_opener(
    urllib.request.ProxyHandler({}),
    type('Stay', (urllib.request.HTTPRedirectHandler,), {'redirect_request': lambda *_: None}),
)


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; return what it returned."""
    end = time.monotonic() + WAIT
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < end, f'not within {WAIT:g} s: {what}'
        time.sleep(0.02)


def free_pair() -> int:
    """A port that is free, and whose next one is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(('127.0.0.1', 0))
            port: int = first.getsockname()[1]
            if port == 65535:
                continue
            try:
                second.bind(('127.0.0.1', port + 1))
            except OSError:
                continue
            return port


class Demo:
    """The supervisor as a child, and what one does with the page."""

    def __init__(self, var: Path, port: int) -> None:
        self.address = f'http://127.0.0.1:{port}'
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'demo.run'],
            cwd=ROOT,
            env={**os.environ, 'DEMO_PORT': str(port), 'DEMO_VAR': str(var)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.lines.extend(lines)

    @property
    def output(self) -> str:
        return ''.join(self.lines)

    def ready(self) -> None:
        eventually(lambda: 'Open http' in self.output or self.process.poll() is not None, 'ready')
        assert self.process.poll() is None, self.output

    def family(self) -> list[psutil.Process]:
        """The supervisor's children."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self) -> int:
        status = self.process.wait(WAIT)
        self._reader.join(WAIT)
        return status

    def end(self) -> None:
        if self.process.poll() is None:
            family = self.family()
            self.process.terminate()
            try:
                self.process.wait(WAIT)
            finally:
                for left in [*psutil.wait_procs(family, timeout=1)[1], self.process]:
                    left.kill()
        self._reader.join(WAIT)

    def get(self, path: str) -> tuple[int, Any, bytes]:
        return self._open(urllib.request.Request(self.address + path))

    def post(self, path: str, **fields: str) -> tuple[int, Any, bytes]:
        body = urllib.parse.urlencode(fields).encode()
        return self._open(urllib.request.Request(self.address + path, body))

    def _open(self, request: urllib.request.Request) -> tuple[int, Any, bytes]:
        try:
            with OPENER.open(request, timeout=WAIT) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def status(self) -> dict[str, Any]:
        code, _, body = self.get('/status.json')
        assert code == 200, body
        status: dict[str, Any] = json.loads(body)
        return status

    def logged(self, kind: str, recipient: str) -> dict[str, Any]:
        """The row that a subscriber wrote, once it is there."""

        def scan() -> Any:
            rows = self.status()['log']
            return [row for row in rows if (row['kind'], row['recipients']) == (kind, [recipient])]

        row: dict[str, Any] = eventually(scan, f'{kind} for {recipient}\n{self.output}')[0]
        return row


@pytest.fixture(scope='module')
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    demo = Demo(tmp_path_factory.mktemp('demo') / 'var', free_pair())
    try:
        demo.ready()
        yield demo
    finally:
        demo.end()


def test_sign_up(demo: Demo) -> None:
    """The button writes a row; the mail arrives whole; a subscriber gets its event."""
    code, headers, _ = demo.post('/signup', name='Ann Böhm & Co', email='ann@example.org')
    assert code == 303
    assert urllib.parse.urlsplit(headers['Location']).path == '/'
    row = demo.logged('sent', 'ann@example.org')
    status = demo.status()
    assert status['queued'] == []
    assert [one['name'] for one in status['signups']['newest']] == ['Ann Böhm & Co']
    [mail] = [one for one in status['delivered'] if one['message_id'] == row['message_id']]
    assert mail['recipients'] == ['ann@example.org']
    assert mail['sender'] == 'demo@example.org'
    assert mail['subject'] == 'Welcome, Ann Böhm & Co'
    assert 'Dear Ann Böhm & Co,' in mail['text']
    assert 'Welcome, Ann Böhm &amp; Co' in mail['html']
    assert [(one['filename'], one['inline']) for one in mail['attachments']] == [
        ('logo.png', True),
        ('terms.txt', False),
    ]
    assert (row['attempt'], row['tag'], row['reply'][:3]) == (1, 'welcome', '250')


def test_delivered_mail_is_shown_behind_a_wall(demo: Demo) -> None:
    """The frame's page has the picture in it, runs no script and loads nothing."""
    demo.post('/signup', name='<script>alert(1)</script>', email='eve@example.org')
    row = demo.logged('sent', 'eve@example.org')
    [mail] = [one for one in demo.status()['delivered'] if one['message_id'] == row['message_id']]
    code, headers, page = demo.get(mail['page'])
    assert code == 200
    assert headers['Content-Security-Policy'].startswith("sandbox; default-src 'none'")
    assert b'src="data:image/png;base64,' in page
    assert b'<script' not in page
    picture, terms = mail['attachments']
    _, headers, data = demo.get(picture['href'])
    assert data == (ROOT / 'demo' / 'static' / 'logo.png').read_bytes()
    assert headers['Content-Disposition'].startswith('attachment')
    assert demo.get(terms['href'])[2].startswith(b'The terms of the demo')
    assert b'cid:logo' in demo.get(mail['source'])[2]
    assert demo.get('/delivered/1')[0] == 404
    assert demo.get('/delivered/..%2Fdemo.sqlite')[0] == 404


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'name': 'Ann', 'email': 'ann at example.org'}, 'ann at example.org'),
        ({'name': 'Ann', 'email': 'ann@example.org, bob@example.org'}, 'bob@example.org'),
        ({'name': 'Ann', 'email': 'ann@'}, 'ann@'),
        ({'name': 'Ann', 'email': ''}, ''),
        ({'name': '', 'email': 'ann@example.org'}, 'Please enter your name.'),
        ({'name': 'Ann\r\nBcc: eve@example.org', 'email': 'ann@example.org'}, ''),
        ({}, 'Please enter your name.'),
    ],
)
def test_bad_sign_up(demo: Demo, fields: dict[str, str], said: str) -> None:
    """What cannot be sent is said beside the form, which keeps what was typed; nothing is left."""
    before = demo.status()
    code, _, page = demo.post('/signup', **fields)
    text = page.decode()
    assert code == 400, text
    error = text.partition('id="error" role="alert">')[2].partition('</p>')[0]
    assert error
    assert said in error
    assert f'value="{fields.get("email", "")}"' in text
    after = demo.status()
    assert after['signups'] == before['signups']
    assert after['queued'] == []
    assert len(after['delivered']) == len(before['delivered'])


def test_raise(demo: Demo) -> None:
    """A view that raises after it has sent leaves neither a row nor a mail."""
    before = demo.status()
    code, _, page = demo.post('/raise')
    assert code == 500
    assert b'nothing was queued' in page
    message_id = page.decode().partition('&lt;')[2].partition('&gt;')[0]
    assert message_id.endswith('@demo.example.org')
    # A mail that is sent later arrives; the one before it would have come first.
    demo.post('/signup', name='Bob', email='after-raise@example.org')
    demo.logged('sent', 'after-raise@example.org')
    after = demo.status()
    assert after['signups']['count'] == before['signups']['count'] + 1
    assert not [one for one in after['delivered'] if message_id in one['message_id']]
    assert not [row for row in after['log'] if message_id in row['message_id']]
    assert after['queued'] == []


def test_refuse(demo: Demo) -> None:
    """A refused mail becomes an error event with the relay's words, and a dead letter."""
    assert demo.post('/refuse')[0] == 303
    row = demo.logged('error', 'unknown@refused.example')
    assert row['reply'].startswith('550 5.1.1')
    status = demo.status()
    assert status['queued'] == []
    assert row['message_id'] in [mail['message_id'] for mail in status['failed']]
    assert row['message_id'] not in [mail['message_id'] for mail in status['delivered']]


def test_defer(demo: Demo) -> None:
    """A deferred mail is seen in the queue, and arrives at the second attempt."""
    assert demo.post('/defer')[0] == 303

    def deferred() -> Any:
        return [row for row in demo.status()['log'] if row['kind'] == 'deferred']

    [row] = eventually(deferred, 'deferred')
    assert row['reason'].startswith('451')
    assert row['retry_at'] > row['at']
    [recipient] = row['recipients']
    [mail] = demo.status()['queued']
    assert (mail['folder'], mail['attempt']) == ('cur', 1)
    assert mail['recipients'] == [recipient]
    assert mail['message_id'] == row['message_id']
    assert demo.logged('sent', recipient)['attempt'] == 2
    assert demo.status()['queued'] == []


def test_nothing_from_outside(demo: Demo) -> None:
    """The page works without a network: it names no other host, and its policy allows none."""
    code, headers, page = demo.get('/')
    assert code == 200
    assert b'://' not in page
    policy = headers['Content-Security-Policy']
    assert "default-src 'none'" in policy
    assert 'unsafe' not in policy
    for asset in ('style.css', 'page.js', 'logo.png'):
        code, _, content = demo.get(f'/static/{asset}')
        assert code == 200
        assert b'://' not in content or asset == 'logo.png'


def test_a_signal_stops_everything(tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end all processes, with exit status 0, and the next start goes on."""
    var, signals = tmp_path / 'var', [signal.SIGINT, signal.SIGTERM]
    for before in range(len(signals) + 1):
        demo = Demo(var, free_pair())
        try:
            demo.ready()
            assert demo.status()['signups']['count'] == before
            for number in range(before):
                demo.logged('sent', f'ann{number}@example.org')
            if before == len(signals):
                break
            family = demo.family()
            assert len(family) == 3
            demo.post('/signup', name='Ann', email=f'ann{before}@example.org')
            demo.process.send_signal(signals[before])
            assert demo.wait() == 0, demo.output
            assert psutil.wait_procs(family, timeout=0)[1] == []
        finally:
            demo.end()


def test_a_part_that_dies_stops_the_rest(tmp_path: Path) -> None:
    """The supervisor says which part ended, stops the others, and fails."""
    demo = Demo(tmp_path / 'var', free_pair())
    try:
        demo.ready()
        family = demo.family()
        [processor] = [child for child in family if 'psendmail-qp' in ' '.join(child.cmdline())]
        processor.kill()
        assert demo.wait() == 1
        assert 'demo: processor ended with exit status -9' in demo.output
        assert psutil.wait_procs(family, timeout=0)[1] == []
    finally:
        demo.end()


@pytest.mark.parametrize('offset', [0, 1])
def test_a_busy_port(tmp_path: Path, offset: int) -> None:
    """A port in use is named, with the remedy; nothing is started."""
    port = free_pair()
    with socket.create_server(('127.0.0.1', port + offset)):
        demo = Demo(tmp_path / 'var', port)
        try:
            assert demo.wait() == 1
        finally:
            demo.end()
    assert f'port {port + offset} ' in demo.output
    assert 'DEMO_PORT=' in demo.output
    assert 'Traceback' not in demo.output
    assert not (tmp_path / 'var').exists()


@pytest.mark.parametrize('text', ['http', '0', '65535', '-1'])
def test_a_port_that_is_none(tmp_path: Path, text: str) -> None:
    """DEMO_PORT is checked before anything starts."""
    done = subprocess.run(
        [sys.executable, '-m', 'demo.run'],
        cwd=ROOT,
        env={**os.environ, 'DEMO_PORT': text, 'DEMO_VAR': str(tmp_path / 'var')},
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f'demo: DEMO_PORT={text}: write a port number')
