"""Full-text search over the current texts: FTS5 on SQLite, tsvector on PostgreSQL.

A query is plain words. All characters except letters, digits and underscores separate words, so any
input is safe. A text matches if it has any of the words in any form (``dogs`` finds ``dog``). Texts
with more of the words, and with rarer ones, rank higher. The database computes the ranks (BM25;
``ts_rank_cd``); ranks order the hits of one query and cannot be compared between queries.
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
    """Create the empty index."""
    for statement in _CREATE[connection.dialect.name]:
        connection.exec_driver_sql(statement)


def index_texts(connection: Connection, texts: Mapping[int, str | None]) -> None:
    """Replace the indexed texts of units, {unit id: text}; None removes a unit from the index."""
    rows = [{"unit": unit, "text": text} for unit, text in texts.items()]
    connection.execute(sa.text("DELETE FROM unit_words WHERE rowid = :unit"), rows)
    written = [row for row in rows if row["text"] is not None]
    if written:
        connection.execute(sa.text(_INSERT[connection.dialect.name]), written)


def words(query: str) -> list[str]:
    """The distinct words of a query, at most 64."""
    return list(dict.fromkeys(_WORD.findall(query)))[:_MOST_WORDS]


def matches(dialect: str, terms: Sequence[str]) -> sa.TextualSelect:
    """A select of (unit, rank) over the texts with at least one of the words."""
    if dialect == "sqlite":
        query = " OR ".join(f'"{word}"' for word in terms)
    else:
        query = " | ".join(f"'{word}'" for word in terms)
    select = sa.text(_MATCHES[dialect]).bindparams(query=query)
    return select.columns(unit=sa.Integer, rank=sa.Double)
