r"""Put deliberate defects into a copy of the package, one by one: a test must notice each.

``make mutation`` runs all of them (about ten minutes on two cores). ``python tools/mutation/run.py
--check`` only checks that each defect still finds its place, which takes a second: do that after
renaming things. ``--only WORD`` takes the defects whose name or file contains the word.

The defects are listed in mutants.toml beside this file, one for each promise. To add one, write::

    [[defect]]
    name = 'publish wakes no processor'          # unique: what the defect does
    promise = 'A processor wakes at once'        # what is then no longer true
    file = 'queue/maildir/staging.py'            # below pyramid_sendmail/
    function = 'StagedMail._end'                 # its qualified name; '' for the whole module
    pattern = 'self\._trigger\.pull\(\)'         # a regular expression
    replace = 'pass'                             # as for re.sub: \1 is the first group
    tests = ['tests/unit/queue/maildir/test_staging.py::test_publish_wakes_a_listener']

The pattern must match exactly once in the source of the function. Prefer a pattern that survives
renames: ``if .*expires.*:`` instead of the whole line. Of the tests at least one must fail with the
defect; name the one that states the promise. All of them must pass without the defect.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import faulthandler
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEFECTS = Path(__file__).with_name('mutants.toml')

SERVERS = 4
"""Copies of the repository that are tested at the same time: tests often wait."""

FAILED = 1
"""The exit status of pytest when tests failed, and nothing else went wrong."""

TEST_TIMEOUT, DEFECT_TIMEOUT = 120.0, 3.0
"""Seconds for one test, without a defect and with one: many defects make their test wait."""

RUN_TIMEOUT = 300.0
"""Seconds after which a run of pytest is ended, should its own time-outs not work."""

PRELOADED = (
    *('pyramid.config', 'pyramid_tm', 'webtest', 'waitress', 'trustme', 'psycopg'),
    *('sqlalchemy.orm', 'zope.sqlalchemy', 'ZODB.FileStorage', 'email.headerregistry'),
    *('hypothesis.strategies', '_hypothesis_pytestplugin', 'pytest_cov.plugin', 'pytest_timeout'),
)


class Misplaced(Exception):
    """A defect does not find its place; the text says why."""


@dataclass(frozen=True, slots=True)
class Defect:
    """A defect as mutants.toml describes it."""

    name: str
    promise: str
    file: str
    function: str
    pattern: str
    replace: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> str:
        """Return the whole text of the file with the defect; raises Misplaced."""
        path = root / 'pyramid_sendmail' / self.file
        if not path.is_file():
            raise Misplaced(f'{self.file}: no such file in pyramid_sendmail')
        text = path.read_text()
        start, end = self._span(text)
        try:
            pattern = re.compile(self.pattern)
        except re.error as error:
            raise Misplaced(f'pattern {self.pattern!r}: {error}') from error
        found = list(pattern.finditer(text, start, end))
        where = f'{self.file}: {self.function or "the module"}'
        if len(found) != 1:
            lines = ', '.join(str(text.count('\n', 0, match.start()) + 1) for match in found)
            many = f'{len(found)} times (lines {lines})' if found else 'nowhere'
            raise Misplaced(f'{where}: {self.pattern!r} matches {many}; it must match once')
        (match,) = found
        changed = text[: match.start()] + match.expand(self.replace) + text[match.end() :]
        if changed == text:
            raise Misplaced(f'{where}: the replacement changes nothing')
        try:
            compile(changed, self.file, 'exec')
        except SyntaxError as error:
            raise Misplaced(f'{where}: not Python with the defect: {error}') from error
        return changed

    def _span(self, text: str) -> tuple[int, int]:
        """Return where the source of the function begins and ends."""
        if not self.function:
            return 0, len(text)
        functions = dict(definitions(ast.parse(text)))
        node = functions.get(self.function)
        if node is None:
            last = self.function.rpartition('.')[2]
            near = [name for name in functions if name.rpartition('.')[2] == last]
            near = near or difflib.get_close_matches(self.function, functions, 3, 0.5)
            hint = f'; nearest: {", ".join(near)}' if near else ''
            raise Misplaced(f'{self.file}: there is no {self.function}{hint}')
        lines = text.splitlines(keepends=True)
        start, end = (sum(map(len, lines[:at])) for at in (node.lineno - 1, node.end_lineno))
        return start, end


def definitions(tree: ast.AST, within: str = '') -> Iterator[tuple[str, Any]]:
    """Yield each function and class with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        name = within
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f'{within}.{node.name}' if within else node.name
            yield name, node
        yield from definitions(node, name)


def read_defects(path: Path = DEFECTS) -> list[Defect]:
    """Return the defects of a file; raises SystemExit where an entry has other keys."""
    expected = {field.name for field in fields(Defect)}
    defects = []
    for entry in tomllib.loads(path.read_text())['defect']:
        if entry.keys() != expected:
            sys.exit(f'{path.name}: {entry.get("name")}: write exactly {", ".join(expected)}')
        defects.append(Defect(**{**entry, 'tests': tuple(entry['tests'])}))
    return defects


def check(defects: Sequence[Defect]) -> list[str]:
    """Return what is wrong with the list: a line for each defect."""
    wrong = []
    for name, count in Counter(defect.name for defect in defects).items():
        if count > 1:
            wrong.append(f'{name}: {count} defects have this name')
    for defect in defects:
        try:
            defect.apply(ROOT)
        except Misplaced as error:
            wrong.append(f'{defect.name}: {error}')
        wrong += [f'{defect.name}: {text}' for test in defect.tests if (text := _missing(test))]
    return wrong


