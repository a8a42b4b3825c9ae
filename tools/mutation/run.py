"""Deliberate defects, applied one by one to a copy of the repository: the tests notice each.

Four servers, each with a copy of its own: much of the time two of them wait. A server imports
once what tests need from elsewhere, and forks a child for each run of pytest, which then starts in
no time.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.crash.counts import Tell
from tests.crash.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'pyramid_sendmail'

SERVERS = 4
FAILED = 1
"""The exit status of pytest where tests have failed, rather than anything else."""

LONGEST, PATIENCE = 120.0, 3.0
"""Seconds for one test, without a defect and with one: many make their test wait in vain."""

HUNG = 300.0
"""Seconds after which a run is given up, should it not even hear that its time is over."""

HEAVY = (
    *('pyramid.config', 'pyramid_tm', 'webtest', 'waitress', 'trustme', 'psycopg'),
    *('sqlalchemy.orm', 'zope.sqlalchemy', 'ZODB.FileStorage', 'email.headerregistry'),
    *('hypothesis.strategies', '_hypothesis_pytestplugin', 'pytest_cov.plugin', 'pytest_timeout'),
)


def serve() -> None:
    """Read a list of pytest's arguments a line, write its exit status a line."""
    for name in HEAVY:
        __import__(name)
    # A child collects garbage more than once, and this is none.
    gc.freeze()
    for line in sys.stdin:
        arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(arguments.pop(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            os.dup2(1, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            # What a defect has locked up for good is noticed, too; the status is FAILED.
            faulthandler.dump_traceback_later(HUNG, exit=True)
            try:
                status = int(pytest.main(arguments))
            except BaseException:  # noqa: BLE001
                # What was never closed is told by pytest's very end, which raises.
                traceback.print_exc()
                status = FAILED
            sys.stdout.flush()
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Server:
    """A copy of the repository, and the process that runs its tests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        hidden = shutil.ignore_patterns('__pycache__', '.*')
        for name in ('pyramid_sendmail', 'tests', 'demo'):
            shutil.copytree(ROOT / name, path / name, ignore=hidden)
        for name in ('setup.cfg', 'pyproject.toml', 'README.rst', 'development.ini'):
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, path)
        self._output = path / 'output'
        environ = {**os.environ, 'PYTHONPATH': str(path)}
        environ.pop('PYTHONDONTWRITEBYTECODE', None)
        self._process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-m', 'tests.crash.test_mutants'],
            cwd=path,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, tests: Sequence[str], timeout: float = LONGEST) -> tuple[int, str]:
        """Pytest's exit status for these tests, and what it printed."""
        arguments = [f'tests/{test}' for test in tests]
        options = ['-x', '-q', '--no-header', '-p', 'no:cacheprovider', f'--timeout={timeout}']
        # Plugins that the server has imported before.
        options += ['-W', 'ignore::pytest.PytestAssertRewriteWarning']
        options += ['-o', 'timeout_func_only=true', f'--basetemp={self.path / "work"}']
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([*options, *arguments, str(self._output)]) + '\n')
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return status, self._output.read_text(errors='replace')

    @contextmanager
    def defect(self, mutant: Mutant) -> Iterator[None]:
        """The copy with a defect; as it was afterwards."""
        path = self.path / 'pyramid_sendmail' / mutant.file
        whole = path.read_text()
        try:
            path.write_text(whole.replace(mutant.before, mutant.after))
            self._forget(path)
            yield
        finally:
            path.write_text(whole)
            self._forget(path)

    def _forget(self, path: Path) -> None:
        """Byte code is told apart by a file's size and second, which may be the same."""
        for compiled in (path.parent / '__pycache__').glob(f'{path.stem}.*'):
            compiled.unlink()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope='module')
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    """``everywhere(work, items)``: call ``work(server, item)`` for each, on whichever is free."""
    servers = [Server(tmp_path_factory.mktemp('copy')) for _ in range(SERVERS)]
    free: SimpleQueue[Server] = SimpleQueue()
    for server in servers:
        free.put(server)

    def each(work: Callable[[Server, Any], Any], items: Sequence[Any]) -> list[Any]:
        def one(item: Any) -> Any:
            server = free.get()
            try:
                return work(server, item)
            finally:
                free.put(server)

        with ThreadPoolExecutor(SERVERS) as pool:
            return list(pool.map(one, items))

    yield each
    for server in servers:
        server.close()


@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda mutant: mutant.name)
def test_the_list_does_not_rot(mutant: Mutant) -> None:
    """Each defect's text stands in the package exactly once, and it is still Python afterwards."""
    text = (PACKAGE / mutant.file).read_text()
    assert text.count(mutant.before) == 1
    compile(text.replace(mutant.before, mutant.after), mutant.file, 'exec')


def test_names_are_names() -> None:
    """No two defects have the same name, nor the same file and text."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 60
    assert len({(each.file, each.before, each.after) for each in MUTANTS}) == len(MUTANTS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_a_defect(everywhere: Callable[..., list[Any]]) -> None:
    """The tests that have to notice the defects pass on the copies as they are."""
    tests = sorted({test for mutant in MUTANTS for test in mutant.tests.split()})
    shares = [tests[n::SERVERS] for n in range(SERVERS)]
    for status, output in everywhere(Server.run, shares):
        assert status == 0, output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_defect_is_noticed(everywhere: Callable[..., list[Any]], tell: Tell) -> None:
    """For each defect a test fails: not one survives, none ends in another error."""
    begun = time.monotonic()

    def run(server: Server, mutant: Mutant) -> tuple[int, str]:
        """Where the defect's text is not there any more nothing fails, which is noticed, too."""
        with server.defect(mutant):
            return server.run(mutant.tests.split(), PATIENCE)

    results = everywhere(run, MUTANTS)
    survivors = [
        f'{mutant.name} ({mutant.file}: {mutant.promise}): status {status}\n{output[-1500:]}'
        for mutant, (status, output) in zip(MUTANTS, results, strict=True)
        if status != FAILED
    ]
    killed = len(MUTANTS) - len(survivors)
    seconds = time.monotonic() - begun
    tell(f'defects noticed: {killed} of {len(MUTANTS)}, in {seconds:.0f} s')
    assert not survivors, '\n\n'.join(survivors)


if __name__ == '__main__':
    serve()
