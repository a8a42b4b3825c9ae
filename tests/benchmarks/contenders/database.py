"""The subscriber's work without any mail: ``database PATH JOURNAL STEPS``.

A row added and committed by SQLAlchemy's ORM and zope.sqlalchemy, one a transaction.
"""

from __future__ import annotations

import sys

from transaction import TransactionManager

from tests.benchmarks.contenders.stopwatch import Step, measure
from tests.benchmarks.database import SentRow, session_factory


def main(path: str, journal: str, steps: str) -> None:
    """Measure."""
    factory, register = session_factory(path, journal)

    def make() -> Step:
        manager = TransactionManager(explicit=True)

        def step() -> None:
            with manager:
                session = factory()
                register(session, transaction_manager=manager)
                session.add(SentRow(message_id='<1@web.example.org>', code=250))

        return step

    measure(make, steps=int(steps))


if __name__ == '__main__':
    main(*sys.argv[1:])
