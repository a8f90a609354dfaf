"""What the kernels should reach on an H100, as shares of the ceilings measured in the same run, and whether they do."""

from __future__ import annotations

from dataclasses import dataclass

from ratplus.kernels.bench.cases import DENSE, Plan

OURS = "ours"


@dataclass(frozen=True)
class Goal:
    """A row of ours and the least that its figure should be.

    figure: "bandwidth_fraction" or "matmul_fraction" (the row's own), or "over dense": the time of the faster dense
    attention at that shape over ours, where dense rows may stand under another operation's name.
    """

    op: str
    shape: str
    pattern: str
    figure: str
    least: float
    dense_op: str | None = None

    def reached(self, rows: list[dict]) -> float | None:
        """The figure, or None where a row that it needs is missing."""
        mine = [row for row in rows if row["candidate"] == OURS and self._is_at(row, self.op, self.pattern)]
        if not mine:
            return None
        if self.figure != "over dense":
            return mine[-1][self.figure]
        times = [
            row["ms_p50"]
            for row in rows
            if row["candidate"].startswith(DENSE) and row["op"] == self.dense_op and row["shape"] == self.shape
        ]
        return min(times) / mine[-1]["ms_p50"] if times else None

    def _is_at(self, row: dict, op: str, pattern: str) -> bool:
        return (row["op"], row["shape"], row["pattern"]) == (op, self.shape, pattern)

    def line(self, rows: list[dict]) -> str:
        """The goal, what was reached, and the verdict, in one line."""
        figure, wanted = self.reached(rows), self._text(self.least)
        verdict = "not measured" if figure is None else "reached" if figure >= self.least else "MISSED"
        shown = "-" if figure is None else self._text(figure)
        name = f"{self.op} {self.shape} {self.pattern}"
        return f"goal {name:<52} {shown:>6} of {self.figure.replace('_fraction', '')}, aim {wanted:>5}: {verdict}"

    def _text(self, value: float) -> str:
        return f"{value:.1f}x" if self.figure == "over dense" else f"{value:.0%}"


def _share(op: str, shape: str, pattern: str, figure: str, least: float) -> Goal:
    return Goal(op, f"{shape} d4096", pattern, f"{figure}_fraction", least)


GOALS = (
    _share("scan forward", "B64 T4096", "-", "bandwidth", 0.75),
    _share("scan forward", "B16 T16384", "-", "bandwidth", 0.75),
    _share("scan backward", "B64 T4096", "-", "bandwidth", 0.75),
    _share("scan backward", "B16 T16384", "-", "bandwidth", 0.75),
    _share("attention forward", "B1 T262144", "D16", "matmul", 0.6),
    _share("attention forward", "B64 T4096", "D64", "bandwidth", 0.75),
    _share("attention backward", "B16 T16384", "D16", "matmul", 0.4),
    _share("decode", "B128 T4096", "D1", "bandwidth", 0.8),
    _share("decode", "B128 T4096", "D16", "bandwidth", 0.8),
    _share("decode", "B128 T65536", "D16", "bandwidth", 0.8),
    Goal("recurrence and attention", "B1 T262144 d4096", "D16", "over dense", 12.0, "attention forward"),
    Goal("decode", "B1 T262144 d4096", "D16", "over dense", 15.0, "decode"),
)


def concerns_goals(plan: Plan) -> bool:
    """Whether a plan's cases hold a row that a goal needs."""
    for goal in GOALS:
        kind = plan.op == "scan" and goal.op.startswith("scan")
        kind |= plan.op == "attention" and goal.op in (
            "attention forward", "attention backward", "recurrence and attention",
        )  # fmt: skip
        kind |= plan.op == goal.op == "decode"
        patterns = (goal.pattern, "D1") if goal.figure == "over dense" else (goal.pattern,)
        if kind and plan.shape == goal.shape and plan.pattern in patterns:
            return True
    return False
