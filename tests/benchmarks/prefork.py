"""What a pre-forking server pays for mail: load the application, fork a worker, send.

``python -m tests.benchmarks.prefork [RUNS]`` prints the medians of so many runs (15), each in a
fresh process. It uses nothing but the public surface, so that it measures any version::

    PYTHONPATH=/path/to/another/tree python tests/benchmarks/prefork.py

``import_and_include``: CPU in ms: ``import pyramid_sendmail`` and ``config.include`` after
Pyramid and pyramid_tm. ``load``: that, the import of Message and ``make_wsgi_app``.
``first_send``, ``second_send``: CPU in ms of a transaction with one mail, in the forked worker.
``private_memory``: MB that the worker does not share with its parent after the second mail.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RUNS = 15


def measure(folder: str) -> dict[str, float]:
    """Load an application, fork, send twice in the child; return the child's and own figures."""
    import pyramid_tm
    import transaction
    from pyramid.config import Configurator
    from pyramid.request import Request
    from pyramid.scripting import prepare

    assert all((pyramid_tm, transaction, Request))
    # Whatever Pyramid imports late is not ours.
    other = Configurator(settings={})
    other.include('pyramid_tm')
    prepare(registry=other.make_wsgi_app().registry)['closer']()

    settings = {'mail.queue_path': f'{folder}/mail', 'mail.url': 'smtp://127.0.0.1:25'}
    config = Configurator(settings=settings)
    config.include('pyramid_tm')
    config.commit()
    start = time.process_time()
    config.include('pyramid_sendmail')
    config.commit()
    included = time.process_time()
    # As a module with views does.
    from pyramid_sendmail import Message

    app = config.make_wsgi_app()
    loaded = time.process_time()

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, json.dumps(_worker(app, Message)).encode())
        os._exit(0)
    os.close(write)
    with open(read) as answers:
        figures: dict[str, float] = json.load(answers)
    os.waitpid(pid, 0)
    return {
        'import_and_include': (included - start) * 1000,
        'load': (loaded - start) * 1000,
        **figures,
    }


def _worker(app: Any, message: Any) -> dict[str, float]:
    from pyramid.scripting import prepare

    request = prepare(registry=app.registry)['request']
    took = []
    for _ in range(2):
        start = time.process_time()
        with request.tm:
            request.mailer.send(
                message(
                    to='Ann <ann@example.org>',
                    sender='The Shop <shop@example.org>',
                    subject='Your order',
                    text='It is on its way.\n' * 50,
                )
            )
        took.append((time.process_time() - start) * 1000)
    return {
        'first_send': took[0],
        'second_send': took[1],
        'private_memory': _private_memory(),
    }


def _private_memory() -> float:
    """Memory that only this process has, in MB."""
    lines = Path('/proc/self/smaps_rollup').read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith('Private_')) / 1024


def main(runs: int = RUNS) -> None:
    """Print the median of each figure."""
    found: dict[str, list[float]] = {}
    # Without compiled modules a start would take longer than it does where it is installed; the
    # first run compiles them, and does not count.
    environ = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}
    for run in range(runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            output = subprocess.run(
                [sys.executable, '-W', 'ignore', __file__, '--one', folder],
                capture_output=True,
                check=True,
                env=environ,
                text=True,
            ).stdout
        if run > 0:
            for name, figure in json.loads(output).items():
                found.setdefault(name, []).append(figure)
    for name, figures in found.items():
        print(f'{name:20} {statistics.median(figures):8.2f}   (least {min(figures):.2f})')


if __name__ == '__main__':
    if sys.argv[1:2] == ['--one']:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main(*map(int, sys.argv[1:]))
