"""The database of the application: one table, in which a row is written for each mail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zope.sqlalchemy
from sqlalchemy import create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

__all__ = ['SentRow', 'session_factory']


class Base(DeclarativeBase):
    """The tables."""


class SentRow(Base):
    """A mail whose sent event reached the subscriber."""

    __tablename__ = 'recorded'

    id: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[str]
    code: Mapped[int]


def session_factory(path: str, journal: str) -> tuple[Callable[[], Any], Callable[..., Any]]:
    """What makes sessions, and what joins them to a transaction.

    ``journal`` is ``wal``, the way to run SQLite where two processes write (no fsync a commit), or
    ``delete``, SQLite as it comes (several fsyncs a commit).
    """
    engine = create_engine(f'sqlite:///{path}', connect_args={'timeout': 30})

    @event.listens_for(engine, 'connect')
    def connected(connection: Any, _: Any) -> None:
        connection.execute(f'PRAGMA journal_mode = {journal}')
        if journal == 'wal':
            connection.execute('PRAGMA synchronous = NORMAL')

    Base.metadata.create_all(engine)
    return sessionmaker(engine), zope.sqlalchemy.register
