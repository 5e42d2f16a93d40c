"""The census of architectures: which of those that transformers registers can be read and edited.

    python -m assay.studies.architectures --markdown docs/architectures.md

builds a tiny random model of every architecture for causal and masked language modelling and for text features, runs
`assay.testing.check_architecture` on it in a process of its own, and writes the table. What was found is kept in a
file, so that an interrupted census goes on where it was.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from assay._files import write_atomically
from assay.engine import BLOCK_STREAMS
from assay.studies._census import SECONDS, USES, Row, Use, architectures, census


def markdown(rows: Sequence[Row]) -> str:
    """The census as a page."""
    text = [row for row in rows if row.status != "not text"]
    by_type: dict[str, dict[Use, Row]] = {}
    for row in text:
        by_type.setdefault(row.type, {})[row.use] = row
    passing = sorted(name for name, uses in by_type.items() if any(row.status == "passes" for row in uses.values()))
    lines = [
        "# Architectures",
        "",
        "Which of the architectures that transformers registers Assay can read and edit. For each, a tiny model with",
        "random weights was built from its configuration class and checked by `assay.testing.check_architecture`. Made",
        f"with transformers {version('transformers')} and torch {version('torch')} by",
        "",
        "```bash",
        "python -m assay.studies.architectures --markdown docs/architectures.md",
        "```",
        "",
        f"**{len(passing)} of {len(by_type)} architectures pass in at least one use.**",
        "",
        "| use | architectures | pass | refused | not buildable here | fail |",
        "|---|---|---|---|---|---|",
    ]
    for use, title in USES.items():
        count = Counter(row.status for row in text if row.use == use)
        numbers = [count[status] for status in ("passes", "refused", "not buildable", "fails")]
        lines.append(f"| {title} | {sum(numbers)} | {' | '.join(map(str, numbers))} |")
    causal = [row for row in text if row.use == "causal" and row.status == "passes"]
    with_edges = [row for row in causal if not row.details["edges"]]
    lines += [
        "",
        f"**Circuits of edges work in {len(with_edges)} of the {len(causal)} causal language models that pass.**",
    ]
    lines += ["", *_EXPLANATION, "", "## All architectures", ""]
    lines += [
        "| architecture | causal LM | masked LM | features | attention layers | also editable | edges |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, uses in sorted(by_type.items()):
        cells = [_cell(uses.get(use)) for use in USES]
        best = next((row for row in uses.values() if row.status == "passes"), None)
        layers, streams = "", ""
        if best is not None:
            layers = f"{best.details['layers']}"
            streams = ", ".join(stream for stream in best.details["streams"] if stream in BLOCK_STREAMS)
        own = next((row for row in causal if row.type == name), None)
        edges = "" if own is None else "no" if own.details["edges"] else "yes"
        lines.append(f"| {name} | {' | '.join(cells)} | {layers} | {streams} | {edges} |")
    lines += ["", "## Why not", "", "| architecture | use | status | reason |", "|---|---|---|---|"]
    lines += [
        f"| {row.type} | {USES[row.use]} | {row.status} | {_escape(row.reason)} |"
        for row in sorted(text, key=lambda row: (row.status, row.type, row.use))
        if row.status != "passes"
    ]
    lines += ["", "## Why no circuits of edges", "", "| architecture | reason |", "|---|---|"]
    lines += [
        f"| {row.type} | {_escape(row.details['edges'])} |"
        for row in sorted(causal, key=lambda row: row.type)
        if row.details["edges"]
    ]
    reached = [row for row in text if row.status == "passes" and row.details["not_reached"]]
    lines += ["", "## Attention that is there and cannot be edited", ""]
    lines += [
        "Modules called attention that ran beside those that can be edited, and computed no attention weights: linear",
        "and recurrent layers, attention over layers instead of positions. Sites stand for the other layers.",
        "",
        *(f"- {row.type} ({USES[row.use]}): {', '.join(row.details['not_reached'])}" for row in reached),
    ]
    other = sorted({row.type for row in rows if row.status == "not text"} - set(by_type))
    lines += ["", "## Not examined", ""]
    lines += [f"{len(other)} architectures take no text as their main input: {', '.join(other)}.", ""]
    return "\n".join(lines)


_EXPLANATION = (
    "What a pass says, of the architecture as a tiny random model on random tokens with padding:",
    "",
    "- *identity parity*: edits that give back what they get, at every head and block and in every stream, change",
    "  no output;",
    "- *full-rank parity*: neither does an SVD at full width, of queries and keys, values, head outputs, and streams",
    "  of blocks (MLPs, the residual stream before and after, what attention adds);",
    "- *edit takes effect*: an edit of any of these in any layer changes the outputs, at one head it changes that",
    "  head alone, and a causal model stays causal under it;",
    "- *resume from layer*: a run that resumes at any layer equals the whole run;",
    "- attention in blocks of rows, and logits at chosen positions, equal those of the whole.",
    "",
    "**Refused** means that Assay says so by name before any work is done. **Not buildable** means that transformers",
    "itself could not make or run a tiny model here: a package is missing, the model does not run on token ids alone,",
    "or its configuration needs sizes that this command does not know. Anything else would be a bug (**fail**).",
    "",
    "*Features* are the vectors of text encoders and of the bodies of language models (transformers' AutoModel, and",
    "AutoModelForTextEncoding where that has one, so of an encoder-decoder the encoder). Models of text together with",
    "images or sound are run on text alone; their other towers are not touched. The number of attention layers is",
    "that of the tiny model. *Also editable* says which streams of blocks can be sites besides those of heads.",
    "",
    "*Edges* says whether circuits of edges (`assay.Circuit`) work in the causal language model, and whole heads with",
    "them (`level='heads'`), which are found in the same graph: the residual stream has to be the sum of what heads",
    "and MLPs add. Where they do, this was checked: a circuit of all edges is the model, one of no edges its run on",
    "the counterfactual, one without an edge is patching of that edge, and edges on no path change nothing.",
)


def _cell(row: Row | None) -> str:
    return "" if row is None else row.status


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the census from the command line; the exit status is 1 if an architecture fails."""
    parser = argparse.ArgumentParser(prog="python -m assay.studies.architectures", description=__doc__)
    parser.add_argument("types", nargs="*", help="model types to examine (default: all)")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument(
        "--keep", type=Path, default=Path("assay-runs/architectures.jsonl"), help="what was found already"
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many architectures at a time")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the most time for one architecture")
    options = parser.parse_args(arguments)
    chosen = [(name, use) for name, use in architectures() if not options.types or name in options.types]
    if not chosen:
        parser.error(f"transformers has no model type {', '.join(options.types)}")

    def show(row: Row) -> None:
        if row.status in ("passes", "fails") or options.types:
            print(f"{row.type} ({USES[row.use]}): {row.status}{': ' if row.reason else ''}{row.reason}", flush=True)

    rows = census(chosen, options.keep, jobs=options.jobs, seconds=options.seconds, progress=show)
    print(", ".join(f"{count} {status}" for status, count in Counter(row.status for row in rows).most_common()))
    if options.markdown:
        page = markdown(rows)
        write_atomically(options.markdown, lambda path: path.write_text(page, encoding="utf-8"))
    return 1 if any(row.status == "fails" for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
