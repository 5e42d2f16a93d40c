"""The main table for LaTeX, with booktabs."""

import math
import re
from textwrap import wrap

from assay._errors import AssayError
from assay._terminal import visible
from assay.faithfulness import Comparison
from assay.reports._story import SEVERITY, by_severity
from assay.reports._tables import (
    MEANING,
    Interval,
    Line,
    agreement_words,
    evaluation_splits,
    lines,
    on_what,
    percent,
    subject_accuracy,
)

_COMMANDS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "`": "{`}", "'": "{'}", '"': "{''}",
    # A bracket or a star behind the end of a row would be read as an option of it; two hyphens would be a dash.
    "[": "{[}", "]": "{]}", "*": "{*}", "-": "{-}",
    "\n": " ", "–": "--", "—": "---", "−": "$-$", "×": r"$\times$", "→": r"$\to$", "…": r"\ldots{}", "≥": r"$\geq$",
    "≤": r"$\leq$", "“": "``", "”": "''", "‘": "`", "’": "'", "∅": r"$\emptyset$",
}  # fmt: skip

_LAST_LETTER = 0x17F
"""Letters up to here (Latin) engines of LaTeX can set; of others they stop, or leave a gap."""

_UNSET = frozenset("«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ")
"""Of those, the letters at which pdflatex stops unless a paper asks for another encoding of fonts (found by trying)."""

_HEAD = 12
"""So many letters are in a line of a heading: its column is then no wider than the intervals in it."""

_LABEL = re.compile(r"[A-Za-z0-9:._/+-]+")


def escaped(text: str) -> str:
    r"""Text of others for LaTeX: it commands nothing, and what no font has is written as its number, such as U+4E2D."""
    shown = (_COMMANDS.get(letter, letter) for letter in visible(text, keep="\n"))
    return "".join(
        rf"\texttt{{U+{ord(one):04X}}}" if len(one) == 1 and (ord(one) > _LAST_LETTER or one in _UNSET) else one
        for one in shown
    )


def latex(comparison: Comparison, *, label: str = "tab:assay", caption: str | None = None) -> str:
    """The main table: simplifications as the page orders them, then controls; agreement by split, and the verdicts.

    Numbers are rounded as on the page, their intervals stand in brackets below them. Raises AssayError for a label that
    LaTeX cannot read.
    """
    if not _LABEL.fullmatch(label):
        raise AssayError(f"to_latex(label={label!r}): give letters, digits and :._/+- only, such as 'tab:assay'.")
    with comparison.trusted_no_further():
        splits = evaluation_splits(comparison)
        found = [line for line in lines(comparison) if not line.group.endswith("shuffled copy")]
        columns = "l" + "r" * (len(splits) + 1) + "l"
        heads = ["Simplification", *(comparison.split_labels[split] for split in splits), "recovers", "verdict"]
        body = [
            r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{_caption(comparison) if caption is None else caption}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _row(map(_head, heads)),
            r"\midrule",
            *_accuracy(comparison, splits),
        ]
        order = {(one.proxy, f"at {one.site}"): place for place, one in enumerate(by_severity(comparison.verdicts()))}
        judged = [line for line in found if line.judgement is not None]
        several = len({line.group for line in judged}) > 1
        for line in sorted(judged, key=lambda line: order[line.proxy, line.group]):
            body += _lines(line, several=several)
        others = [line for line in found if line.judgement is None]
        if others:
            body.append(r"\midrule")
        for line in others:
            body += _lines(line, several=several)
        return "\n".join([*body, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _head(text: str) -> str:
    """A heading, in several lines where it is long."""
    parts = [escaped(line) for line in wrap(text, _HEAD, break_on_hyphens=False)] or [""]
    stacked = r" \\ ".join(parts)
    return stacked if len(parts) == 1 else rf"\shortstack[r]{{{stacked}}}"


def _row(cells: "map[str] | list[str]") -> str:
    return " & ".join(cells) + r" \\"


def _lines(line: Line, *, several: bool) -> list[str]:
    """Two rows: the numbers, and below them their intervals."""
    recovered = [] if line.is_control else [line.recovered]
    rates = [*line.rates, *recovered]
    site = line.group.removesuffix(", controls") if several else ""
    padding = [""] * line.is_control
    first = [escaped(line.proxy), *(_number(rate) for rate in rates), *padding, line.judgement or ""]
    second = [escaped(site), *(_limits(rate) for rate in rates), *padding, ""]
    return [_row(first), _row([rf"{{\scriptsize {cell}}}" if cell else "" for cell in second])]


def _number(rate: Interval) -> str:
    return escaped(percent(rate[0])).replace(r"\textgreater{}", "$>$").replace("{-}", "$-$")


def _limits(rate: Interval) -> str:
    """An interval in brackets, its ends rounded as on the page."""
    if math.isnan(rate[1]):
        return ""
    low, high = (_number((end, math.nan, math.nan)) for end in rate[1:])
    return f"[{low}, {high}]"


def _accuracy(comparison: Comparison, splits: list[str]) -> list[str]:
    accuracy = subject_accuracy(comparison)
    if not len(accuracy):
        return []
    cells = [_number((float(accuracy["estimate"].get(split, math.nan)), math.nan, math.nan)) for split in splits]
    return [_row([r"\emph{accuracy of the subject}", *cells, "", ""]), r"\midrule"]


def _caption(comparison: Comparison) -> str:
    """What the table has, and what its verdicts mean."""
    level = round(100 * comparison.record.settings["level"])
    met = {verdict.judgement for verdict in comparison.verdicts()}
    meanings = "; ".join(f"{one}: {MEANING[one]}" for one in SEVERITY if one in met)
    recovers = "recovers: how much of what mean ablation of the site loses in distribution"
    text = (
        f"{agreement_words(comparison)}{on_what(comparison)}, in per cent, with {level}% confidence intervals over "
        f"whole sequences in brackets; {recovers}. "
    )
    return escaped(f"{text}{meanings[:1].upper()}{meanings[1:]}." if meanings else text.strip())
