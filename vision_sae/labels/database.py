"""The database of labels and label jobs: tables, version and transactions.

SQLite is the default; a URL selects PostgreSQL. Both admit one writer at a time: ``BEGIN
IMMEDIATE`` on SQLite, an advisory lock on PostgreSQL. A writing transaction takes a few
milliseconds for dozens of labels, which take seconds to make. Because writers do not overlap,
sequence numbers become visible in order: a reader that sees number 7 has seen all earlier numbers.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from vision_sae.errors import (
    CorruptArtifactError,
    InvalidInputError,
    MismatchError,
    MissingDependencyError,
    StorageFullError,
)

FORMAT = "vision_sae.labels"
VERSION = 1
MEMORY = "sqlite://"
"""The URL of a store that lives as long as its object."""

_BUSY_SECONDS = 60
_WRITER = 0x7650_5AE1
"""Key of the advisory lock that writers on PostgreSQL hold."""

Clock = Callable[[], float]
"""Seconds since 1970, UTC."""

tables = sa.MetaData()

about = Table(
    "about",
    tables,
    Column("key", sa.String(64), primary_key=True),
    Column("value", sa.String(256), nullable=False),
)

units = Table(
    "units",
    tables,
    Column("id", sa.Integer, primary_key=True),
    Column("parent", sa.String(512), nullable=False),
    Column("number", sa.Integer, nullable=False),
    Column("current", sa.Integer, nullable=True),  # descriptions.id; a cycle, so no foreign key
    sa.UniqueConstraint("parent", "number"),
)

descriptions = Table(
    "descriptions",
    tables,
    Column("id", sa.Integer, primary_key=True),
    Column("unit", ForeignKey("units.id"), nullable=False),
    Column("text", sa.Text, nullable=True),
    Column("abstained", sa.Text, nullable=False),
    Column("origin", sa.String(16), nullable=False),
    Column("describer", sa.String(64), nullable=False),
    Column("describer_version", sa.Integer, nullable=False),
    Column("author", sa.Text, nullable=False),
    Column("scores", sa.JSON, nullable=False),
    Column("evidence", sa.JSON, nullable=False),
    Column("details", sa.JSON, nullable=False),
    Column("candidates", sa.JSON, nullable=False),
    Column("identity", sa.String(64), nullable=False),
    Column("digest", sa.String(64), nullable=False),
    Column("etag", sa.String(64), nullable=False),
    Column("created", sa.Double, nullable=False),
    Index("descriptions_of_unit", "unit", "id"),
    sqlite_autoincrement=True,
)

jobs = Table(
    "jobs",
    tables,
    Column("id", sa.Integer, primary_key=True),
    Column("name", sa.String(64), nullable=False, unique=True),
    Column("request_id", sa.String(128), nullable=True, unique=True),
    Column("target", sa.JSON, nullable=False),
    Column("config", sa.JSON, nullable=False),
    Column("describer", sa.String(64), nullable=False),
    Column("creator", sa.Text, nullable=False),
    Column("max_units", sa.Integer, nullable=True),
    Column("max_seconds", sa.Double, nullable=True),
    Column("state", sa.String(16), nullable=False),
    Column("error", sa.JSON, nullable=False),
    Column("total", sa.Integer, nullable=False),
    Column("labelled", sa.Integer, nullable=False),
    Column("abstained", sa.Integer, nullable=False),
    Column("failed", sa.Integer, nullable=False),
    Column("used", sa.Double, nullable=False),
    Column("created", sa.Double, nullable=False),
    Column("started", sa.Double, nullable=True),
    Column("ended", sa.Double, nullable=True),
    sqlite_autoincrement=True,
)

leases = Table(
    "leases",
    tables,
    Column("id", sa.Integer, primary_key=True),  # never reused: the id is the fencing token
    Column("job", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("worker", sa.String(256), nullable=False),
    Column("expires", sa.Double, nullable=False),
    Column("accounted", sa.Double, nullable=False),
    sqlite_autoincrement=True,
)

job_units = Table(
    "job_units",
    tables,
    Column("job", ForeignKey("jobs.id"), primary_key=True),
    Column("position", sa.Integer, primary_key=True, autoincrement=False),
    Column("parent", sa.String(512), nullable=False),
    Column("number", sa.Integer, nullable=False),
    Column("lease", sa.Integer, nullable=True),
    Column("sequence", sa.Integer, nullable=True),
    Column("description", ForeignKey("descriptions.id"), nullable=True),
    Column("error", sa.JSON, nullable=True),
    Column("finished", sa.Double, nullable=True),
    sa.UniqueConstraint("job", "sequence"),
    Index("units_of_lease", "lease"),
    Index("units_waiting", "job", "sequence", "lease", "position"),
)


class Database:
    """An open database of labels; a missing database is created.

    Threads may share the object. Processes may share the database, if it is a file or a server, but
    each process must open its own object.
    """

    def __init__(self, location: str | Path, *, clock: Clock = time.time) -> None:
        """Open by path, or by URL (``sqlite:///labels.sqlite``, ``postgresql://host/db``).

        Raises `CorruptArtifactError` for a file that is not a database of labels, and
        `MismatchError` for another version of the format.
        """
        self.clock = clock
        _refuse_others(_url(location))
        self.engine = _engine(location)
        self.in_memory = _in_memory(self.engine.url)
        self._only = threading.RLock() if self.in_memory else None
        try:
            with self.writing() as connection:
                _make_or_check(connection, _shown(self.engine.url))
        except OperationalError as error:
            raise InvalidInputError(
                f"cannot open the labels at {_shown(self.engine.url)}: {error.orig}",
                field="labels",
            ) from error

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self.engine.dialect.name

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A reading transaction, which sees one snapshot of the database."""
        with (
            self._translated_errors(),
            self._only or nullcontext(),
            self.engine.connect() as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """The only writing transaction of the moment; it commits as a whole or not at all."""
        with self._translated_errors(), self._only or nullcontext(), self.engine.connect() as plain:
            connection = plain.execution_options(vision_sae_writes=True)
            with connection.begin():
                yield connection

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translate errors of a damaged file or a full disk into errors of the catalogue."""
        where = _shown(self.engine.url)
        try:
            yield
        except DatabaseError as error:
            code = getattr(error.orig, "sqlite_errorname", "")
            if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                raise CorruptArtifactError(
                    f"{where} is not a database of labels, or damaged ({error.orig}); name another "
                    "file, or restore it from a copy"
                ) from error
            if code == "SQLITE_FULL" or code.startswith("SQLITE_IOERR"):
                raise StorageFullError(
                    f"{where} cannot be written ({error.orig}); free some room on its disk, and "
                    "run the command again"
                ) from error
            if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
                raise InvalidInputError(
                    f"cannot open the labels at {where}: {error.orig}; name another place, or "
                    "change its permissions",
                    field="labels",
                ) from error
            raise

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _shown(url: URL) -> str:
    """The name of a database in messages, without its password."""
    return str(url.database or url) if url.drivername == "sqlite" else url.render_as_string()


def _in_memory(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def _url(location: str | Path) -> URL:
    text = os.fspath(location)
    if "://" not in text:
        return URL.create("sqlite", database=text)
    try:
        url = sa.make_url(text)
    except ArgumentError as error:
        raise InvalidInputError(f"{text!r} is no database URL", field="labels") from error
    if url.drivername == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    return url


def _refuse_others(url: URL) -> None:
    """Refuse a SQLite file of another program before opening it for writing, which would change
    it."""
    if url.get_backend_name() != "sqlite" or not Path(url.database or "").is_file():
        return
    address = f"{Path(str(url.database)).resolve().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error:  # opening the file reports the error
        return
    if names and about.name not in names:
        raise CorruptArtifactError(
            f"{_shown(url)} is a database of something else, not of labels; name another file"
        )


def _engine(location: str | Path) -> Engine:
    url = _url(location)
    dialect = url.get_backend_name()
    if dialect not in ("sqlite", "postgresql"):
        raise InvalidInputError(
            f"labels cannot be kept in {dialect}; name a file, or a postgresql:// URL",
            field="labels",
        )
    try:
        engine = sa.create_engine(url, **_options(url))
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise MissingDependencyError(
            f"labels at {_shown(url)} need a driver: pip install 'vision-sae[postgres]'",
            field="labels",
        ) from error
    if dialect == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
    begin = {"sqlite": _begin_sqlite, "postgresql": _begin_postgresql}[dialect]
    sa.event.listen(engine, "begin", begin)
    return engine


def _options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() != "sqlite":
        # Every reading transaction has its own snapshot, as on SQLite.
        return {"isolation_level": "REPEATABLE READ", "pool_pre_ping": True}
    if _in_memory(url):
        return {
            "poolclass": sa.pool.StaticPool,
            "connect_args": {"check_same_thread": False},
        }
    return {"connect_args": {"timeout": _BUSY_SECONDS}}


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions itself
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("vision_sae_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get("vision_sae_writes"):
        # The lock must come before the snapshot, which REPEATABLE READ takes at its first query.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER})")


def _make_or_check(connection: Connection, location: str) -> None:
    names = set(sa.inspect(connection).get_table_names())
    if not names:
        from vision_sae.labels.full_text import create_full_text

        tables.create_all(connection)
        create_full_text(connection)
        rows = [{"key": "format", "value": FORMAT}, {"key": "version", "value": str(VERSION)}]
        connection.execute(about.insert(), rows)
        return
    entries = (
        dict(connection.execute(sa.select(about.c.key, about.c.value)).tuples().all())
        if about.name in names
        else {}
    )
    if entries.get("format") != FORMAT:
        raise CorruptArtifactError(f"{location} is a database of something else, not of labels")
    if entries.get("version") != str(VERSION):
        raise MismatchError(
            f"{location} holds labels of version {entries.get('version')}, this code reads version "
            f"{VERSION}; use the release that wrote it",
            field="labels",
        )
