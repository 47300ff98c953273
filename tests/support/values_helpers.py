"""What test_values and other tests share."""

import json
from typing import Any

from abathur_nb.store.values import MAX_BYTES


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


BEYOND = [  # JSON for SQLite, and not for the store
    ("[1e999]", "not JSON: Out of range float values"),
    ("[-1E+0400]", "not JSON: Out of range float values"),
    ("[" + "9" * 250 + "e99]", "not JSON: Out of range float values"),
    ("[" + "9" * 300 + ".5e9]", "not JSON: Out of range float values"),
    ("[" + "9" * 310 + ".0]", "not JSON: Out of range float values"),
    ("[" + "9" * 4301 + "]", "not JSON: Exceeds the limit (4300 digits)"),
    (r'["\ud800"]', "surrogates not allowed"),
    (r'["a\uDFFF"]', "surrogates not allowed"),
    (r'[{"\ud83d":1}]', "surrogates not allowed"),
    (r'["\ude00\ud83d"]', "surrogates not allowed"),
    ("[" * 101 + "]" * 101, "at most 100 levels"),
    ('[{"a":' * 51 + "1" + "}]" * 51, "at most 100 levels"),
    ("[" * 990 + "]" * 990, "at most 100 levels"),  # Python may give up before it is counted
    ("[]\0", "not JSON: Extra data"),
    (f'["{"x" * (MAX_BYTES - 3)}"]', "at most 16,777,216 bytes of JSON, found 16,777,217"),
    (f'["{"é" * (MAX_BYTES // 2 - 1)}"]', "at most 16,777,216 bytes of JSON, found 16,777,218"),
]


def within() -> list[str]:
    return [
        "[1e308,1.5E-400,1e-5,2e+02]",
        "[" + "9" * 308 + "]",
        "[" + "9" * 4300 + "]",
        "[0." + "9" * 5000 + "]",
        r'["\ud83d\ude00","\\ud800","\u00e9","ud800"]',
        json.dumps(nested(100)),
        '["' + "[{" * 200 + '"]',
        '["0e000","3e999","1e4f0e99-0e00"]',
        f'["{"x" * (MAX_BYTES - 4)}"]',
        f'["{"é" * (MAX_BYTES // 2 - 2)}"]',
    ]
