"""Real databases: SQLite, ZODB, and a PostgreSQL server of the test run's own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool
from ZODB import DB
from ZODB.FileStorage import FileStorage

from tests.support.ports import free_port

__all__ = ['make_notes', 'notes', 'postgresql', 'postgresql_url', 'sqlite', 'zodb']

INSTALL = 'no PostgreSQL server here: apt-get install postgresql'

METADATA = sqlalchemy.MetaData()

NOTES = sqlalchemy.Table(
    'notes',
    METADATA,
    sqlalchemy.Column('id', sqlalchemy.Integer, primary_key=True),
    sqlalchemy.Column('text', sqlalchemy.Text, nullable=False),
)


def make_notes(engine: sqlalchemy.Engine) -> None:
    """Have an empty table of notes."""
    METADATA.drop_all(engine)
    METADATA.create_all(engine)


def notes(engine: sqlalchemy.Engine) -> list[str]:
    """What is committed, in order."""
    with engine.connect() as connection:
        query = sqlalchemy.select(NOTES.c.text).order_by(NOTES.c.id)
        return list(connection.execute(query).scalars())


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[sqlalchemy.Engine]:
    """A database in a file, with a table of notes."""
    engine = sqlalchemy.create_engine(f'sqlite:///{tmp_path}/notes.sqlite', poolclass=NullPool)
    make_notes(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def zodb(tmp_path: Path) -> Iterator[DB]:
    """A database in a FileStorage."""
    database = DB(FileStorage(str(tmp_path / 'Data.fs')))
    yield database
    database.close()


@pytest.fixture
def postgresql(postgresql_url: str) -> Iterator[sqlalchemy.Engine]:
    """A database that can prepare transactions, with an empty table of notes."""
    engine = sqlalchemy.create_engine(postgresql_url, poolclass=NullPool)
    make_notes(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope='session')
def postgresql_url() -> Iterator[str]:
    """A server on loopback, in a folder and on a port of its own."""
    programs = _programs()
    if programs is None:
        pytest.skip(INSTALL)
    root = Path(tempfile.mkdtemp(prefix='pyramid_sendmail-postgresql-'))
    server: subprocess.Popen[bytes] | None = None
    try:
        user = _server_user(root)
        with open(root / 'initdb.log', 'wb') as log:
            command = [programs / 'initdb', '-D', root / 'data', '-A', 'trust', '-U', 'postgres']
            command += ['-E', 'UTF8', '--locale=C.UTF-8', '--no-sync']
            subprocess.run(command, cwd=root, stdout=log, stderr=log, check=True, **user)
        port = free_port()
        with open(root / 'server.log', 'wb') as log:
            command = [programs / 'postgres', '-D', root / 'data', '-p', str(port), '-k', root]
            command += ['-h', '127.0.0.1', '-c', 'fsync=off', '-c', 'max_prepared_transactions=20']
            server = subprocess.Popen(command, cwd=root, stdout=log, stderr=log, **user)
        url = f'postgresql+psycopg://postgres@127.0.0.1:{port}/postgres'
        _wait_for(url, server, root / 'server.log')
        yield url
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            server.wait(30)
        shutil.rmtree(root, ignore_errors=True)


def _programs() -> Path | None:
    """The folder of initdb and postgres, of the newest version that is installed."""
    versions = Path('/usr/lib/postgresql').glob('*/bin/initdb')
    newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    on_path = shutil.which('initdb')
    if newest is not None:
        return newest.parent
    return Path(on_path).resolve().parent if on_path else None


def _server_user(root: Path) -> dict[str, Any]:
    """The server refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam('postgres')
    except KeyError:
        pytest.skip(INSTALL)
    os.chown(root, entry.pw_uid, entry.pw_gid)
    return {'user': entry.pw_uid, 'group': entry.pw_gid, 'extra_groups': []}


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    engine = sqlalchemy.create_engine(url, poolclass=NullPool)
    end = time.monotonic() + 30
    while True:
        try:
            engine.connect().close()
        except sqlalchemy.exc.OperationalError:
            if server.poll() is not None or time.monotonic() > end:
                raise AssertionError(f'PostgreSQL does not start:\n{log.read_text()}') from None
            time.sleep(0.05)
        else:
            return
