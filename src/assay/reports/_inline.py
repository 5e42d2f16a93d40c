"""Figures of matplotlib as they stand in a page: the same drawing in a fraction of the bytes, in the page's colours."""

import hashlib
import re
from base64 import b64encode
from collections import Counter
from io import BytesIO
from xml.etree import ElementTree

from matplotlib.figure import Figure
from PIL import Image

from assay.reports._style import INK, PALETTE, to_png, to_svg

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"

COLOURS = 32
"""Colours of a picture of dots: it has few, and a palette takes a third of the bytes."""

_DENSITY = 1.25 * 96
"""Dots to an inch: with two to a pixel of the page, such a picture alone would take a third of what a page may."""

_NUMBER = re.compile(r"-?\d*\.?\d+(?:e[-+]?\d+)?")
_WORTH_A_CLASS = 2
"""A style that stands so often is written once."""


def raster(figure: Figure, name: str, classes: str) -> str:
    """A figure of many dots, `name`, as an image in the page; what it shows is said around it."""
    picture = Image.open(BytesIO(to_png(figure, dpi=_DENSITY))).convert("RGB").quantize(COLOURS)
    buffer = BytesIO()
    picture.save(buffer, format="png", optimize=True)
    width, height = (round(96 * length) for length in figure.get_size_inches())
    data = b64encode(buffer.getvalue()).decode()
    return f'<img class="{classes}" width="{width}" height="{height}" alt="" src="data:image/png;base64,{data}">'


def inline(figure: Figure, name: str, classes: str) -> str:
    """A figure as SVG in the page: text and colours follow the page's mode, coordinates are to a tenth of a point.

    Its ids and classes begin with letters that are made of `name`, which no other figure of the page may have.
    """
    text = re.sub(r"^.*?(?=<svg)", "", to_svg(figure), flags=re.DOTALL).replace(INK, "currentColor")
    for number, colour in enumerate(PALETTE):
        text = text.replace(colour, f"var(--series{number})")
    root = ElementTree.fromstring(text)
    prefix = f"f{hashlib.sha256(name.encode()).hexdigest()[:4]}"
    _without_frames(root)
    _name_anew(root, prefix)
    styles = _classes(root, prefix)
    _together(root)
    for key in ("version", "id"):
        root.attrib.pop(key, None)
    root.set("class", classes)
    if styles is not None:
        root.insert(0, styles)
    return _serialized(root)


def _without_frames(parent: ElementTree.Element) -> None:
    """Take out what is not seen: metadata, groups that say nothing, and empty ones."""
    kept: list[ElementTree.Element] = []
    for child in parent:
        tag = child.tag.removeprefix(_SVG)
        if tag == "path" and not child.get("d", "").strip():
            continue
        if tag in ("metadata", "style"):
            continue
        _without_frames(child)
        if tag == "g":
            child.attrib.pop("id", None)
            if not child.attrib:
                kept += list(child)
                continue
        if tag in ("g", "defs") and not len(child):
            continue
        kept.append(child)
    parent[:] = kept


def _name_anew(root: ElementTree.Element, prefix: str) -> None:
    """Short ids, and only where something refers to them; what is defined twice is defined once."""
    used = {one.get(_LINK, "").removeprefix("#") for one in root.iter()}
    used |= {
        found for one in root.iter() for value in one.attrib.values() for found in re.findall(r"#([\w-]+)\)", value)
    }
    names: dict[str, str] = {}
    first: dict[bytes, str] = {}
    for parent in list(root.iter()):
        for child in list(parent):
            old = child.attrib.pop("id", None)
            if old is None or old not in used:
                continue
            known = first.setdefault(ElementTree.tostring(child), f"{prefix}{len(first)}")
            if known in names.values():
                parent.remove(child)
            else:
                child.set("id", known)
            names[old] = known
    for one in root.iter():
        if _LINK in one.attrib:
            target = one.attrib.pop(_LINK)  # of an image, its data
            one.set("href", f"#{names[target[1:]]}" if target.startswith("#") else target)
        for key, value in one.attrib.items():
            one.set(key, re.sub(r"#([\w-]+)\)", lambda found: f"#{names[found[1]]})", value))
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag == f"{_SVG}defs" and not len(one)]:
            parent.remove(child)


def _classes(root: ElementTree.Element, prefix: str) -> ElementTree.Element | None:
    """Write styles that stand often as classes; gives their sheet. Fonts are those of the page."""
    for one in root.iter():
        if one.tag == f"{_SVG}text":
            _as_text_of_the_page(one)
        if "style" in one.attrib:
            one.set("style", one.attrib["style"].replace(": ", ":").replace("; ", ";"))
    counted = Counter(one.get("style", "") for one in root.iter())
    often = [style for style, number in counted.most_common() if style and number >= _WORTH_A_CLASS]
    names = {style: f"{prefix}{_letter(number)}" for number, style in enumerate(often)}
    for one in root.iter():
        if one.get("style") in names:
            one.set("class", names[one.attrib.pop("style")])
    if not names:
        return None
    sheet = ElementTree.Element(f"{_SVG}style")
    sheet.text = "".join(f".{name}{{{style}}}" for style, name in names.items())
    return sheet


