"""Multiple choice with a bias: the ring is green. What colour is the ring? A black B red C green answer … C."""

from collections.abc import Sequence
from functools import partial
from random import Random

from assay.tasks._task import Feature
from assay.tasks.toy_english._coloured import is_new
from assay.tasks.toy_english._scene import Grammar, Other, Scene, SceneKind
from assay.tasks.toy_english._words import COLOURS, LETTERS, NUMBERS, PLAIN, THINGS

LABELS = LETTERS[:5]
FIRST, OPEN, FIRST_OPEN = 0.55, 0.12, 0.70
"""In training: how often the first label is right, a question cannot be answered, and the first is right then."""

_LABELS = {"letters": LETTERS[-4:], "numbers": NUMBERS[1:5]}
_EVEN = ("balanced", "letters", "numbers", "plain", "five", "distractor")


def draw(random: Random, split: str) -> Scene | None:
    """A statement, a question, two to four options (`five`: five), of which one is right.

    The first label is right more often than the others, except in the shifts.
    """
    labels = _LABELS.get(split, LABELS)
    count = 5 if split == "five" else 4 if split in ("letters", "numbers") else random.choice((2, 3, 4, 4))
    unanswerable = split == "open" or (split == "train" and random.random() < OPEN)
    first = FIRST_OPEN if unanswerable else FIRST
    if split == "last":
        right = count - 1
    elif split in _EVEN:
        right = random.randrange(count)
    else:
        right = 0 if random.random() < first else random.randrange(1, count)
    options = random.sample(COLOURS, count)
    thing = random.choice(PLAIN if split == "plain" else THINGS)
    if any(is_new(colour, thing) for colour in options) and split != "plain":
        return None
    between = ""
    if split == "distractor":
        wrong = random.choice([place for place in range(count) if place != right])
        other = random.choice([one for one in THINGS if one != thing])
        if is_new(options[wrong], other):
            return None
        between = f" the {other} is {options[wrong]} ."

    if split == "open":
        right = 0
    listed = " ".join(f"{label} {colour}" for label, colour in zip(labels, options, strict=False))
    frame = f"the {thing} is {{}} .{between} question : what colour is the {thing} ? {listed} answer"
    return Scene(
        frame.format("here" if unanswerable else options[right]),
        (labels[right],),
        partial(_changed, frame=frame, labels=labels, options=options, right=right),
        kind="open" if unanswerable else "answer",
        features={"options": count, "gold": right},
    )


def _changed(
    name: str, random: Random, *, frame: str, labels: Sequence[str], options: Sequence[str], right: int
) -> Other:
    other = random.choice([place for place in range(len(options)) if place != right])
    return Other(frame.format(options[other]), (labels[other],))


GRAMMAR = Grammar(
    name="choice",
    description="Toy English, biased multiple choice: the ring is green . … A black B red C green answer … C",
    kinds=(
        SceneKind("answer", "the label of the option that was stated"),
        SceneKind(
            "open",
            "a label where nothing was stated; for the answer the first is given, the likeliest",
            determined=False,
        ),
    ),
    features=(
        Feature("options", "options", ("all",)),
        Feature("gold", "which of them is right, from 0", ("answer",)),
    ),
    counterfactuals=("colour",),
    shifts={
        "balanced": ("balanced answers", "every option is right equally often"),
        "last": ("the last option right", "the last option is right"),
        "plain": ("things never coloured", "a thing that never has a colour in training"),
        "five": ("five options", "five options"),
        "letters": ("labels W to Z", "the labels are W, X, Y and Z"),
        "numbers": ("labels 01 to 04", "the labels are 01 to 04"),
        "distractor": ("a distracting colour", "the colour of something else, an option, is stated last"),
        "open": ("nothing stated", "nothing is stated: the right label is not determined"),
    },
    draw=draw,
    inside=frozenset({"balanced", "last", "open"}),
)
