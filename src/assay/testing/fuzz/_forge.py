"""What a forger does: change a certificate, and make the rest of it say the same."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from pydantic import TypeAdapter

from assay.proofs._certificate import Boxes, ProxyRecord, SubjectRecord, digest_of, statement_of
from assay.proofs.attention._boxes import correct_in_boxes
from assay.proofs.attention._proxy import describe
from assay.proofs.checker._common import groups, size_of
from assay.tasks import InputSet

Content = dict[str, Any]
"""A certificate as JSON."""

Path = tuple[str | int, ...]

_CONDITIONS = ("length", "vocabulary", "minimum_maximum", "within", "copies")
_PROXY: TypeAdapter[ProxyRecord] = TypeAdapter(ProxyRecord)


def copy_of(content: Content) -> Content:
    """The content, to be changed."""
    copied: Content = json.loads(json.dumps(content))
    return copied


def sealed(content: Content) -> Content:
    """With the digest of the rest."""
    return content | {"digest": digest_of(content)}


def restated(content: Content) -> Content:
    """With the statement that belongs to the rest, and with the digest of all."""
    model = content["statement"].split(" The model: ")[-1].split(", in real arithmetic;")[0]
    proxy = None
    if content["proxy"] is not None:
        head = int(model.split("1/sqrt(")[1].split(")")[0])
        proxy = describe(_PROXY.validate_python(content["proxy"]), head)
    statement = statement_of(
        SubjectRecord.model_validate(content["subject"]),
        model=model,
        quantity=content["quantity"],
        inputs=_inputs(content),
        at_least=content["at_least"],
        at_most=content["at_most"],
        exact="one attention layer" in model and content["strategy"] in ("exact", "brute-force"),
        proxy=proxy,
    )
    return sealed(content | {"statement": statement})


def consistent(content: Content) -> Content:
    """With the numbers of each piece, the totals, the statement and the digest that belong to the evidence."""
    content, size, inputs = copy_of(content), content["inputs"]["size"], _inputs(content)
    free = inputs.length - 1
    sizes = {(q, m): size_of(free, m - low, copies) for q, m, low, copies in groups(content["inputs"])}
    for piece in content["pieces"] or ():
        if piece["relaxations"]:
            counted, credited = (sum(item["count"] for item in piece[key]) for key in ("relaxations", "credits"))
            accuracy, most = content["proxy"] is None, sizes[piece["last"], piece["maximum"]]
            piece["surely_wrong"] = credited if accuracy else 0
            piece["wrong"] = min(min(counted, most) - (0 if accuracy else credited) + piece["proxy_wrong"], most)
        piece["surely_wrong"] = min(piece["surely_wrong"], piece["wrong"])
    if content["pieces"] is not None:
        content["at_least"] = size - sum(piece["wrong"] for piece in content["pieces"])
        content["at_most"] = size - sum(piece["surely_wrong"] for piece in content["pieces"])
    if content["boxes"] is not None:
        content["at_least"] = correct_in_boxes([Boxes.model_validate(box) for box in content["boxes"]], inputs)
    return restated(content)


def _inputs(content: Content) -> InputSet:
    """The set of inputs. Raises ValueError for one that could take for ever to count."""
    inputs = content["inputs"]
    if not (0 <= inputs["minimum_maximum"] < inputs["vocabulary"] < 100 and 0 < inputs["length"] < 100):
        raise ValueError("no set of a tiny model")
    return InputSet(**{name: inputs[name] for name in _CONDITIONS})


def refitted(content: Content, refit: Callable[[Content], Content]) -> Content:
    """What a forger does to the rest, as far as what was changed allows it."""
    try:
        return refit(content)
    except Exception:  # whatever was changed may be needed for it
        return content


# -- one change ---------------------------------------------------------------------------------------------------

_NUMBERS = (2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, -1, 10**300, 10**3000, 10**4000)
_FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-310, 1e308, 3.0, float("nan"), float("inf"), float("-inf"))
_TEXTS = ("", "exact", "loss", "one-hot", "a\nb", "\ud800", "x" * 300, "0" * 64)
_PIECES = (
    "NaN", "-Infinity", "1e999", "9" * 5000, "[" * 10**5, '"size": 1, ', "{}", "\ufeff", "\x00", ",", "null", "0",
)  # fmt: skip


def value(rng: Random, depth: int = 2) -> Any:
    """Anything that JSON can hold."""
    kind = rng.randint(0, 6 if depth else 4)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.randint(-2, 70)
    if kind == 2:
        return rng.choice(_NUMBERS)
    if kind == 3:
        return rng.choice(_FLOATS)
    if kind == 4:
        return rng.choice(_TEXTS)
    items = [value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return items if kind == 5 else dict(zip(("kind", "size", "x\n"), items, strict=False))


def places(content: Any, path: Path = ()) -> Iterator[Path]:
    """All places in a content, lists and objects included."""
    if path:
        yield path
    if isinstance(content, dict):
        for key, item in content.items():
            yield from places(item, (*path, key))
    elif isinstance(content, list):
        for index, item in enumerate(content):
            yield from places(item, (*path, index))


def at(content: Any, path: Sequence[str | int]) -> Any:
    """What stands at a place."""
    for key in path:
        content = content[key]
    return content


def change(rng: Random, content: Content) -> None:
    """Change one place in any way: another value, nothing, twice, or in another's place."""
    # A field first, or nearly all places would be numbers of the evidence.
    key = rng.choice(sorted(content))
    *way, last = rng.choice([(key, *path) for path in ((), *places(content[key]))])
    target = at(content, way)
    kinds = ["replaced", "removed"] + (["twice", "swapped"] if isinstance(target, list) else [])
    kind = rng.choice(kinds)
    if kind == "replaced":
        target[last] = value(rng)
    elif kind == "removed":
        del target[last]
    elif kind == "twice":
        target.insert(last, copy_of({"": target[last]})[""])
    else:
        other = rng.randint(0, len(target) - 1)
        target[last], target[other] = target[other], target[last]