def _missing(test: str) -> str:
    """Return what is wrong with a test's node id."""
    name, _, function = test.partition('::')
    path = ROOT / name
    if not path.is_file():
        return f'{name}: no such file of tests'
    function = function.partition('[')[0]
    names = [name for name, _ in definitions(ast.parse(path.read_text()))]
    if function and function.replace('::', '.') not in names:
        near = difflib.get_close_matches(function, names, 1, 0.5)
        return f'{name}: there is no {function}{f"; nearest: {near[0]}" if near else ""}'
    return ''


def serve() -> None:
    """Read a list of pytest's arguments a line and write its exit status a line: a child runs each,
    with the modules already imported that most tests need."""
    import pytest

    for name in PRELOADED:
        __import__(name)
    # A child collects garbage more than once, and the imported modules are none.
    gc.freeze()
    for line in sys.stdin:
        arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(arguments.pop(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            os.dup2(1, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            # A defect may block everything for ever; the exit status is FAILED.
            faulthandler.dump_traceback_later(RUN_TIMEOUT, exit=True)
            try:
                status = int(pytest.main(arguments))
            except BaseException:  # noqa: BLE001
                # pytest raises at its very end where something was never closed.
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
        for name in ('pyramid_sendmail', 'tests', 'demo', 'tools', 'docs'):
            if (ROOT / name).exists():
                shutil.copytree(ROOT / name, path / name, ignore=hidden)
        for file in ROOT.iterdir():
            if file.is_file() and file.suffix in ('.cfg', '.toml', '.rst', '.ini'):
                shutil.copy(file, path)
        self._output = path / 'output'
        environ = {**os.environ, 'PYTHONPATH': str(path)}
        environ.pop('PYTHONDONTWRITEBYTECODE', None)
        self._process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', str(path / 'tools/mutation/run.py'), '--serve'],
            cwd=path,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, tests: Sequence[str], timeout: float = TEST_TIMEOUT) -> tuple[int, str]:
        """Return pytest's exit status for these tests, and what it printed."""
        options = ['-x', '-q', '--no-header', '-p', 'no:cacheprovider', f'--timeout={timeout}']
        # The server has imported plugins before pytest could rewrite their assertions.
        options += ['-W', 'ignore::pytest.PytestAssertRewriteWarning']
        options += ['-o', 'timeout_func_only=true', f'--basetemp={self.path / "work"}']
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([*options, *tests, str(self._output)]) + '\n')
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return status, self._output.read_text(errors='replace')

    @contextmanager
    def defect(self, defect: Defect) -> Iterator[None]:
        """Put the defect into the copy; take it out afterwards."""
        path = self.path / 'pyramid_sendmail' / defect.file
        whole = path.read_text()
        try:
            path.write_text(defect.apply(self.path))
            self._forget(path)
            yield
        finally:
            path.write_text(whole)
            self._forget(path)

    def _forget(self, path: Path) -> None:
        """Remove byte code: Python compares only a file's size and second, which may be equal."""
        for compiled in (path.parent / '__pycache__').glob(f'{path.stem}.*'):
            compiled.unlink()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def servers(count: int) -> Iterator[Callable[..., list[Any]]]:
    """Yield ``each(work, items)``, which calls ``work(server, item)`` on whichever is free."""
    free: SimpleQueue[Server] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for number in range(count):
            path = Path(folder, str(number))
            path.mkdir()
            server = Server(path)
            stack.callback(server.close)
            free.put(server)

        def each(work: Callable[[Server, Any], Any], items: Sequence[Any]) -> list[Any]:
            def one(item: Any) -> Any:
                server = free.get()
                try:
                    return work(server, item)
                finally:
                    free.put(server)

            with ThreadPoolExecutor(count) as pool:
                return list(pool.map(one, items))

        yield each


def survivors(defects: Sequence[Defect], count: int) -> list[str]:
    """Run the tests without a defect, then with each; return a text for each that survived."""
    tests = sorted({test for defect in defects for test in defect.tests})

    def run(server: Server, defect: Defect) -> tuple[int, str]:
        with server.defect(defect):
            result = server.run(defect.tests, DEFECT_TIMEOUT)
        print(f'{"noticed " if result[0] == FAILED else "SURVIVED"} {defect.name}', flush=True)
        return result

    with servers(count) as each:
        # Without a name pytest runs all tests.
        shares = [share for share in (tests[at::count] for at in range(count)) if share]
        for status, output in each(Server.run, shares):
            if status != 0:
                sys.exit(f'the tests fail without any defect:\n{output[-5000:]}')
        results = each(run, defects)
    return [
        f'{defect.name} ({defect.file}): {defect.promise}: status {status}\n{output[-1500:]}'
        for defect, (status, output) in zip(defects, results, strict=True)
        if status != FAILED
    ]


def main() -> int:
    """Return 0 where every defect finds its place and a test notices it, otherwise 1."""
    parser = argparse.ArgumentParser(description='Check that the tests notice deliberate defects.')
    parser.add_argument('--check', action='store_true', help='only check that each has its place')
    parser.add_argument('--only', metavar='WORD', default='', help='those with it in name or file')
    parser.add_argument('--jobs', type=int, default=SERVERS, metavar='N')
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return 0
    begun = time.monotonic()
    chosen = [
        defect
        for defect in read_defects()
        if arguments.only in defect.name or arguments.only in defect.file
    ]
    if wrong := check(chosen):
        print('\n'.join(wrong))
        print(f'{len(wrong)} errors in {len(chosen)} defects; mend tools/mutation/mutants.toml')
        return 1
    print(f'{len(chosen)} defects find their place')
    if arguments.check:
        return 0
    found = survivors(chosen, min(arguments.jobs, len(chosen)))
    print('\n\n'.join(found))
    noticed, seconds = len(chosen) - len(found), time.monotonic() - begun
    print(f'{noticed} of {len(chosen)} defects noticed, in {seconds:.0f} s')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
