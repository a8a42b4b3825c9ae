"""What a mail package adds to the start of a web process: ``importing PACKAGE``.

Pyramid, pyramid_tm and transaction are imported before, as an application without mail has them.
``seconds``: its import; ``included``: that, and ``config.include``.
"""

from __future__ import annotations

import importlib
import sys
import time

import pyramid_tm
import transaction
from pyramid.config import Configurator
from pyramid.request import Request

from tests.benchmarks.contenders.stopwatch import peak_memory, report


def main(package: str) -> None:
    """Measure."""
    assert all((pyramid_tm, transaction, Request))
    config = Configurator(settings={})
    config.include('pyramid_tm')
    config.commit()
    modules = len(sys.modules)
    start = time.perf_counter()
    importlib.import_module(package)
    imported = time.perf_counter()
    config.include(package)
    config.commit()
    included = time.perf_counter()
    report(
        seconds=imported - start,
        included=included - start,
        modules=len(sys.modules) - modules,
        memory=peak_memory(),
    )


if __name__ == '__main__':
    main(*sys.argv[1:])
