"""What the tables' modules ask of the store that serves them."""

import sqlite3
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from abathur_nb.guarded import Connection
from abathur_nb.sql import Parameters

__all__ = ["Serving"]


class Serving(Protocol):
    """Run the named statements of ``sql/queries.sql``; implemented by ``Database``."""

    async def fetch(self, name: str, parameters: Parameters) -> list[sqlite3.Row]:
        """Run a query on a reader and return its rows. Read-only."""

    def write(self) -> AbstractAsyncContextManager[Connection]:
        """Lend the writer inside ``BEGIN IMMEDIATE`` … ``COMMIT``."""

    def changing(self) -> AbstractAsyncContextManager[Connection]:
        """Lend the writer, whose transaction begins with the first change."""

    async def change(
        self, writer: Connection, name: str, parameters: Parameters, *, last: bool = False
    ) -> list[sqlite3.Row]:
        """Run a statement on the lent writer, commit if it is the ``last``, and return its rows."""

    async def change_many(self, writer: Connection, name: str, rows: Iterable[Parameters]) -> None:
        """Run a statement on the lent writer once for each of ``rows``."""
