"""Read the pages of a damaged database file without SQLite (https://sqlite.org/fileformat2.html)."""

import struct
from collections.abc import Iterator
from itertools import product
from mmap import mmap
from typing import Any

TABLE, INDEX = (5, 13), (2, 10)  # the kinds of a tree's pages: interior, leaf
_MAGIC = b"SQLite format 3\0"
_LEAVES = (10, 13)
_SIZES = tuple(2**power for power in range(9, 17))
_BYTES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)  # of a value, by its serial type
_UNREADABLE = (ValueError, IndexError, struct.error)

Entry = tuple[int, tuple[Any, ...]]  # the rowid, 0 in an index, and the values


class Pages:
    """Read the trees of a database file; ``seen`` holds the pages that have been reached."""

    def __init__(self, data: mmap, size: int, reserved: int = 0) -> None:
        self.data, self.size, self.usable = data, size, size - reserved  # bytes of a page
        self.count = len(data) // size
        self.seen: set[int] = set()

    def header(self, application_id: int, user_version: int) -> bytes:
        """Return the first 100 bytes of a database in WAL mode that has these pages."""
        numbers = (1, self.count, 0, 0, 1, 4, 0, 0, 1, user_version, 0, application_id)
        sizes = (self.size % 65535, 2, 2, self.size - self.usable, 64, 32, 32)
        return struct.pack(">16sH6B12I20xII", _MAGIC, *sizes, *numbers, 1, 3_040_000)

    def _page(self, number: int) -> bytes:
        if not 1 <= number <= self.count:
            raise ValueError(f"page {number} is missing")
        self.seen.add(number)
        return self.data[(number - 1) * self.size : number * self.size]

    def kind(self, number: int) -> int:
        """Return the first byte of a page's tree header, 0 if the file has no such page."""
        at = (number - 1) * self.size + (100 if number == 1 else 0)
        return self.data[at] if 1 <= number <= self.count else 0

    def walk(self, root: int, kinds: tuple[int, int], faults: list[str]) -> Iterator[Entry]:
        """Yield each readable entry below ``root``; add the unreadable ones to ``faults``."""
        waiting, done = [root], set[int]()
        while waiting:
            number = waiting.pop()
            if number in done:
                faults.append(f"page {number} is used twice")
                continue
            done.add(number)
            yield from self.entries(number, kinds, faults, waiting)

    def entries(self, number: int, kinds: tuple[int, int], faults: list[str], below: list[int]) -> Iterator[Entry]:
        """Yield the entries of one page, and add the pages below it to ``below``."""
        try:
            page, start = self._page(number), 100 if number == 1 else 0
            kind, count = page[start], int.from_bytes(page[start + 3 : start + 5], "big")
            if kind not in kinds:
                raise ValueError(f"page {number} has the wrong type for its tree")
            first = start + (8 if kind in _LEAVES else 12)
            places = struct.unpack_from(f">{count}H", page, first)
            children = [] if kind in _LEAVES else [int.from_bytes(page[start + 8 : start + 12], "big")]
        except _UNREADABLE as error:
            faults.append(str(error))
            return
        for place in places:
            try:
                at = place
                if not first + 2 * count <= place < self.usable:
                    raise ValueError("an entry starts outside of its page")
                if kind not in _LEAVES:
                    children.append(int.from_bytes(page[at : at + 4], "big"))
                    at += 4
                if kind != 5:
                    length, at = _varint(page, at)
                    rowid, at = _varint(page, at) if kind == 13 else (0, at)
                    signed = rowid - 2**64 if rowid >= 2**63 else rowid
                    yield signed, self._values(self._payload(page, at, length, kind))
            except _UNREADABLE as error:
                faults.append(f"page {number}: {error}")
        below += children

    def _payload(self, page: bytes, at: int, length: int, kind: int) -> bytes:
        """Return the payload of an entry, overflow pages included."""
        usable = self.usable
        least = (usable - 12) * 32 // 255 - 23
        most = usable - 35 if kind == 13 else (usable - 12) * 64 // 255 - 23
        local = length
        if length > most:
            local = least + (length - least) % (usable - 4)
            local = local if local <= most else least
        if length > len(self.data) or at + local + (4 if local < length else 0) > usable:
            raise ValueError("an entry ends beyond its page")
        parts, left = [page[at : at + local]], length - local
        follow = int.from_bytes(page[at + local : at + local + 4], "big")
        while left:
            more = self._page(follow)
            if not any(more):  # zeros after the end of a chain would be taken for content
                raise ValueError(f"the overflow page {follow} is empty")
            parts.append(more[4 : 4 + min(left, usable - 4)])
            left -= len(parts[-1])
            follow = int.from_bytes(more[:4], "big")
            if (follow == 0) != (left == 0):
                raise ValueError("its overflow chain has the wrong length")
        return b"".join(parts)

    def _values(self, payload: bytes) -> tuple[Any, ...]:
        end, at = _varint(payload, 0)
        body, values = end, list[Any]()
        while at < end:
            kind, at = _varint(payload, at)
            length = (kind - 12) // 2 if kind > 11 else _BYTES[kind]
            part = payload[body : body + length]
            body += length
            if kind > 11:
                values.append(part.decode(errors="surrogateescape") if kind % 2 else part)
            elif kind in (0, 7):
                values.append(struct.unpack(">d", part)[0] if kind else None)
            else:
                values.append(kind - 8 if kind > 7 else int.from_bytes(part, "big", signed=True))
        if (at, body) != (end, len(payload)):
            raise ValueError("an entry is not a valid record")
        return tuple(values)

    def schema(self, faults: list[str]) -> list[tuple[Any, ...]]:
        """Return type, name, table, root page and SQL of each readable row of ``sqlite_schema``."""
        found = [row for _, row in self.walk(1, TABLE, faults) if _is_schema_row(row)]
        reached = set(self.seen)
        for number in self.orphans() if faults else ():
            rows = [row for _, row in self.entries(number, TABLE, [], []) if _is_schema_row(row)]
            reached |= {number} if rows else set()
            found += rows
        self.seen = reached  # the other orphans may hold rows of tables
        return found

    def orphans(self) -> list[int]:
        """Return the leaf pages of tables that no tree reaches and no freelist names."""
        free = set[int]()
        rest = [number for number in range(2, self.count + 1) if number not in self.seen]
        for number in rest:
            at = (number - 1) * self.size
            follow, count = struct.unpack_from(">2I", self.data, at)
            if follow <= self.count and 0 < count <= self.usable // 4 - 2:
                listed = struct.unpack_from(f">{count}I", self.data, at + 8)
                if all(1 < page <= self.count and page not in self.seen for page in listed):
                    free.update(listed)
        return [number for number in rest if number not in free and self.kind(number) == 13]


def _is_schema_row(row: tuple[Any, ...]) -> bool:
    kinds = (*map(type, row),)
    return len(row) == 5 and kinds[:4] == (str, str, str, int) and row[0] in ("table", "index", "view", "trigger")


def read_pages(data: mmap) -> Pages:
    """Return the pages of a file in the form that reads most of its schema; the form in the header is tried first."""
    stated = int.from_bytes(data[16:18], "big")
    stated = 65536 if stated == 1 else stated if stated in _SIZES else 4096
    best, most = Pages(data, stated), 0
    for form in product((stated, *_SIZES), (data[20], 0)):  # the size of a page, and of its reserved end
        pages, faults = Pages(data, *form), list[str]()
        rows = [row for _, row in pages.walk(1, TABLE, faults) if _is_schema_row(row) and row[3]]
        fits = sum(pages.kind(root) in (TABLE if kind == "table" else INDEX) for kind, _, _, root, _ in rows)
        if fits > most:
            best, most = Pages(data, *form), fits
        if rows and fits == len(rows) and not faults:
            break
    return best


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(at, at + 8):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    return value << 8 | data[at + 8], at + 9