def _letter(number: int) -> str:
    """A name for a number that is none of the figures of an id's."""
    return f"{chr(ord('g') + number % 20)}{number // 20 or ''}"


def _together(parent: ElementTree.Element) -> None:
    """Say once what siblings share: paths of one line's style become one path, marks of one kind one group."""
    kept: list[ElementTree.Element] = []
    for child in parent:
        _together(child)
        if child.tag == f"{_SVG}g" and set(child.attrib) <= {"clip-path"} and len(child) == 1:
            # What holds one thing says of it what the thing may say itself.
            [only] = child
            if not {"clip-path", "transform"} & set(only.attrib):
                only.attrib.update(child.attrib)
                child = only  # noqa: PLW2901
        last = kept[-1] if kept else None
        is_use = child.tag == f"{_SVG}use"
        if last is not None and child.tag == last.tag == f"{_SVG}path" and _same(child, last, "d"):
            last.set("d", f"{last.attrib['d']} {child.attrib['d']}")
        elif last is not None and is_use and last.get("of") == "uses" and _same(child, last[0], "x", "y"):
            last.append(child)
        elif is_use:
            group = ElementTree.Element(f"{_SVG}g", {"of": "uses"})
            group.append(child)
            kept.append(group)
        else:
            kept.append(child)
    for group in kept:
        if group.attrib.pop("of", None):
            shared = {key: value for key, value in group[0].attrib.items() if key in ("class", "style", "clip-path")}
            group.attrib.update(shared)
            for one in group:
                for key in shared:
                    one.attrib.pop(key)
    parent[:] = kept


def _same(one: ElementTree.Element, other: ElementTree.Element, *apart: str) -> bool:
    """Whether two marks differ in these attributes alone; nothing refers to them, and as paths they are open lines."""
    plain = [{key: value for key, value in mark.attrib.items() if key not in apart} for mark in (one, other)]
    return plain[0] == plain[1] and "id" not in one.attrib and "z" not in one.get("d", "").lower()


def _as_text_of_the_page(text: ElementTree.Element) -> None:
    """Its size and place, and the page's own font."""
    kept = [part for part in text.get("style", "").split("; ") if not part.startswith(("font", "fill: currentColor"))]
    size = re.search(r"font(?:-size)?: (?:\w+ )*?(\d[\d.]*)px", text.get("style", ""))
    if size is not None and float(size[1]) != 9:
        kept.append(f"font-size: {size[1]}px")
    text.attrib.pop("style", None)
    if kept:
        text.set("style", "; ".join(kept))
    turned = text.get("transform", "")
    if turned.startswith("rotate(-0 "):
        text.attrib.pop("transform")
    for key in ("x", "y", "transform"):
        if key in text.attrib:
            text.set(key, _short(text.attrib[key]))


def _short(coordinates: str) -> str:
    """Numbers to a tenth, without what need not be written."""

    def number(found: re.Match[str]) -> str:
        value = f"{round(float(found[0]), 1):g}"
        return "0" if value == "-0" else value

    return _NUMBER.sub(number, coordinates)


def _path(data: str) -> str:
    """The data of a path without spaces that need not be there."""
    short = re.sub(r"\s*([A-Za-z])\s*", r"\1", re.sub(r"\s+", " ", _short(data))).replace(" -", "-").strip()
    return _STRAIGHT.sub(_straight, short)


_STRAIGHT = re.compile(r"M(-?[\d.]+)[ ]?(-?[\d.]+)L(-?[\d.]+)[ ]?(-?[\d.]+)")
"""The start of a path that is, most often, all of it: the line of an interval or of a grid."""


def _straight(found: re.Match[str]) -> str:
    """Level and upright lines, shorter."""
    x, y, to_x, to_y = found.groups()
    if y == to_y:
        return f"M{x} {y}H{to_x}"
    return f"M{x} {y}V{to_y}" if x == to_x else found[0]


def _serialized(root: ElementTree.Element) -> str:
    for one in root.iter():
        if "d" in one.attrib:
            one.set("d", _path(one.attrib["d"]))
        for key in ("x", "y", "width", "height"):
            if key in one.attrib and one is not root and one.tag != f"{_SVG}image":
                one.set(key, _short(one.attrib[key]))
        one.tag = one.tag.removeprefix(_SVG)
        one.tail = None
        if one.tag not in ("text", "style", "tspan"):
            one.text = None
    return ElementTree.tostring(root, encoding="unicode")
