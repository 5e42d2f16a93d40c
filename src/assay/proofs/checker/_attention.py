"""The checker for max-of-K attention: redoes the proof on another path.

It shares no code with what makes certificates. Products of weights and exponentials are enclosed by Arb at 320 bits and
turned into float64 intervals; the worst case of every group is taken over all outputs, positions and tokens, without
tiers; searches prune by one rule only; counting packs polynomials into single integers. It is meant to be read in one
sitting, next to docs/soundness.md, whose theorem numbers appear below. Everything it does not accept, it refuses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from assay.proofs.checker._common import groups, require, size_of, words

_BITS = 320
_U = 2.0**-53
_FRACTION = 6


# -- the model as tables (theorem 1) ----------------------------------------------------------------------------------


@dataclass
class _Model:
    """Logit tables, each entry within 2^-52 relative; weights e^score = mantissa · 2^exponent within 2^-51 relative."""

    EU: np.ndarray
    EV: np.ndarray
    PV: np.ndarray
    token: tuple[np.ndarray, np.ndarray]
    position: tuple[np.ndarray, np.ndarray]

    @property
    def slack(self) -> float:
        """18 u times a bound on all differences: rounding of a difference (7 u), of a weight and a product (11 u)."""
        return 36 * _U * float(abs(self.EU).max() + abs(self.EV).max() + abs(self.PV).max())


def _arb(values: np.ndarray) -> Any:
    from flint import arb, arb_mat  # noqa: PLC0415

    return arb_mat(values.shape[0], values.shape[1], [arb(float(x)) for x in values.ravel()])


def _floats(matrix: Any) -> np.ndarray:
    values = []
    for entry in matrix.entries():
        value = float(entry)
        require(np.isfinite(value) and abs(value) < 2.0**200, "a table entry is out of range")
        require(bool(entry.rad() <= 2.0**-60 * abs(value) + 2.0**-600), "a table entry could not be enclosed")
        values.append(value)
    return np.array(values).reshape(matrix.nrows(), matrix.ncols())


def _powers(matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    from flint import arb  # noqa: PLC0415

    log2 = arb.const_log2()
    mantissas, exponents = [], []
    for score in matrix.entries():
        require(abs(float(score)) < 2.0**40, "an attention score is 2^40 or more")
        exponent = int(float(score) / 0.6931471805599453)
        mantissa = (score - exponent * log2).exp()
        require(bool(mantissa.rad() < 2.0**-80), "an exponential could not be enclosed")
        mantissas.append(float(mantissa))
        exponents.append(exponent)
    shape = matrix.nrows(), matrix.ncols()
    grid = np.array(exponents).reshape(shape)
    require(int(np.ptp(grid, axis=1).max()) <= 401, "the attention weights of one query span more than 2^400")
    return np.array(mantissas).reshape(shape), grid


def _models(weights: Mapping[str, np.ndarray], length: int, head: int, proxy: Mapping[str, Any] | None) -> list[_Model]:
    """The subject's tables and, where the certificate has a proxy, the proxy's."""
    from flint import arb, ctx  # noqa: PLC0415

    with ctx.workprec(_BITS):
        E = _arb(weights["embed_tokens.weight"])
        P = _arb(weights["embed_positions.weight"][:length])
        Q, K, V, O = (_arb(weights[f"layers.0.attn.{name}_proj.weight"]).transpose() for name in "qkvo")  # noqa: E741
        U = _arb(weights["lm_head.weight"]).transpose()
        one = _arb(np.ones((E.nrows(), 1)))
        query = E + one * _arb(weights["embed_positions.weight"][length - 1 : length])
        keys = (query * (Q * K.transpose())) * (1 / arb(head).sqrt())
        out = V * (O * U)
        EU, EV, PV = _floats(query * U), _floats(E * out), _floats(P * out)
        subject = _Model(EU, EV, PV, _powers(keys * E.transpose()), _powers(keys * P.transpose()))
        if proxy is None:
            return [subject]
        token, position = subject.token, subject.position
        if proxy["left"] is not None:
            token = _powers(_arb(np.array(proxy["left"])) * _arb(np.array(proxy["right"])).transpose())
        if proxy["average_positions"]:
            position = np.ones_like(position[0]), np.zeros_like(position[1])
        return [subject, _Model(EU, EV, PV, token, position)]


def _contributions(model: _Model, q: int, m: int, low: int) -> tuple[np.ndarray, np.ndarray, int]:
    """f(output, position, token low … m, then q): upper and lower bounds, in units of 2^exponent."""
    tokens = np.append(np.arange(low, m + 1), q)
    shift = model.token[1][q, tokens].max() + model.position[1][q].max()
    exponent = model.position[1][q][:, None] + model.token[1][q, tokens][None] - shift
    weight = np.ldexp(model.position[0][q][:, None] * model.token[0][q, tokens][None], exponent)
    difference = (
        (model.EU[q] - model.EU[q, m])[:, None, None]
        + (model.EV[tokens] - model.EV[tokens, m, None]).T[:, None, :]
        + (model.PV - model.PV[:, m, None]).T[:, :, None]
    )
    slack = model.slack
    return weight * (difference + slack) + 2.0**-900, weight * (difference - slack) - 2.0**-900, int(shift)


def _integers(upper: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds rounded outward to integers, in a unit so small that sums over positions just fit 63 bits."""
    size = max(float(np.abs(upper).max()), float(np.abs(lower).max())) * (upper.shape[1] + 3)
    scale = 62 - int(np.frexp(size)[1])
    return np.ceil(np.ldexp(upper, scale)).astype(np.int64), np.floor(np.ldexp(lower, scale)).astype(np.int64)


