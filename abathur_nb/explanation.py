"""The result of explain: the plan of every query, as frame, text and HTML, and what its steps do, in words."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from abathur_nb.plan import PlanNode, Step, StepKind, tree_lines
from abathur_nb.report import Report, Status
from abathur_nb.sql import Query
from abathur_nb.wording import printable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PlanTree", "Plans", "told"]

PlanTree = tuple[PlanNode, ...]
_WORDS: dict[StepKind, str] = {  # {0} is the step, {1} its index or the word rowid
    "search": "search by {1}",
    "table scan": "full scan of the table {0.table}",
    "index scan": "full scan of the index {0.index}",
    "automatic index": "an index made for this one run on {0.table}",
    "sort": "a sort",
}


@dataclass(frozen=True, slots=True)
class Plans:
    """Hold the plan of every named query; a notebook shows the plans, folded.

    ``coverage`` names the queries whose plans use an index, for each of the 33.
    """

    report: Report
    queries: Mapping[str, Query]
    trees: Mapping[str, PlanTree] = field(default_factory=dict)
    coverage: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas frame, one row a query: its verdict, its index, its plan."""
        import pandas as pd

        rows = [
            {
                "query": name,
                "status": status,
                "index": self.queries[name].index,
                "plan": "\n".join(tree_lines(self.trees.get(name, ()))),
                "answers": self.queries[name].doc,
            }
            for name, status in self._verdicts()
        ]
        return pd.DataFrame(rows, columns=["query", "status", "index", "plan", "answers"])

    def _verdicts(self) -> list[tuple[str, Status]]:
        return [(check.id, check.status) for check in self.report.checks if check.id in self.queries]

    def to_record(self) -> dict[str, Any]:
        """Return what a run's record keeps: the plan of each query, as lines."""
        return {"plans": {name: tree_lines(tree) for name, tree in self.trees.items()}}

    def __str__(self) -> str:
        return "\n\n".join("\n  ".join((name, *tree_lines(tree))) for name, tree in self.trees.items())

    def _repr_html_(self) -> str:
        plans = [
            _folded(f"{status}: {name} — {query.index or 'no index'}", query.doc, self.trees.get(name, ()), query.sql)
            for name, status in self._verdicts()
            for query in (self.queries[name],)
        ]
        return f"<details><summary>the plans of {len(plans)} queries</summary>{''.join(plans)}</details>"


def _folded(title: str, doc: str, tree: PlanTree, sql: str = "") -> str:
    texts = [escape(printable(text)) for text in ("\n".join(tree_lines(tree)) or "no plan", sql) if text]
    style = "font-family:monospace;text-align:left;white-space:pre-wrap"
    return (
        f"<details style='margin-left:1.5em'><summary>{escape(printable(title))}</summary><p>{escape(doc)}</p>"
        + "".join(f"<pre style='{style}'>{text}</pre>" for text in texts)
        + "</details>"
    )


def told(steps: Collection[Step]) -> str:
    """Say in words what the steps of a plan do, each once."""
    return "; ".join(dict.fromkeys(_WORDS[step.kind].format(step, step.index or "rowid") for step in steps))
