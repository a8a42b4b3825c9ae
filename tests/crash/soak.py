"""The queue under everything at once: killed and stopped processes, clocks that jump, bad relays.

``python -m tests.crash.soak --mails 10000 --processors 4 --seed 7``

Producers commit and abort transactions of mail and of rows in a database of their own; some are
killed, in the middle of a commit perhaps. Processors drain the queue, tell their subscribers, and
are killed, stopped and started again. The clock of all of them is stepped, by seconds and by years.
Each processor has a relay, every other one with PIPELINING, which answers as chance has it: some
connections stall at the greeting, at MAIL, in the text or before the reply to the final dot, and
some are slow. ``audit`` says what must be true in the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyramid_sendmail.queue import MaildirQueue
from pyramid_sendmail.queue.maildir.recognition import FOLDERS
from tests.crash.audit import audit
from tests.crash.soak_parts import SharedClock, make_queue, process, produce
from tests.crash.soak_relay import STALLS, SoakRelay

__all__ = ['Options', 'Soak', 'main', 'run']

DRAIN = 120.0
"""Seconds for the queue to become empty in the end."""

YEAR = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Options:
    """``seconds``: after so long no more mail is sent, however many it was."""

    mails: int = 10_000
    processors: int = 4
    producers: int = 2
    seconds: float = 1800.0
    seed: int = 1

    def __str__(self) -> str:
        return (
            f'python -m tests.crash.soak --mails {self.mails} --processors {self.processors} '
            f'--producers {self.producers} --seconds {self.seconds:g} --seed {self.seed}'
        )


class Soak:
    """One run in a folder of its own."""

    def __init__(self, options: Options, root: Path) -> None:
        self.options = options
        self.root = root
        self.chance = random.Random(options.seed)
        self.clock = SharedClock(root / 'clock')
        self.counts = dict.fromkeys(('kills', 'stops', 'steps', 'producers killed'), 0)
        self._context = multiprocessing.get_context('forkserver')
        self._context.set_forkserver_preload(['tests.crash.soak_parts'])
        self._serial = options.seed * 1_000_000
        self._relays = [
            SoakRelay(options.seed + number, pipelining=not number % 2)
            for number in range(options.processors)
        ]

    def run(self) -> dict[str, int]:
        """Raises AssertionError where a promise was not kept."""
        queue = make_queue(self.root, self.clock)
        queue.prepare()
        (self.root / 'ledger').touch()
        for relay in self._relays:
            relay.server.start()
        self._processors = [self._processor(n) for n in range(self.options.processors)]
        self._producers = [self._producer() for _ in range(self.options.producers)]
        try:
            self._trouble()
            self._calm(queue)
            for child in self._processors:
                _nothing_held(child.pid, queue.path)
                os.kill(child.pid, signal.SIGTERM)
            for child in self._processors:
                child.join(30)
                assert child.exitcode == 0, f'a processor ended with {child.exitcode}'
        finally:
            for child in (*self._processors, *self._producers):
                child.kill()
                child.join()
            for relay in self._relays:
                relay.server.stop()
            queue.close()
        audited = audit(self.root, [relay.server for relay in self._relays])
        return {**self.counts, **self._stalls(), **audited}

    def _stalls(self) -> dict[str, int]:
        """How often connections have stalled, and how many mails passed one at best."""
        relays = self._relays
        figures = {}
        for phase in STALLS:
            figures[f'stalls: {phase}'] = sum(each.stalls[phase] for each in relays)
            figures[f'beside: {phase}'] = max(each.beside[phase] for each in relays)
        figures['slow replies'] = sum(each.slow_replies for each in relays)
        return figures

    def _start(self, work: Callable[..., None], *arguments: object) -> Any:
        self._serial += 1
        child = self._context.Process(target=work, args=(self.root, *arguments, self._serial))
        child.start()
        return child

    def _processor(self, number: int) -> Any:
        return self._start(process, self._relays[number].server.url)

    def _producer(self) -> Any:
        return self._start(produce)

    def _trouble(self) -> None:
        """Until enough mail was sent: kill, stop, step the clock, at random moments."""
        end = time.monotonic() + self.options.seconds
        while _lines(self.root / 'ledger') < self.options.mails and time.monotonic() < end:
            time.sleep(self.chance.random() * 0.4)
            what = self.chance.random()
            if what < 0.3:
                self._kill_processor()
            elif what < 0.5:
                self._stop_processor()
            elif what < 0.8:
                self._step_clock()
            else:
                self._kill_producer()
        (self.root / 'enough').touch()

    def _kill_processor(self) -> None:
        number = self.chance.randrange(len(self._processors))
        self._processors[number].kill()
        self._processors[number].join()
        self._processors[number] = self._processor(number)
        self.counts['kills'] += 1

    def _stop_processor(self) -> None:
        """Another thread lets it go on, so that several may stand still at once."""
        child = self.chance.choice(self._processors)
        os.kill(child.pid, signal.SIGSTOP)
        timer = threading.Timer(self.chance.random() * 2, _go_on, [child])
        timer.daemon = True
        timer.start()
        self.counts['stops'] += 1

    def _step_clock(self) -> None:
        longest = self.chance.choice((2.0, 60.0, 86400.0, 10 * YEAR))
        self.clock.offset = (self.chance.random() * 2 - 1) * longest
        self.counts['steps'] += 1

    def _kill_producer(self) -> None:
        number = self.chance.randrange(len(self._producers))
        self._producers[number].kill()
        self._producers[number].join()
        self._producers[number] = self._producer()
        self.counts['producers killed'] += 1

    def _calm(self, queue: MaildirQueue) -> None:
        """Wait until producers have ended and the queue is empty. Mail sent while the clock was
        ahead is due then, so it ends ahead."""
        for child in self._producers:
            child.join(60)
            assert child.exitcode == 0, f'a producer ended with {child.exitcode}'
        for child in self._processors:
            _go_on(child)
        self.clock.offset = 11 * YEAR
        end = time.monotonic() + DRAIN
        while left := _waiting(queue):
            assert time.monotonic() < end, f'{len(left)} files do not leave: {left[:20]}'
            time.sleep(0.1)


def _go_on(child: Any) -> None:
    if child.is_alive():
        os.kill(child.pid, signal.SIGCONT)


def _nothing_held(pid: int, path: str) -> None:
    """No descriptor of a process is a mail's; there are no more than an idle processor needs: the
    folders of the queue, each once, and its FIFO."""
    names = []
    for link in Path(f'/proc/{pid}/fd').iterdir():
        try:
            names.append(os.readlink(link))
        except FileNotFoundError:
            continue
    held = Counter(name for name in names if name.startswith(path))
    idle = {path, *[f'{path}/{name}' for name in (*FOLDERS, 'reasons', 'trigger')]}
    assert held.keys() <= idle, f'a processor holds {held}'
    assert not held or max(held.values()) == 1, f'a processor holds {held}'
    assert len(names) < 60, f'a processor has {len(names)} descriptors: {names}'


def _waiting(queue: MaildirQueue) -> list[str]:
    return [
        f'{folder}/{name}'
        for folder in ('tmp', 'new', 'cur', 'done')
        for name in os.listdir(f'{queue.path}/{folder}')
    ]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b'\n')


def run(options: Options) -> dict[str, int]:
    """Run it in a folder that is kept where it fails; return the figures."""
    root = Path(tempfile.mkdtemp(prefix='pyramid_sendmail-soak-'))
    try:
        figures = Soak(options, root).run()
    except BaseException:
        print(f'what is left lies in {root}; to run it again: {options}', file=sys.stderr)
        raise
    shutil.rmtree(root)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.crash.soak', description=__doc__)
    defaults = Options()
    for name in ('mails', 'processors', 'producers', 'seconds', 'seed'):
        kind = type(getattr(defaults, name))
        parser.add_argument(f'--{name}', type=kind, default=getattr(defaults, name))
    options = replace(defaults, **vars(parser.parse_args(argv)))
    print(options)
    begun = time.monotonic()
    figures = run(options)
    for name, count in figures.items():
        print(f'{count:8} {name}')
    print(f'{time.monotonic() - begun:8.1f} seconds')
    return 0


if __name__ == '__main__':
    # Children find what they run under its own name, not as __main__.
    from tests.crash.soak import main as run_main

    sys.exit(run_main())