def _reaches(upper: np.ndarray, whole: np.ndarray, need: bool) -> np.ndarray:
    """Per output, whether some input of the group could take it to 0 (theorem 2).

    Asked twice: in integers, and in floats with a bound on their rounding, which sees further below the unit.
    """
    answers = []
    for values in (upper, whole):
        top = values[:, :-1, :-1].max(axis=2)
        last = values[:, -1, -1]
        total = top.sum(axis=1) + last
        if need and top.shape[1]:
            total = total - (top - values[:, :-1, -2]).min(axis=1)
        answers.append(total)
        if values is upper:
            size = np.abs(top).sum(axis=1) + np.abs(last) + (np.abs(top) + np.abs(values[:, :-1, -2])).sum(axis=1)
            answers[0] = total + 2 * (values.shape[1] + 8) * _U * size
    return (answers[0] >= 0) & (answers[1] >= 0)


# -- counting -------------------------------------------------------------------------------------------------------


def _count_relaxation(values: np.ndarray, last: float, tops: list[int], copies: tuple[int, int]) -> int:
    """How many ways to fill the free positions so that rounded slacks add up to at most the limit (theorems 3, 4).

    `values` (position, token) and `last` are in units of the grid. Slacks are rounded down by 2^-34 more than needed.
    """
    from flint import fmpz  # noqa: PLC0415

    free, tokens = values.shape
    top = np.array(tops, dtype=np.float64) / 2**_FRACTION
    require(bool((np.abs(top) < 2.0**40).all()) and abs(last) < 2.0**40, "a top is out of range")
    guard = 2.0**-34 + 4 * _U * (float(np.abs(top).sum()) + abs(last))
    require(bool((values <= top[:, None] + guard).all()), "a contribution exceeds its recorded top")
    limit = int(np.floor(float(top.sum()) + last + guard))
    if limit < 0:
        return 0
    require(limit < 2**24, "the grid is finer than the checker accepts")
    slack = np.maximum(np.floor(top[:, None] - np.maximum(values, -(2.0**60)) - guard), 0)
    width = (tokens**free).bit_length() + 1
    whole = (fmpz(1) << (width * (limit + 1))) - 1
    least, most = copies
    open_end = most == free
    state = {0: fmpz(1)}
    for p in range(free):
        reachable = slack[p] <= limit
        bins, numbers = np.unique(slack[p, :-1][reachable[:-1]].astype(np.int64), return_counts=True)
        smaller = sum((fmpz(int(n)) << (width * int(b)) for b, n in zip(bins, numbers, strict=True)), fmpz(0))
        copy = fmpz(1) << (width * int(slack[p, -1])) if reachable[-1] else fmpz(0)
        following: dict[int, Any] = {}
        for taken, ways in state.items():
            if open_end and taken == least:
                following[taken] = following.get(taken, fmpz(0)) + (ways * (smaller + copy) & whole)
                continue
            following[taken] = following.get(taken, fmpz(0)) + (ways * smaller & whole)
            if taken + 1 <= most:
                following[taken + 1] = following.get(taken + 1, fmpz(0)) + (ways * copy & whole)
        state = following
    total = int(sum((ways for taken, ways in state.items() if taken >= least), fmpz(0)))
    mask, found = (1 << width) - 1, 0
    for shift in range(0, width * (limit + 1), width * 64):
        block = (total >> shift) & ((1 << (width * 64)) - 1)
        while block:
            found += block & mask
            block >>= width
    return found


