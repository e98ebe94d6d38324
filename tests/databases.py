"""Databases that tests keep labels in: SQLite, and PostgreSQL where it is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def missing_postgresql() -> str:
    """Why no PostgreSQL server can be started here; empty when one can."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    return "" if _PROGRAMS else "PostgreSQL is not installed"


@contextmanager
def postgresql() -> Iterator[str]:
    """A server of its own on a Unix socket, and its URL. It must not run as root."""
    root = Path(tempfile.mkdtemp(prefix="pg"))
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    shutil.chown(root, user)

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [_PROGRAMS[-1] / program, "-D", root / "data", *arguments],
            check=True,
            user=user if os.getuid() == 0 else None,
            cwd=root,
            stdout=subprocess.DEVNULL,
        )

    try:
        run("initdb", "--auth=trust", "--username=labels", "--encoding=UTF8", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={root} -c fsync=off"
        run("pg_ctl", "--wait", "--silent", "-l", str(root / "log"), "-o", options, "start")
        try:
            yield f"postgresql://labels@/postgres?host={root}"
        finally:
            run("pg_ctl", "--wait", "--silent", "--mode=immediate", "stop")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def emptied(url: str) -> str:
    """The same PostgreSQL database without any table."""
    import sqlalchemy as sa

    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return url
