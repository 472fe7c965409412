"""The tables of the store."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

sessions = Table(
    "chat_sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("desk", String(16), nullable=False),
    Column("seq", Integer, nullable=False),
    Column("rev", Integer, nullable=False),
    Column("created", Float(53), nullable=False),
    Column("active", Float(53), nullable=False),
    Column("waiting_since", Float(53)),
    Column("lease_owner", String(128)),
    Column("lease_until", Float(53), nullable=False),
    Index("chat_sessions_active", "active"),
    sqlite_with_rowid=False,
)

owed = Column("owed", Boolean, nullable=False)

messages = Table(
    "chat_messages",
    metadata,
    Column("session", String(64), ForeignKey("chat_sessions.id"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("origin", String(16), nullable=False),
    Column("text", Text, nullable=False),
    Column("at", Float(53), nullable=False),
    Column("client_id", String(64)),
    Column("reply_to", Integer),
    owed,
    UniqueConstraint("session", "origin", "client_id"),
    UniqueConstraint("session", "reply_to"),
    Index("chat_messages_owed", "session", sqlite_where=owed.is_(True)),
    sqlite_with_rowid=False,
)