def _search(parts: list[tuple[np.ndarray, np.ndarray]], copies: tuple[int, int]) -> tuple[int, int]:
    """How many inputs of a group are surely, and how many possibly, wrong: all of them, one position at a time.

    `parts` are (upper, lower) integer bounds of contributions by (output, position, token). A partial input is
    dropped when no output's best completion reaches 0.
    """
    upper = np.concatenate([part[0] for part in parts])
    lower = np.concatenate([part[1] for part in parts])
    free, tokens = upper.shape[1] - 1, upper.shape[2] - 1
    rest = np.zeros((free + 1, len(upper)), dtype=np.int64)
    for p in range(free - 1, -1, -1):
        rest[p] = rest[p + 1] + upper[:, p, :-1].max(axis=1)
    stack = [(0, upper[None, :, -1, -1], lower[None, :, -1, -1], np.zeros(1, dtype=np.int64))]
    surely = possibly = 0
    while stack:
        p, high, low, taken = stack.pop()
        keep = (high + rest[p] >= 0).any(axis=1) & (taken <= copies[1])
        high, low, taken = high[keep], low[keep], taken[keep]
        if p == free:
            member = taken >= copies[0]
            possibly += int(member.sum())
            surely += int(((low >= 0).any(axis=1) & member).sum())
            continue
        step = max(1, 2**21 // (tokens * len(upper)))
        for begin in range(0, len(high), step):
            rows = slice(begin, begin + step)
            stack.append(
                (
                    p + 1,
                    (high[rows, None] + upper[:, p, :-1].T).reshape(-1, len(upper)),
                    (low[rows, None] + lower[:, p, :-1].T).reshape(-1, len(upper)),
                    (taken[rows, None] + (np.arange(tokens) == tokens - 1)).ravel(),
                )
            )
    return surely, possibly


# -- the two kinds of proof -------------------------------------------------------------------------------------------


def _check_pieces(content: Mapping[str, Any], models: list[_Model]) -> tuple[int, int]:
    """Returns possibly and surely wrong inputs; every group that is not listed is shown to be right throughout."""
    listed: dict[tuple[int, int], Mapping[str, Any]] = {}
    for piece in content["pieces"]:
        require((piece["last"], piece["maximum"]) not in listed, "a group is listed twice")
        listed[piece["last"], piece["maximum"]] = piece
    free, wrong, surely_wrong = content["inputs"]["length"] - 1, 0, 0
    for q, m, low, copies in groups(content["inputs"]):
        bounds = [_contributions(model, q, m, low) for model in models]
        whole = [_integers(upper, lower) for upper, lower, _ in bounds]
        suspects = set()
        for index in range(len(models)):
            reach = _reaches(bounds[index][0], whole[index][0], copies[0] >= 1)
            reach[m] = False
            suspects |= {(index, int(x)) for x in np.flatnonzero(reach)}
        piece = listed.pop((q, m), None)
        if piece is None:
            require(not suspects or size_of(free, m - low, copies) == 0, f"group {(q, m)} is not shown to be right")
            continue
        size = size_of(free, m - low, copies)
        if piece["relaxations"]:
            covered = set()
            for relaxation in piece["relaxations"]:
                names = [tuple(name) for name in relaxation["outputs"]]
                require(len(names) == len(relaxation["shifts"]) and names != [], "a relaxation is malformed")
                require(all(0 <= k <= 200 for k in relaxation["shifts"]), "a scaling is out of range")
                require(len(relaxation["tops"]) == free, "a relaxation is malformed")
                covered |= set(names)
                joint = np.full(bounds[0][0].shape[1:], -np.inf)
                for (index, x), shift in zip(names, relaxation["shifts"], strict=True):
                    require(0 <= index < len(models) and 0 <= x < len(models[0].EU), "an output is out of range")
                    power = bounds[index][2] - shift - relaxation["step"]
                    require(power < 900, "a step is out of range")
                    values = bounds[index][0][x]
                    # Far below the grid only the sign matters; what is negative there is rounded up to 0.
                    scaled = np.ldexp(values if power > -900 else np.maximum(values, 0), max(power, -900))
                    joint = np.maximum(joint, scaled)
                count = _count_relaxation(joint[:-1, :-1], float(joint[-1, -1]), relaxation["tops"], copies)
                require(
                    min(count, size) <= relaxation["count"] <= size,
                    f"a relaxation of group {(q, m)} holds {count} inputs",
                )
            require(suspects <= covered, f"group {(q, m)} leaves out an output that could win")
            possibly, surely = min(sum(relaxation["count"] for relaxation in piece["relaxations"]), size), 0
            require(piece["wrong"] == possibly, f"the counts of group {(q, m)} do not add up")
        else:
            parts = []
            for index, (upper, lower) in enumerate(whole):
                rows = [x for i, x in sorted(suspects) if i == index]
                if rows:
                    parts.append((upper[rows], lower[rows]))
            surely, possibly = _search(parts, copies) if parts else (0, 0)
        require(possibly <= piece["wrong"] <= size, f"group {(q, m)} has up to {possibly} wrong inputs")
        require(0 <= piece["surely_wrong"] <= surely, f"group {(q, m)} has only {surely} surely wrong inputs")
        wrong += piece["wrong"]
        surely_wrong += piece["surely_wrong"]
    require(not listed, "a listed group is not in the set of inputs")
    return wrong, surely_wrong


def _check_boxes(content: Mapping[str, Any], model: _Model) -> int:
    """Returns how many inputs the boxes hold; each box is shown to be right by its exact worst case (theorem 5)."""
    boxes: dict[tuple[int, int], list[int]] = {}
    for box in content["boxes"]:
        require((box["last"], box["maximum"]) not in boxes, "a box is listed twice")
        boxes[box["last"], box["maximum"]] = box["tokens"]
    free, correct = content["inputs"]["length"] - 1, 0
    for q, m, low, copies in groups(content["inputs"]):
        masks = boxes.pop((q, m), [])
        require(len(masks) <= free + 1, "a box is malformed")
        upper = np.delete(_integers(*_contributions(model, q, m, low)[:2])[0], m, axis=0)
        at_maximum = upper[:, :-1, -2]
        for smaller, mask in enumerate(masks):
            inside = (1 << m) - (1 << low) if smaller else 1 << m
            require(mask & ~inside == 0 <= mask, f"a box of group {(q, m)} holds a token outside the set")
            if mask == 0 or not copies[0] <= free - smaller <= copies[1]:
                continue
            members = [t for t in range(low, m) if mask >> t & 1]
            worst = at_maximum.sum(axis=1) + upper[:, -1, -1]
            if smaller:
                gain = upper[:, :-1][:, :, [t - low for t in members]].max(axis=2) - at_maximum
                worst = worst + np.sort(gain, axis=1)[:, free - smaller :].sum(axis=1)
            require(bool((worst < 0).all()), f"a box of group {(q, m)} holds a wrong input")
            correct += comb(free, smaller) * len(members) ** smaller
    require(not boxes, "a listed box is not in the set of inputs")
    return correct


def check_attention(content: Mapping[str, Any], weights: Mapping[str, np.ndarray], head: int) -> None:
    """Check a certificate about a MaxOfKForCausalLM with heads of width `head`; silence means that it holds."""
    subject, inputs = content["subject"], content["inputs"]
    length = len(weights["embed_positions.weight"]) - 1
    sizes = len(weights["embed_tokens.weight"]), length
    require((subject["vocabulary"], subject["length"]) == sizes, "the subject has other sizes")
    require((inputs["vocabulary"], inputs["length"]) == sizes, "the set of inputs is not the subject's")
    require(content["strategy"] in ("brute-force", "cubic", "separable", "exact"), "the strategy is unknown")
    require((content["proxy"] is None) == (content["quantity"] == "accuracy"), "the quantity does not fit the proxy")
    require(content["quantity"] in ("accuracy", "agreement"), "the quantity is unknown")

    size = sum(size_of(length - 1, m - low, copies) for _, m, low, copies in groups(inputs))
    require(size == inputs["size"] > 0, f"the set has {size} inputs, not {inputs['size']}")
    models = _models(weights, length, head, content["proxy"])
    if content["strategy"] == "cubic":
        require(content["pieces"] is None and content["boxes"] is not None, "the strategy does not fit the proof")
        require(content["quantity"] == "accuracy", "boxes prove accuracy only")
        at_least, at_most = _check_boxes(content, models[0]), size
    else:
        require(content["boxes"] is None and content["pieces"] is not None, "the strategy does not fit the proof")
        counted = any(piece["relaxations"] for piece in content["pieces"])
        require(not counted or content["strategy"] == "separable", "the strategy does not fit the proof")
        wrong, surely_wrong = _check_pieces(content, models)
        at_least, at_most = size - wrong, size - (surely_wrong if content["quantity"] == "accuracy" else 0)
    require(content["at_least"] == at_least, f"at least {at_least} inputs are right, not {content['at_least']}")
    require(content["at_most"] == at_most, f"at most {at_most} inputs are right, not {content['at_most']}")
    who = subject["name"] + (" predicts" if content["quantity"] == "accuracy" else " and its proxy both predict")
    upper = f" and at most {at_most}" if at_most < size else ""
    claim = f"Of {words(inputs)} ({size} inputs), {who} the largest token on at least {at_least}{upper}."
    require(content["statement"] == claim, f"the statement should read: {claim}")
