"""``sendmail:``: a program that takes mail on its standard input."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyramid_sendmail.envelope import Reply, Verdict
from pyramid_sendmail.exceptions import MailerUnavailable, QueueError
from pyramid_sendmail.mailers.path_syntax import is_valid_path
from pyramid_sendmail.mailers.sendmail import SendmailMailer
from tests.support.queues import open_files
from tests.support.sessions import RAW, A, B, C, envelope, send, statuses

Program = Callable[[str], SendmailMailer]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Return a function that writes a Python program, which knows ``folder``, and returns its
    mailer."""

    def make(code: str, *, timeout: float = 30) -> SendmailMailer:
        path = tmp_path / 'program'
        path.write_text(
            f'#!{sys.executable} -IS\nimport os, sys, time\nfolder = {str(tmp_path)!r}\n{code}\n',
            encoding='utf-8',
        )
        path.chmod(0o755)
        return SendmailMailer(str(path), timeout=timeout)

    return make


NOTE = (
    'text = sys.stdin.buffer.read()\n'
    'number = len([name for name in os.listdir(folder) if name.startswith("call")])\n'
    'with open(f"{folder}/call{number}", "wb") as file:\n'
    '    file.write(b"\\0".join(map(os.fsencode, sys.argv[1:])) + b"\\n\\n" + text)\n'
)
"""Keep arguments and text."""


def calls(folder: Path) -> list[tuple[list[bytes], bytes]]:
    found = []
    for path in sorted(folder.glob('call*'), key=lambda path: int(path.name[4:])):
        arguments, _, text = path.read_bytes().partition(b'\n\n')
        found.append((arguments.split(b'\0'), text))
    return found


def deliver(mailer: SendmailMailer, *recipients: str, **changes: object) -> dict[str, Verdict]:
    session = mailer.connect()
    [outcome] = send(session, envelope(*recipients, **changes))
    session.close()
    return dict(outcome)


@pytest.mark.finding(38)
def test_arguments_and_text(program: Program, tmp_path: Path) -> None:
    """The program gets the addresses as separate arguments, without -t, and the frozen text with
    line ends of this system."""
    outcome = deliver(program(NOTE), A, B)
    assert statuses(outcome) == {A: 'delivered', B: 'delivered'}
    assert outcome[A].reply == Reply(250, f'taken by {tmp_path}/program')
    assert calls(tmp_path) == [
        (
            [b'-i', b'-f', b'from@example.org', b'--', each.encode()],
            RAW.replace(b'\r\n', b'\n'),
        )
        for each in (A, B)
    ]


def test_null_sender(program: Program, tmp_path: Path) -> None:
    """The null sender of a bounce is written <>, which all programs know."""
    deliver(program(NOTE), A, sender='')
    assert calls(tmp_path)[0][0][:4] == [b'-i', b'-f', b'<>', b'--']


@pytest.mark.finding(38)
@pytest.mark.parametrize('address', ['-oQ/tmp/x@example.org', '-t', '-bv@example.org'])
def test_options_in_place_of_addresses(program: Program, tmp_path: Path, address: str) -> None:
    """An address that begins with a dash is refused by name, as sender and as recipient; the other
    recipients get the mail."""
    mailer = program(NOTE)
    outcome = deliver(mailer, A, address)
    assert statuses(outcome) == {A: 'delivered', address: 'failed'}
    assert repr(address) in outcome[address].reason
    assert [arguments[-2:] for arguments, _ in calls(tmp_path)] == [[b'--', A.encode()]]
    outcome = deliver(mailer, A, sender=address)
    assert statuses(outcome) == {A: 'failed'}
    assert repr(address) in outcome[A].reason
    assert len(calls(tmp_path)) == 1


@settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    addresses=st.lists(
        st.text(st.characters(exclude_categories=('Cs',)), min_size=1).filter(
            lambda text: is_valid_path(text) and not text.startswith('-')
        ),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_each_address_is_one_argument(
    program: Program, tmp_path: Path, addresses: list[str]
) -> None:
    """Each address arrives as one argument, in order, whatever characters it has."""
    for path in tmp_path.glob('call*'):
        path.unlink()
    deliver(program(NOTE), *addresses)
    assert [arguments[4:] for arguments, _ in calls(tmp_path)] == [
        [address.encode()] for address in addresses
    ]


@pytest.mark.parametrize(
    ('status', 'expected'), [(65, 'failed'), (67, 'failed'), (69, 'deferred'), (70, 'deferred')]
)
def test_each_recipient_has_a_call_of_its_own(
    program: Program, tmp_path: Path, status: int, expected: str
) -> None:
    """An exit status counts for one recipient; the others get the mail."""
    refuse = f'if {B!r} in sys.argv:\n    sys.exit({status})\n'
    outcome = deliver(program(refuse + NOTE), A, B, C)
    assert statuses(outcome) == {A: 'delivered', B: expected, C: 'delivered'}
    assert [arguments[4:] for arguments, _ in calls(tmp_path)] == [[A.encode()], [C.encode()]]


STATUSES = {
    **dict.fromkeys((65, 67, 68), 'failed'),
    **dict.fromkeys((64, 66, 69, 70, 71, 72, 73, 74, 76, 77, 78), 'deferred'),
    75: 'ambiguous',
    **dict.fromkeys((1, 2, 63, 79, 127, 255), 'deferred'),
}


@pytest.mark.finding(38)
@pytest.mark.parametrize('status', STATUSES)
def test_exit_status(program: Program, status: int) -> None:
    """The exit status (sysexits.h) gives the verdict, and the reason quotes the output."""
    code = f'sys.stdin.buffer.read()\nsys.stderr.write("no\\x07 way\\n")\nsys.exit({status})'
    mailer = program(code)
    outcome = deliver(mailer, A)
    reason = f'{mailer.name}: it ended with status {status}: no way'
    assert outcome == {A: Verdict(STATUSES[status], None, reason)}  # type: ignore[arg-type]


def test_ended_by_a_signal(program: Program) -> None:
    """A program ended by a signal is ambiguous if it had read the whole mail, else deferred."""
    large = b'Subject: x\r\n\r\n' + (b'z' * 76 + b'\r\n') * 30_000
    outcome = deliver(program('sys.stdin.buffer.read()\nos.kill(os.getpid(), 15)'), A)
    assert outcome[A].status == 'ambiguous'
    assert 'by signal 15 (SIGTERM)' in outcome[A].reason
    outcome = deliver(program('os.read(0, 10)\nos.kill(os.getpid(), 9)'), A, raw=large)
    assert outcome[A].status == 'deferred'
    assert 'by signal 9 (SIGKILL)' in outcome[A].reason


def test_queue_error_between_two_calls(program: Program, tmp_path: Path) -> None:
    """If the queue fails between two calls, the verdicts so far are yielded before the error is
    raised."""
    session = program(NOTE).connect()

    def before_final_dot(_mail: object, _recipients: object) -> None:
        if calls(tmp_path):
            raise QueueError(28, 'no space is left', '/queue')

    outcomes = session.send([envelope(A, B)], before_final_dot=before_final_dot)
    assert statuses(next(outcomes)) == {A: 'delivered', B: 'deferred'}
    with pytest.raises(QueueError, match='no space is left'):
        next(outcomes)
    with pytest.raises(QueueError):
        list(program(NOTE).connect().send([envelope(A)], before_final_dot=before_final_dot))


def test_the_program_sees_no_secrets(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program does not see our passwords, since a reason quotes its output."""
    monkeypatch.setenv('MAIL_PASSWORD', 'pass')
    monkeypatch.setenv('MAIL_URL', 'smtp://ann:pass@relay')
    monkeypatch.setenv('MAIL_ELSE', 'harmless')
    tell = 'print({name: os.environ[name] for name in os.environ if "MAIL" in name})'
    outcome = deliver(program(f'sys.stdin.buffer.read()\n{tell}\nsys.exit(70)'), A)
    assert 'pass' not in outcome[A].reason
    assert 'MAIL_ELSE' in outcome[A].reason


def test_no_room_for_the_text(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk raises MailerUnavailable and settles no mail."""

    def full() -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('tempfile.TemporaryFile', full)
    with pytest.raises(MailerUnavailable, match='text cannot be written: No space left'):
        deliver(program(NOTE), A)


def test_stops_reading(program: Program) -> None:
    """A status 0 of a program that has not read the whole mail counts as deferred."""
    large = b'Subject: x\r\n\r\n' + b'y' * 70 + b'\r\n' + (b'z' * 76 + b'\r\n') * 30_000
    for status, expected in {0: 'deferred', 65: 'failed', 75: 'deferred'}.items():
        mailer = program(f'sys.stdin.close()\nos.close(0)\nprint("too big")\nsys.exit({status})')
        outcome = deliver(mailer, A, raw=large)
        assert outcome[A].status == expected
        assert 'too big' in outcome[A].reason
    assert 'before it had read' in deliver(program('sys.exit(0)'), A, raw=large)[A].reason


def test_never_reads(program: Program) -> None:
    """A program that reads nothing is killed, and the mail is deferred."""
    large = b'Subject: x\r\n\r\n' + (b'z' * 76 + b'\r\n') * 30_000
    mailer = program(
        'open(f"{folder}/pid", "w").write(str(os.getpid()))\ntime.sleep(600)', timeout=1
    )
    outcome = deliver(mailer, A, raw=large)
    assert outcome[A].status == 'deferred'
    assert 'it did not end within 1 s' in outcome[A].reason


def test_never_ends(program: Program, tmp_path: Path) -> None:
    """A program that has read the whole mail and does not end is killed with its children; the mail
    is ambiguous."""
    mailer = program(
        'sys.stdin.buffer.read()\n'
        'os.fork()\n'
        'open(f"{folder}/pid{os.getpid()}", "w").close()\n'
        'time.sleep(600)',
        timeout=1,
    )
    outcome = deliver(mailer, A)
    assert outcome[A].status == 'ambiguous'
    assert 'did not end within 1 s' in outcome[A].reason
    pids = [int(path.name[3:]) for path in tmp_path.glob('pid*')]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_hangs_once_for_a_mail_to_many(program: Program, tmp_path: Path) -> None:
    """After a time-out the other recipients and the next mail are deferred without another call."""
    session = program(NOTE + 'time.sleep(600)', timeout=1).connect()
    [outcome] = send(session, envelope(A, B, C))
    assert statuses(outcome) == {A: 'ambiguous', B: 'deferred', C: 'deferred'}
    assert len(calls(tmp_path)) == 1
    with pytest.raises(MailerUnavailable) as caught:
        send(session, envelope(A))
    assert caught.value.stale


def test_may_not_be_killed(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setuid program that cannot be killed is left to run, and leaves no zombie when it ends."""

    def refuse(_group: int, _number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, 'killpg', refuse)
    mailer = program(
        'sys.stdin.buffer.read()\n'
        'open(f"{folder}/pid", "w").write(str(os.getpid()))\n'
        'while not os.path.exists(f"{folder}/end"): time.sleep(0.01)',
        timeout=1,
    )
    assert statuses(deliver(mailer, A)) == {A: 'ambiguous'}
    pid = int((tmp_path / 'pid').read_text(encoding='ascii'))
    assert _alive(pid)
    (tmp_path / 'end').touch()
    deadline = time.monotonic() + 10
    while os.path.exists(f'/proc/{pid}'):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_address_too_long_for_an_argument(program: Program, tmp_path: Path) -> None:
    """An address too long for an argument defers its mail alone; the next mail is sent."""
    long = 'x' * 200_000 + '@example.org'
    mailer = program(NOTE)
    outcome = deliver(mailer, long)
    assert statuses(outcome) == {long: 'deferred'}
    assert 'Argument list too long' in outcome[long].reason
    assert statuses(deliver(mailer, A)) == {A: 'delivered'}


def _alive(pid: int) -> bool:
    try:
        with open(f'/proc/{pid}/stat', encoding='ascii') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_its_child_keeps_the_pipe(program: Program) -> None:
    """The answer is known when the program ends, even if a child of it keeps the pipe open."""
    mailer = program(
        'sys.stdin.buffer.read()\n'
        'if os.fork() == 0:\n'
        '    open(f"{folder}/child", "w").write(str(os.getpid()))\n'
        '    time.sleep(600)\n'
        '    os._exit(0)\n'
        'while not os.path.exists(f"{folder}/child"): time.sleep(0.001)\n'
        'print("queued")'
    )
    assert statuses(deliver(mailer, A)) == {A: 'delivered'}
    child = Path(mailer.name.removeprefix('sendmail:')).parent / 'child'
    os.kill(int(child.read_text(encoding='ascii')), signal.SIGKILL)


def test_long_output(program: Program) -> None:
    """Long output neither blocks the program nor fills our memory, before or after it reads."""
    mailer = program(
        'sys.stderr.write("x" * 3_000_000)\n'
        'sys.stdin.buffer.read()\n'
        'sys.stderr.write("y" * 3_000_000 + " the end")\n'
        'sys.exit(75)'
    )
    outcome = deliver(mailer, A)
    assert outcome[A].status == 'ambiguous'
    assert outcome[A].reason.endswith('yyy the end')
    assert len(outcome[A].reason) < 700


def test_large_message_to_a_slow_reader(program: Program, tmp_path: Path) -> None:
    """A program that reads slowly gets all of 25 MB."""
    text = b'Subject: x\r\n\r\n' + (b'z' * 76 + b'\r\n') * 330_000
    slow = 'sys.stdin = open(0, "rb", buffering=0, closefd=False)\n' + NOTE.replace(
        'sys.stdin.buffer.read()', 'b"".join(iter(lambda: sys.stdin.read(300_000), b""))'
    )
    assert statuses(deliver(program(slow), A, raw=text)) == {A: 'delivered'}
    assert calls(tmp_path)[0][1] == text.replace(b'\r\n', b'\n')


def test_marked_ambiguous_before_it_starts(program: Program, tmp_path: Path) -> None:
    """``before_final_dot`` is called before the program starts; what it raises prevents the
    start."""
    session = program(NOTE).connect()
    seen = []

    def before_final_dot(mail: object, recipients: tuple[str, ...]) -> None:
        seen.append((recipients, len(calls(tmp_path))))

    list(session.send([envelope(A, 'no address', B)], before_final_dot=before_final_dot))
    assert seen == [((A,), 0), ((B,), 1)]

    def failing(mail: object, recipients: tuple[str, ...]) -> None:
        raise OSError('the disk is full')

    with pytest.raises(OSError, match='the disk is full'):
        list(session.send([envelope(A)], before_final_dot=failing))
    assert len(calls(tmp_path)) == 2
    with pytest.raises(MailerUnavailable) as caught:
        list(session.send([envelope(A)]))
    assert caught.value.stale


def test_a_program_outlives_our_process(program: Program, tmp_path: Path) -> None:
    """If our process is killed while the program reads, the program still gets the whole mail."""
    mailer = program(
        'open(f"{folder}/started", "w").close()\n'
        'while not os.path.exists(f"{folder}/go"): time.sleep(0.01)\n' + NOTE
    )
    text = b'Subject: x\r\n\r\n' + (b'z' * 76 + b'\r\n') * 30_000
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            deliver(mailer, A, raw=text)
        os._exit(0)
    until((tmp_path / 'started').exists)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (tmp_path / 'go').touch()
    whole = text.replace(b'\r\n', b'\n')
    until(lambda: [len(found) for _, found in calls(tmp_path)] == [len(whole)])
    assert calls(tmp_path)[0][1] == whole


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize('kind', ['missing', 'folder', 'not executable'])
def test_no_such_program(tmp_path: Path, kind: str) -> None:
    """A missing program raises MailerUnavailable, which says what to write in mail.url."""
    path = tmp_path / 'program'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'not executable':
        path.write_bytes(b'#!/bin/sh\n')
    with pytest.raises(MailerUnavailable, match=r'mail\.url') as caught:
        SendmailMailer(str(path)).connect()
    assert str(caught.value).startswith(f'sendmail:{path}: ')
    with pytest.raises(ValueError, match='sendmail:bin/x is not absolute'):
        SendmailMailer('bin/x')


def test_program_that_cannot_be_started(tmp_path: Path) -> None:
    """A file that cannot be executed defers its mail, and the next mail raises
    MailerUnavailable."""
    path = tmp_path / 'program'
    path.write_bytes(b'\x00nonsense')
    path.chmod(0o755)
    session = SendmailMailer(str(path)).connect()
    outcomes = session.send([envelope(A, B), envelope(C)])
    outcome = next(outcomes)
    assert statuses(outcome) == {A: 'deferred', B: 'deferred'}
    assert 'Exec format error' in outcome[A].reason
    with pytest.raises(MailerUnavailable):
        next(outcomes)


def test_program_that_vanishes(program: Program, tmp_path: Path) -> None:
    """If the program vanishes between two calls, the first recipient keeps its verdict and the rest
    are deferred."""
    outcome = deliver(program(NOTE + 'os.unlink(f"{folder}/program")'), A, B, C)
    assert statuses(outcome) == {A: 'delivered', B: 'deferred', C: 'deferred'}
    assert 'No such file' in outcome[B].reason


def test_nothing_is_left(program: Program) -> None:
    """No descriptor and no zombie is left, and the program inherits no descriptor of ours."""
    children = psutil.Process().children()
    before = open_files()
    inherited = os.open('/dev/null', os.O_RDONLY)
    mailer = program(
        'sys.stdin.buffer.read()\nprint(sorted(os.listdir("/proc/self/fd"), key=int))\nsys.exit(75)'
    )
    outcome = deliver(mailer, A)
    os.close(inherited)
    # The fourth is that of the listing.
    assert "['0', '1', '2', '3']" in outcome[A].reason
    assert open_files() - before == set()
    assert psutil.Process().children() == children


def test_threads(program: Program, tmp_path: Path) -> None:
    """Several threads may run the program at once."""
    mailer = program(NOTE.replace('call{number}', 'call{os.getpid()}'))
    results: list[str] = []

    def run() -> None:
        results.extend(deliver(mailer, each)[each].status for each in (A, B, C))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == ['delivered'] * 12
    assert len(calls(tmp_path)) == 12
