"""The tree of the namespaces: each branch holds what is below it, however many and however named."""

from typing import Any

from abathur_nb.runbook.memories import Excerpt, namespace_tree

MOMENT = "2026-11-01 10:20:30.400"


def row(namespace: str, memories: int = 1, versions: int = 1, newest: str = MOMENT) -> dict[str, Any]:
    """Return a row of the query ``namespaces``."""
    counts = {"memories": memories, "versions": versions, "superseded": versions - memories, "deleted": 0, "bytes": 2}
    return {"namespace": namespace, "newest": newest, **counts}


def tree(*rows: dict[str, Any], limit: int = 50) -> Excerpt:
    return namespace_tree(rows, limit, "no memory yet")


def test_a_branch_holds_the_sum_of_what_is_below_it() -> None:
    rows = row("user:a", 1, 3), row("user:a:x", 2, 5, "2026-11-09 00:00:00.000"), row("user:b"), row("app:c")
    frame = tree(*rows).to_frame().set_index("branch")
    counts = frame[["depth", "namespaces", "memories", "versions", "superseded", "bytes"]]
    assert counts.loc[["user", "user:a"]].to_numpy().tolist() == [[1, 3, 4, 9, 5, 6], [2, 2, 3, 8, 5, 4]]
    assert frame["newest"].loc[["user", "user:a:x", "user:b"]].tolist() == [*["2026-11-09 00:00:00.000"] * 2, MOMENT]
    assert frame[frame["depth"] == 1]["versions"].sum() == 3 + 5 + 1 + 1


def test_the_largest_branches_are_shown_and_each_behind_its_parent() -> None:
    found = tree(*(row(f"n:{n}:deep", versions=n + 1) for n in range(9)), limit=5)
    assert found.table is not None
    assert [cells[0] for cells in found.table.rows] == ["n", "  7", "    deep", "  8", "    deep"]
    assert found.caption == "9 namespaces; shown are the 5 largest of 19 branches"
    assert len(found.to_frame()) == 19, "the frame has them all"


def test_a_namespace_may_be_named_anything() -> None:
    found = tree(row("<b>&\u202e\n:\x1b[2J:"), row(""), row("é" * 512), row("\\xff:a", newest="<i>"))
    html = found._repr_mimebundle_()["text/html"]
    assert "<b>&" not in html
    assert "<i>" not in html
    assert not {"\u202e", "\x1b"} & {*html, *str(found)}
    assert len(str(found).splitlines()) == 1 + 7
    assert "(empty)" in html
