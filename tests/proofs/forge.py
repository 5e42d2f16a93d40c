"""What a forger does: change a certificate, and make the rest of it say the same."""

import json
from typing import Any

from pydantic import TypeAdapter

from assay.proofs import Certificate
from assay.proofs._certificate import Boxes, ProxyRecord, SubjectRecord, digest_of, statement_of
from assay.proofs.attention._boxes import correct_in_boxes
from assay.proofs.attention._proxy import describe
from assay.proofs.checker._common import groups, size_of
from assay.tasks import InputSet

_CONDITIONS = ("length", "vocabulary", "minimum_maximum", "within", "copies")


def copy_of(content: dict[str, Any]) -> dict[str, Any]:
    """The content, to be changed."""
    return json.loads(json.dumps(content))


def restated(content: dict[str, Any]) -> dict[str, Any]:
    """With the statement that belongs to the rest, and with the digest of all."""
    model = content["statement"].split(" The model: ")[-1].split(", in real arithmetic;")[0]
    proxy = None
    if content["proxy"] is not None:
        head = int(model.split("1/sqrt(")[1].split(")")[0])
        proxy = describe(TypeAdapter(ProxyRecord).validate_python(content["proxy"]), head)
    statement = statement_of(
        SubjectRecord.model_validate(content["subject"]),
        model=model,
        quantity=content["quantity"],
        inputs=InputSet(**{name: content["inputs"][name] for name in _CONDITIONS}),
        at_least=content["at_least"],
        at_most=content["at_most"],
        exact="one attention layer" in model and content["strategy"] in ("exact", "brute-force"),
        proxy=proxy,
    )
    return sealed(content | {"statement": statement})


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """With the digest of the rest."""
    return content | {"digest": digest_of(content)}


def consistent(content: dict[str, Any]) -> dict[str, Any]:
    """With the numbers of each piece, the totals, the statement and the digest that belong to the evidence."""
    content, size = copy_of(content), content["inputs"]["size"]
    free = content["inputs"]["length"] - 1
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
        inputs = InputSet(**{name: content["inputs"][name] for name in _CONDITIONS})
        content["at_least"] = correct_in_boxes([Boxes.model_validate(box) for box in content["boxes"]], inputs)
    return restated(content)


def certificate(content: dict[str, Any]) -> Certificate:
    """The certificate of this content."""
    return Certificate.model_validate(content)
