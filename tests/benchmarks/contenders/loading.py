"""The application of an .ini file is loaded, and no more: ``loading INI``.

``loaded``: when it was, by the clock that all processes share.
"""

from __future__ import annotations

import sys
import time

from pyramid.paster import get_app, setup_logging

from tests.benchmarks.contenders.stopwatch import report

if __name__ == '__main__':
    setup_logging(sys.argv[1])
    get_app(sys.argv[1])
    report(loaded=time.perf_counter())