def nudge(rng: Random, content: Content) -> None:
    """Change one number of the claim or its evidence by a little."""
    by_name = _numbers_of(content)
    claimed = {"count", "wrong", "proxy_wrong", "tokens", "at_least", "at_most"}
    # What claims more, rather than other ways to show the same.
    name = rng.choice(sorted(by_name) + 2 * sorted(by_name.keys() & claimed))
    *way, last = rng.choice(by_name[name])
    target = at(content, way)
    if name == "tokens":
        target[last] ^= 1 << rng.randint(0, 3)
        return
    by = rng.choice((-64, -8, -1, -1, -1, 1, 1, 2, 8, 64))
    # Losses are counted in 2^-50 nats.
    in_nats = content["quantity"] == "loss" and name.startswith("at_")
    target[last] += by * 2**20 if in_nats else by


def _numbers_of(content: Content) -> dict[str, list[Path]]:
    """Where the numbers stand that claim or show something, by the name of their field."""
    names = {"tops", "powers", "multipliers", "width", "refine", "minimum_maximum"}
    names |= {"count", "wrong", "proxy_wrong", "tokens", "at_least", "at_most"}
    found: dict[str, list[Path]] = {}
    for path in places(content):
        name = [key for key in path if isinstance(key, str)][-1]
        if name in names and type(at(content, path)) is int:
            found.setdefault(name, []).append(path)
    return found


def splice(rng: Random, content: Content, other: Content) -> None:
    """Put a field, or a part of the evidence, of another certificate in the place of its own."""
    key = rng.choice(("inputs", "proxy", "pieces", "boxes", "blocks", "strategy", "quantity", "parameters", "piece"))
    if key == "piece" and content["pieces"] and other["pieces"]:
        content["pieces"][rng.randrange(len(content["pieces"]))] = copy_of(rng.choice(other["pieces"]))
    elif key != "piece":
        content[key] = copy_of({"": other[key]})[""]


def scribble(rng: Random, text: str) -> str:
    """Change the text of a file in one to three places."""
    for _ in range(rng.randint(1, 3)):
        begin = rng.randint(0, len(text))
        end = rng.randint(begin, min(len(text), begin + 20))
        kind = rng.randint(0, 2)
        piece = text[begin:end] * 2
        if kind == 0:
            piece = rng.choice(_PIECES)
        elif kind == 1:
            piece = "".join(rng.choice('0123456789.eE+-[]{}",: \n') for _ in range(rng.randint(0, 6)))
        text = text[:begin] + piece + text[end:]
    return text


def belongs(content: Mapping[str, Any], sha256: str) -> Content:
    """The content as if it had been made for the weights of another model."""
    return restated(dict(content) | {"subject": content["subject"] | {"weights_sha256": sha256}})
