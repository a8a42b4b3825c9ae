"""The crash matrix and the schedules, walked in a process of its own.

Each case is a fork, and what a fork costs grows with the process that makes it: that of pytest is
several times as large, and there are thousands of cases.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.crash.bench import Bench, in_child
from tests.crash.operations import OPERATIONS, Operation
from tests.crash.place import Lines
from tests.crash.schedules import Log, Walk
from tests.crash.schedules import walk as walk_schedule
from tests.crash.syscalls import STOPPED, WRITES, stopping

__all__ = ['Walk', 'Walker']


class Walker:
    """The process, and the one way to ask it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-m', __name__],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def walk(
        self, operation: Operation, folder: Path, *, schedule: str = '', seed: int = 0
    ) -> Walk:
        """Stop the operation at each of its calls, in this folder; or play a schedule there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f'{json.dumps([operation.name, str(folder), schedule, seed])}\n')
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, 'the process that walks has died'
        return Walk(**json.loads(answer))

    def close(self) -> None:
        """It ends when nothing more is asked."""
        self._process.communicate()
        assert self._process.returncode == 0


def walk(operation: Operation, folder: Path, log: Lines) -> Walk:
    """Stop the operation in place of each call, and in the middle of each write; look after each
    at what the next process makes of it."""
    cases = 0
    words: Counter[str] = Counter()
    for number, variant in enumerate(operation.variants):
        bench = Bench(folder / str(number), operation, variant)
        names = bench.trace()
        points = [(at, False) for at in range(1, len(names) + 2)]
        points += [(at, True) for at, name in enumerate(names, 1) if name in WRITES]
        for at, torn in points:
            try:
                place = bench.lay()
                status = in_child(place, operation, stopping(at, torn=torn))
                assert status == (STOPPED if at <= len(names) else 0), status
                words[place.verify(log, torn=torn)] += 1
                operation.check(place)
            except Exception:  # noqa: BLE001
                case = f'{variant}, stopped at {at}, torn: {torn}: {names[at - 2 : at]}'
                return Walk(cases, dict(words), f'{case}\n{traceback.format_exc()}')
            cases += 1
    return Walk(cases, dict(words))


def main() -> None:
    """Read an operation, a folder, a schedule and a seed a line, write a walk."""
    # As in setup.cfg; what others say when they are imported is not ours.
    warnings.simplefilter('error')
    logger = logging.getLogger('pyramid_sendmail')
    logger.propagate = False
    operations = {operation.name: operation for operation in OPERATIONS}
    for line in sys.stdin:
        name, folder, schedule, seed = json.loads(line)
        operation, path = operations[name], Path(folder)
        log: Any = Log(f'{folder}/log') if schedule else Lines()
        logger.addHandler(log)
        if schedule:
            found = walk_schedule(operation, path, log, schedule, seed)
        else:
            found = walk(operation, path, log)
        logger.removeHandler(log)
        log.close()
        print(json.dumps(asdict(found)), flush=True)


if __name__ == '__main__':
    main()
