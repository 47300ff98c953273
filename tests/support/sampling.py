"""Of a sweep over many cases ``make test`` runs some, and ``make prove`` the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], *kept: object) -> list[Any]:
    """Return the cases as parameters of a test, marked as ``sweep`` but for those that are kept."""
    return [pytest.param(case, marks=() if case in kept else pytest.mark.sweep) for case in cases]
