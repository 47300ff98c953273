"""Stored names that can be taken for others: not in NFC, the form in which names are written, or alike."""

import re
from unicodedata import is_normalized, normalize

import aiosqlite

from abathur_nb.report import Check
from abathur_nb.sql import load_queries
from abathur_nb.wording import IGNORABLE

__all__ = ["look_of", "names_check"]

_LOOKED_AT = 10_000  # names of each column, of those that are not ASCII
_NAMED = 20
_IGNORABLE = re.compile(f"[{IGNORABLE}]")
# Cyrillic and Greek letters that have the shape of a Latin one.
_SHAPES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u0408"
    "\u0405\u03bf\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
    "aeopcyxijsABEKMHOPCTXIJSoABEZHIKMNOPTYX",
)


def look_of(name: str) -> str:
    """Return what two names that look alike have in common.

    This is the name in NFKC, in which a wide letter or a ligature is an ordinary one, without joiners and other signs
    that show nothing, and with the Latin letter for each of its shape. Case counts.
    """
    return _IGNORABLE.sub("", normalize("NFKC", name)).translate(_SHAPES)


async def names_check(conn: aiosqlite.Connection) -> Check:
    """Warn of names that are not in NFC, and of those that look alike within one column, keys within one namespace.

    Read-only. Looks at up to 10,000 names of each column that are not ASCII, and at ASCII ones that look like them.
    """
    queries = load_queries("inspect.sql")
    looks: dict[tuple[str, str, str], set[str]] = {}
    names = [tuple(row) for row in await conn.execute_fetchall(queries["unusual_names"].sql, {"limit": _LOOKED_AT})]
    for kind, scope, name in names:
        looks.setdefault((kind, scope, look_of(name)), set()).add(name)
    faults = [f"{kind} {name!a} is not in NFC" for kind, _, name in names if not is_normalized("NFC", name)]
    for (kind, scope, look), found in looks.items():
        if look.isascii():
            given = {"kind": kind, "scope": scope, "name": look}
            ((stored,),) = await conn.execute_fetchall(queries["name_is_stored"].sql, given)
            found.update({look} if stored else ())
        if len(found) > 1:
            faults.append(f"{kind} {' and '.join(map(ascii, sorted(found)[:_NAMED]))} look alike")
    return Check.that(
        "names",
        not faults,
        expected="names in NFC, and no two that look alike",
        observed=f"{len(faults):,} to look at: {faults[0]}"
        if faults
        else f"{len(names):,} names are not ASCII, each is clear",
        remedy="keep one spelling of each: add the memory under its name in NFC, and delete the other",
        evidence=faults[:_NAMED],
        otherwise="warn",
    )
