"""Full-text search over the current texts: FTS5 on SQLite, tsvector on PostgreSQL.

A query is plain words; what is no letter, digit or underscore only separates them, so any input is
safe. A text is found by any of the words, in any of their forms (``dogs`` finds ``dog``); texts
with more and rarer ones of them rank higher. What the ranks are is the database's own (BM25;
``ts_rank_cd``): they order the hits of one query and mean nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

_WORD = re.compile(r"\w+")
_MOST_WORDS = 64

_CREATE = {
    "sqlite": [
        "CREATE VIRTUAL TABLE unit_words USING fts5(text, tokenize = 'porter unicode61')",
    ],
    "postgresql": [
        "CREATE TABLE unit_words (rowid integer PRIMARY KEY, text tsvector NOT NULL)",
        "CREATE INDEX unit_words_text ON unit_words USING gin (text)",
    ],
}
_INSERT = {
    "sqlite": "INSERT INTO unit_words (rowid, text) VALUES (:unit, :text)",
    "postgresql": (
        "INSERT INTO unit_words (rowid, text) VALUES (:unit, to_tsvector('english', :text))"
    ),
}
_MATCHES = {
    "sqlite": "SELECT rowid AS unit, -bm25(unit_words) AS rank FROM unit_words "
    "WHERE unit_words MATCH :query",
    "postgresql": "SELECT rowid AS unit, ts_rank_cd(text, query) AS rank "
    "FROM unit_words, to_tsquery('english', :query) AS query WHERE text @@ query",
}


def create_full_text(connection: Connection) -> None:
    """Make the index, empty."""
    for statement in _CREATE[connection.dialect.name]:
        connection.exec_driver_sql(statement)


def index_texts(connection: Connection, texts: Mapping[int, str | None]) -> None:
    """Make these texts, by unit, what units are found by; None: by nothing."""
    rows = [{"unit": unit, "text": text} for unit, text in texts.items()]
    connection.execute(sa.text("DELETE FROM unit_words WHERE rowid = :unit"), rows)
    written = [row for row in rows if row["text"] is not None]
    if written:
        connection.execute(sa.text(_INSERT[connection.dialect.name]), written)


def words(query: str) -> list[str]:
    """The words of a query, at most 64, each once."""
    return list(dict.fromkeys(_WORD.findall(query)))[:_MOST_WORDS]


def matches(dialect: str, wanted: Sequence[str]) -> sa.TextualSelect:
    """A select of (unit, rank) over the texts that hold one of the words, higher ranks first."""
    if dialect == "sqlite":
        query = " OR ".join(f'"{word}"' for word in wanted)
    else:
        query = " | ".join(f"'{word}'" for word in wanted)
    found = sa.text(_MATCHES[dialect]).bindparams(query=query)
    return found.columns(unit=sa.Integer, rank=sa.Double)
