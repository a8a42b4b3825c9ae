"""The demo as ``make demo`` runs it: three real processes, a real queue, a real relay."""

from __future__ import annotations

import configparser
import html
import json
import os
import re
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
from contextlib import ExitStack, suppress
from email.message import EmailMessage
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

    def __init__(self, var: Path, port: int, *command: str) -> None:
        self.address = f'http://127.0.0.1:{port}'
        self.var = var
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command or [sys.executable, '-m', 'demo.run'],
            cwd=ROOT,
            env={**os.environ, 'DEMO_PORT': str(port), 'DEMO_VAR': str(var)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            umask=0,
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

    def responds(self) -> bool:
        assert self.process.poll() is None, self.output
        try:
            return self.get('/')[0] == 200
        except OSError:
            return False

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

    def part(self, name: str) -> dict[str, Any]:
        """A part of the demo, as the page shows it; nothing while the page does not respond."""
        try:
            part: dict[str, Any] = self.status()['parts'].get(name, {})
        except OSError:
            return {}
        return part

    def runs(self, name: str, *, other_than: int = 0) -> dict[str, Any]:
        """Wait until a part runs, as another process than before."""

        def scan() -> Any:
            part = self.part(name)
            return part.get('state') == 'running' and part['pid'] != other_than and part

        part: dict[str, Any] = eventually(scan, f'{name} runs\n{self.output}')
        return part

    def switch(self, name: str, action: str, state: str) -> None:
        """Press a part's button, and wait until it has taken effect."""
        assert self.post(f'/{name}/{action}')[0] == 303
        eventually(lambda: self.part(name).get('state') == state, f'{name} is {state}')

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


def test_the_wrong_field_is_marked(demo: Demo) -> None:
    """The page marks the field that the error is about, and no other."""
    for fields, wrong in (({'email': 'ann@example.org'}, 'name'), ({'name': 'Ann'}, 'email')):
        page = demo.post('/signup', **fields)[2].decode()
        marked = re.findall(r'<input name="(\w+)"[^>]*aria-invalid="true"', page)
        assert marked == [wrong]


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


def test_send_a_hundred_to_a_stopped_processor(demo: Demo) -> None:
    """Mail waits, as files, while the processor is stopped, and all of it leaves when it is
    started; the page counts all, and lists some."""

    def sent(status: dict[str, Any]) -> int:
        count: int = status['counts']['events'].get('sent', 0)
        return count

    before = demo.status()
    demo.switch('processor', 'stop', 'stopped')
    assert demo.post('/hundred')[0] == 303
    status = demo.status()
    assert status['counts']['queued'] == 100
    assert 0 < len(status['queued']) < 100
    assert {mail['folder'] for mail in status['queued']} == {'new'}
    assert status['parts']['processor']['state'] == 'stopped'
    demo.switch('processor', 'start', 'running')
    eventually(
        lambda: sent(demo.status()) == sent(before) + 100,
        f'a hundred events\n{demo.output}',
    )
    status = demo.status()
    assert status['counts']['queued'] == 0
    assert status['counts']['delivered'] == min(before['counts']['delivered'] + 100, 200)
    assert 0 < len(status['delivered']) < 100
    assert 0 < len(status['log']) < 100


def test_relay_down(demo: Demo) -> None:
    """Mail waits while the relay is down, without an attempt, and arrives when it is up."""
    demo.switch('relay', 'stop', 'stopped')
    demo.post('/signup', name='Ann', email='patient@example.org')
    eventually(lambda: 'relay unavailable' in demo.output, 'relay unavailable')
    [mail] = demo.status()['queued']
    assert (mail['folder'], mail['attempt']) == ('new', 0)
    demo.switch('relay', 'start', 'running')
    assert demo.logged('sent', 'patient@example.org')['attempt'] == 1


@pytest.mark.parametrize('path', ['/processor/pause', '/web/stop', '/supervisor/stop'])
def test_what_cannot_be_stopped(demo: Demo, path: str) -> None:
    """Only a part that the page has a button for is stopped."""
    assert demo.post(path)[0] == 404
    assert {part['state'] for part in demo.status()['parts'].values()} == {'running'}


def test_dead_letter(demo: Demo) -> None:
    """A dead letter is shown with its reason; retried, it has an outcome again; dropped, it is
    gone, and a second press does no harm."""

    def dead_letters() -> dict[str, Any]:
        return {mail['id']: mail for mail in demo.status()['failed']}

    def newest_event() -> int:
        rows = demo.status()['log']
        ids = [row['id'] for row in rows if row['message_id'] == letter['message_id']]
        return max(ids, default=0)

    before = dead_letters()
    demo.post('/refuse')
    [id] = eventually(lambda: dead_letters().keys() - before.keys(), 'a dead letter')
    letter = dead_letters()[id]
    assert letter['reason'].startswith('550 5.1.1')
    first = eventually(newest_event, 'an event')
    assert demo.post(f'/failed/{id}/retry')[0] == 303
    eventually(lambda: newest_event() > first, f'another event\n{demo.output}')
    eventually(lambda: id in dead_letters(), 'dead again')
    for _ in range(2):
        assert demo.post(f'/failed/{id}/drop')[0] == 303
        assert id not in dead_letters()
    assert demo.post(f'/failed/{id}/retry')[0] == 303
    assert demo.status()['queued'] == []


def test_code_behind_each_button(demo: Demo) -> None:
    """Each button of the page has its source beside it: the view, and what it calls."""
    page = demo.get('/')[2].decode()
    code = dict(re.findall(r'id="code-(\w+)" .*?<code>(.*?)</code>', page, re.DOTALL))
    assert set(code) == {*re.findall(r'<form [^>]*id="(\w+)"', page), 'failed'}
    assert set(code) == set(re.findall(r'popovertarget="code-(\w+)">', page))
    for text in code.values():
        source = html.unescape(text)
        for part in source.split('\n\n\n'):
            name, _, function = part.partition('\n')
            assert function.rstrip('\n') in (ROOT / name.removeprefix('# ')).read_text()
    for name, line in {
        'signup': 'request.mailer.send(welcome(request, name, email))',
        'hundred': 'request.mailer.send(reminder(number))',
        'failed': 'queue.retry(mail.info)',
    }.items():
        assert line in html.unescape(code[name])


@pytest.mark.parametrize('path', ['raise', 'refuse', 'defer', 'hundred', 'signup'])
def test_back_to_the_button(demo: Demo, path: str) -> None:
    """Without JavaScript, too, one comes back to the button that one pressed."""
    _, headers, page = demo.post(f'/{path}', name='Ann', email='ann@example.org')
    if path == 'raise':
        assert 'href="/#raise"' in page.decode()
    else:
        assert urllib.parse.urlsplit(headers['Location']).fragment == path
    assert f'id="{path}"' in demo.get('/')[2].decode()


def test_text_alone_wraps() -> None:
    """Mail of text alone is shown as text, and neither a long line nor a long word is cut off."""
    from demo.status import Delivered

    mail = EmailMessage()
    mail.set_content('A <long> line. ' * 40 + 'x' * 400)
    page = Delivered('1', b'{}\n' + mail.as_bytes()).page()
    assert 'A &lt;long&gt; line.' in page
    assert 'white-space:pre-wrap' in page
    assert 'overflow-wrap:anywhere' in page


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
    """Ctrl-C and SIGTERM end all processes, with exit status 0, and the next start goes on: a part
    that was stopped runs again, and mail that waited leaves."""
    var, signals = tmp_path / 'var', [signal.SIGINT, signal.SIGTERM]
    for before in range(len(signals) + 1):
        demo = Demo(var, free_pair())
        try:
            demo.ready()
            assert demo.status()['signups']['count'] == before
            demo.runs('processor')
            for number in range(before):
                demo.logged('sent', f'ann{number}@example.org')
            if before == len(signals):
                break
            family = demo.family()
            assert len(family) == 3
            demo.switch('processor', 'stop', 'stopped')
            demo.post('/signup', name='Ann', email=f'ann{before}@example.org')
            demo.process.send_signal(signals[before])
            assert demo.wait() == 0, demo.output
            assert psutil.wait_procs(family, timeout=0)[1] == []
        finally:
            demo.end()


def test_a_killed_part_starts_again(demo: Demo) -> None:
    """Whatever is killed runs again, as another process, and mail leaves."""
    killed = {name: demo.runs(name)['pid'] for name in ('processor', 'relay', 'web')}
    for pid in killed.values():
        psutil.Process(pid).kill()
    for name, pid in killed.items():
        demo.runs(name, other_than=pid)
        assert f'demo: {name} ended with exit status -9; it is started again in' in demo.output
    demo.post('/signup', name='Ann', email='after-all@example.org')
    demo.logged('sent', 'after-all@example.org')


def test_a_part_that_cannot_start(tmp_path: Path) -> None:
    """The supervisor says which part ended at the start, stops the others, and fails."""
    (tmp_path / 'mail').write_text('no folder')
    demo = Demo(tmp_path, free_pair())
    try:
        assert demo.wait() == 1
        assert re.search(r'demo: (web|processor) ended with exit status \d', demo.output)
        assert 'the other parts are stopped' in demo.output
    finally:
        demo.end()


def test_another_demo_has_the_folder(demo: Demo) -> None:
    """A second demo with the same DEMO_VAR does not start; the first one goes on."""
    second = Demo(demo.var, free_pair())
    try:
        assert second.wait() == 1
        assert f'demo: another demo uses {demo.var}; choose another folder' in second.output
        assert 'Traceback' not in second.output
    finally:
        second.end()
    assert {part['state'] for part in demo.status()['parts'].values()} == {'running'}


def test_the_folder_is_private(demo: Demo) -> None:
    """Under a umask of 0, as here, nothing of the demo is open to other users."""
    for path in [demo.var, *demo.var.rglob('*')]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_two_demos_share_nothing() -> None:
    """Each port has a folder of its own; that of development.ini is the one of the usual port."""
    from demo.locations import Locations

    ini = configparser.ConfigParser({'here': str(ROOT / 'demo')})
    ini.read(ROOT / 'demo' / 'development.ini')
    names = ('mail.url', 'mail.queue_path', 'sqlalchemy.url', 'demo.folder')
    usual = {name: ini['app:main'][name] for name in names}
    assert Locations.from_environment({}).applied_to(usual) == usual
    assert Locations.from_environment({'DEMO_PORT': '6543'}).applied_to({}) == usual
    other = Locations.from_environment({'DEMO_PORT': '7000'}).applied_to({})
    assert set(other) == set(usual)
    assert not set(other.values()) & set(usual.values())
    for name in names[1:]:
        assert str(ROOT / 'demo' / 'var' / '7000') in other[name]


def test_without_a_supervisor(tmp_path: Path) -> None:
    """Where each part is started by hand, the page has no buttons to stop one."""
    pserve = str(Path(sys.executable).with_name('pserve'))
    web = Demo(tmp_path / 'var', free_pair(), pserve, 'demo/development.ini')
    try:
        eventually(web.responds, 'the page')
        assert web.status()['parts'] == {}
        page = web.get('/')[2].decode()
        assert 'action="/refuse"' in page
        assert 'id="processor"' not in page
        assert web.post('/processor/stop')[0] == 404
    finally:
        web.end()


def test_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    """What it wrote is no longer believed."""
    from demo.parts import Parts, PartState

    parts = Parts(tmp_path)
    parts.write({'relay': PartState('running', 1)})
    assert parts.read() == {'relay': PartState('running', 1)}
    with subprocess.Popen([sys.executable, '-c', '']) as process:
        process.wait()
    state = (tmp_path / 'parts.json').read_text()
    (tmp_path / 'parts.json').write_text(state.replace(str(os.getpid()), str(process.pid)))
    assert parts.read() == {}


@pytest.mark.parametrize('offset', [0, 1])
def test_a_busy_port(tmp_path: Path, offset: int) -> None:
    """A port in use is named, with a pair of ports that is free; nothing is started."""
    port = free_pair()
    with ExitStack() as held:
        held.enter_context(socket.create_server(('127.0.0.1', port + offset)))
        with suppress(OSError):  # it is in use already
            held.enter_context(socket.create_server(('127.0.0.1', port + 10)))
        demo = Demo(tmp_path / 'var', port)
        try:
            assert demo.wait() == 1
        finally:
            demo.end()
    assert f'port {port + offset} ' in demo.output
    [other] = re.findall(r'DEMO_PORT=(\d+) make demo', demo.output)
    assert int(other) not in (port, port + 10)
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
