"""The demo's database: who signed up, and what subscribers wrote about the mail.

Two processes write to it, the application and the queue processor with its subscribers; SQLite
makes one wait for the other.
"""

from __future__ import annotations

from pathlib import Path

import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.request import Request
from sqlalchemy import Engine, engine_from_config
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.schema import CreateTable

__all__ = ['LogEntry', 'SignUp']


class Base(DeclarativeBase):
    """The tables."""


class SignUp(Base):
    """A person who pressed the button, and whose transaction committed."""

    __tablename__ = 'signup'

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    name: Mapped[str]
    email: Mapped[str]
    message_id: Mapped[str]


class LogEntry(Base):
    """What a subscriber wrote about an event."""

    __tablename__ = 'log'
    # The page looks for ids that are greater than those it has shown.
    __table_args__ = ({'sqlite_autoincrement': True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    kind: Mapped[str]
    event_id: Mapped[str] = mapped_column(unique=True)
    """An event may be dispatched again, with the same id."""
    message_id: Mapped[str]
    queued_at: Mapped[float]
    recipients: Mapped[str]
    subject: Mapped[str]
    tag: Mapped[str | None]
    attempt: Mapped[int]
    reply: Mapped[str]
    reason: Mapped[str]
    retry_at: Mapped[float | None]


def includeme(config: Configurator) -> None:
    """Give requests ``request.dbsession``, joined to ``request.tm``; make the tables."""
    settings = config.registry.settings
    database = make_url(settings['sqlalchemy.url']).database
    if database:
        Path(database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = engine_from_config(settings, 'sqlalchemy.')
    _create(engine)
    factory = sessionmaker(engine)

    def dbsession(request: Request) -> Session:
        session = factory()
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    config.add_request_method(dbsession, reify=True)


def _create(engine: Engine) -> None:
    """Create the tables. Both processes do this when they start, perhaps at the same moment."""
    with engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
