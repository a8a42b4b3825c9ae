"""``psendmail-qp --reload`` in this process, with hupper's functions replaced."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyramid_sendmail.processor.options import SHUTDOWN_GRACE
from pyramid_sendmail.scripts import qp, reloading
from tests.support.scripts import Processor, run

pytestmark = pytest.mark.usefixtures('logging_as_before')


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let this process be one that the reloader has started; return the files it watches."""
    files: list[str] = []
    monkeypatch.setattr('hupper.is_active', lambda: True)
    monkeypatch.setattr('hupper.get_reloader', lambda: SimpleNamespace(watch_files=files.extend))
    return files


@pytest.mark.parametrize('options', [[], ['--quiet']])
@pytest.mark.parametrize('status', [0, 1, None])
def test_the_reloader(
    options: list[str], status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts the same command line, waits longer than the processor needs to stop, is not ended
    by SIGUSR1, and its exit status is that of the last processor."""
    before = signal.getsignal(signal.SIGUSR1)
    given: dict[str, Any] = {}

    def start_reloader(worker: str, **arguments: Any) -> None:
        given.update(arguments, worker=worker)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
        if status is not None:
            sys.exit(status)

    monkeypatch.setattr('hupper.start_reloader', start_reloader)
    argv = ['x.ini', '--reload', *options]
    assert qp.run(argv) == (status or 0)
    assert given['worker_kwargs'] == {'argv': argv}
    assert given['worker'] == 'pyramid_sendmail.scripts.qp.main'
    assert given['verbose'] == (not options)
    assert given['shutdown_interval'] > SHUTDOWN_GRACE
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_processor_that_is_reloaded(watched: list[str]) -> None:
    """It runs as without the option, and the file is watched."""
    assert run('x.ini#name', '--reload', processor=Processor(run=lambda self, stop: None)) == 0
    assert watched == [str(Path('x.ini').absolute())]


def test_code_that_cannot_be_loaded(
    watched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that the error came from are watched: a module with a mistake is not loaded."""
    monkeypatch.syspath_prepend(tmp_path)
    outer, inner = tmp_path / 'outer_of_reloading.py', tmp_path / 'inner_of_reloading.py'
    outer.write_text('import inner_of_reloading\n')
    inner.write_text('def\n')
    ini = tmp_path / 'x.ini'
    ini.write_text('[app:main]\nuse = call:outer_of_reloading:main\n')
    assert qp.run([str(ini), '--reload']) == 2
    assert {str(ini), str(outer), str(inner)} <= set(watched)


def test_a_plain_process() -> None:
    """No reloader has started the tests."""
    assert not reloading.is_reloaded()
