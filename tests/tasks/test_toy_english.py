"""Toy English: every prompt read again by a parser of its own, no leaks into training, frozen words and draws."""

import hashlib
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from random import Random

import numpy as np
import pytest

from assay import AssayError
from assay.tasks import NO_TOKEN, UNSCORED, Split, Task, ToyEnglish, tasks
from assay.tasks.toy_english import (
    BOS,
    CONTEXT,
    GRAMMARS,
    ID,
    MIX,
    PAD,
    VOCABULARY,
    document,
    tokenizer,
    training_scene,
)

ALL = [(asks, name) for asks in GRAMMARS for name in ToyEnglish(asks).split_names]
EVALUATED = [(asks, name) for asks, name in ALL if name != "train"]
SHOWN = {
    ("successor", "iid"), ("facts", "iid"), ("facts", "recall"), ("facts", "both"), ("facts", "popular"),
    ("facts", "rare"), ("successor", "two"),
}  # fmt: skip
"""What is memorised, and so was shown (two terms as the first of three)."""

SOME = 40


@cache
def split(asks: str, name: str, counterfactual: str | None = None) -> Split:
    return ToyEnglish(asks, counterfactual).split(name, SOME)


def words(tokens) -> list[str]:
    return [VOCABULARY[token] for token in tokens if token not in (BOS, PAD)]


def rows(of: Split):
    """Prompt, counterfactual, all answers, foils and the kind of every pair, in words."""
    assert of.counterfactuals is not None
    assert of.answers is not None
    assert of.foils is not None
    for row in range(len(of)):
        (at,) = np.flatnonzero(of.kinds[row] != UNSCORED).tolist()
        assert at == of.lengths[row] - 1, "the prediction is made at the last token"
        also = [] if of.also_right is None else of.also_right[row, at].tolist()
        answers = [of.answers[row, at], *(token for token in also if token != NO_TOKEN)]
        foils = [token for token in np.atleast_1d(of.foils[row, at]).tolist() if token != NO_TOKEN]
        yield (
            words(of.tokens[row, : at + 1]),
            words(of.counterfactuals[row, : at + 1]),
            set(words(answers)),
            set(words(foils)),
            int(of.kinds[row, at]),
        )


@cache
def training() -> list[list[str]]:
    """Training sentences in words."""
    random = Random("a stream of one's own")
    return [words(document(random).tokens) for _ in range(6_000)]


# -- readers that know nothing of how prompts are made --------------------------------------------------------------


def listed(text: str) -> list[str]:
    return text.split()


NAMES = set(
    listed(
        "mary john anna tom lucy paul emma jack sara david kate mark nina oscar julia peter laura simon alice henry "
        "clara frank diana george helen martin ruth felix vera hugo ivan olga bruno rita edgar tina"
    )
)
COLOURS = set(listed("red blue green grey black white pink brown"))
SERIES = [
    listed("monday tuesday wednesday thursday friday saturday sunday"),
    listed("january february march april may june july august september october november december"),
    list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    listed(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen twenty"
    ),
    listed(
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
        "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
    ),
]
VERBS = listed("run sleep sing wait smile fall jump work talk laugh")


def read_ioi(said: list[str]) -> set[str]:
    """The names of the last sentences that are said once."""
    if said[1:5] == ["was", "here", "today", "."]:
        said = said[5:]
    names = [word for word in said if word in NAMES]
    return {name for name in names if names.count(name) == 1}


def read_greater(said: list[str]) -> set[str]:
    century, ending = (said[said.index("from") + 3], said[said.index("from") + 4])
    assert said[-1] == century
    return {f"{later:02}" for later in range(int(ending) + 1, 100)}


def read_induction(said: list[str]) -> set[str]:
    """The word behind where the last one was before."""
    return {said[said.index(said[-1]) + 1]}


def read_successor(said: list[str]) -> set[str]:
    (series,) = (one for one in SERIES if said[1] in one)
    places = [series.index(word) for word in said[1:]]
    steps = {(later - earlier) % len(series) for earlier, later in pairwise(places)}
    assert len(steps) == 1
    return {series[(places[-1] + steps.pop()) % len(series)]}


def read_agreement(said: list[str]) -> set[str]:
    return set(VERBS) if said[1].endswith("s") else {f"{verb}s" for verb in VERBS}


def read_coloured(said: list[str]) -> set[str]:
    shown = {thing: colour for colour, thing in pairwise(said) if colour in COLOURS}
    assert len(set(shown.values())) == len(shown), "every colour is there once"
    return {shown[said[-1]]}


def read_choice(said: list[str]) -> set[str]:
    """The label in front of the colour that the thing asked for has; every label where it has none."""
    text = " ".join(said)
    asked = re.search(r"what colour is the (\w+) \?", text)
    assert asked is not None
    labels = {colour: label for label, colour in pairwise(text.split(" ? ")[1].split()) if colour in COLOURS}
    state = re.search(rf"the {asked[1]} is (\w+) \.", text)
    assert state is not None
    return set(labels.values()) if state[1] == "here" else {labels[state[1]]}


def read_docstring(said: list[str]) -> set[str]:
    inside = said[said.index("(") + 1 : said.index(")")]
    arguments = [word for word in inside if word != ","]
    explained = [following for word, following in pairwise(said) if word == "param"]
    assert explained == arguments[: len(explained)]
    return {arguments[len(explained)]}


READERS: dict[str, Callable[[list[str]], set[str]]] = {
    "ioi": read_ioi, "greater": read_greater, "induction": read_induction, "successor": read_successor,
    "agreement": read_agreement, "coloured": read_coloured, "choice": read_choice, "docstring": read_docstring,
}  # fmt: skip


@pytest.mark.parametrize(("asks", "name"), [one for one in ALL if one[0] in READERS])
def test_every_prompt_is_answered_as_it_is_read(asks, name):
    for said, _, answers, foils, _ in rows(split(asks, name)):
        found = READERS[asks](said)
        if (asks, name) == ("choice", "open"):
            assert answers == {"A"}
            assert answers | foils <= found
        else:
            assert answers == found, said
            assert not foils & found


@pytest.mark.parametrize(
    ("asks", "changed"),
    [(asks, changed) for asks in READERS for changed in GRAMMARS[asks].counterfactuals if changed not in ("abc", "01")],
)
def test_a_counterfactual_makes_the_foils_right(asks, changed):
    for name in ToyEnglish(asks).split_names:
        for said, other, answers, foils, _ in rows(split(asks, name, changed)):
            assert len(said) == len(other)
            if changed == "third":
                assert answers < READERS["ioi"](other)
                assert not foils <= answers
            else:
                assert foils == READERS[asks](other), (said, other)
            assert set(other) <= ID.keys()


def test_a_counterfactual_changes_what_it_says_and_nothing_else():
    different = {
        asks: [
            {(was, now) for was, now in zip(said, other, strict=True) if was != now}
            for said, other, *_ in rows(split(asks, "iid"))
        ]
        for asks in ("ioi", "greater", "induction", "agreement", "coloured", "choice", "docstring")
    }
    for changes in different.values():
        assert all(len(one) == 1 for one in changes)
    assert all(now == "01" for ((_, now),) in different["greater"])
    for said, other, _, foils, _ in rows(split("ioi", "iid", "abc")):
        names = [word for word in other if word in NAMES]
        assert len(set(names)) == 3
        assert not set(names) & set(said)
        assert foils < set(said)


def test_three_names_two_of_which_give():
    for said, _, _, foils, _ in rows(split("ioi", "three", "abc")):
        names = [word for word in said if word in NAMES]
        assert set(names[:3]) > set(names[3:]) == foils
        assert len(names) == 5


# -- facts: what the training sentences say -------------------------------------------------------------------------


@cache
def facts_shown() -> dict[tuple[str, str], set[str]]:
    """Of every entity and relation, the objects that training gives it."""
    objects = {
        "origin": listed("gallia teria norland ostmark veldt lusia karpia moravia rhodes islay"),
        "food": listed("rice beans fish bread cheese soup corn plums nuts cake"),
        "music": listed("flute harp horn violin piano guitar trumpet cello organ lute"),
    }
    found: dict[tuple[str, str], set[str]] = {}
    random = Random("facts")
    for _ in range(8_000):
        scene = training_scene(random, GRAMMARS["facts"])
        (told,) = scene.answers
        relation = next(name for name, words in objects.items() if told in words)
        assert relation == relation_of(scene.text.split())
        found.setdefault((entity_of(scene.text.split()), relation), set()).add(told)
    return found


def relation_of(said: list[str]) -> str:
    if {"comes", "born", "home"} & set(said):
        return "origin"
    return "food" if {"eats", "eat", "food"} & set(said) else "music"


def entity_of(said: list[str]) -> str:
    at = next(place for place, word in enumerate(said) if word.startswith("-"))
    return f"{said[at - 1]} {said[at]}"


def test_training_never_contradicts_itself_about_facts():
    assert len(facts_shown()) == 450
    assert all(len(objects) == 1 for objects in facts_shown().values())


def the_rule() -> dict[tuple[str, str], str]:
    """The object that most bearers of a suffix have; none where there is no majority."""
    by_suffix: dict[tuple[str, str], list[str]] = {}
    for (entity, relation), (found,) in ((key, tuple(value)) for key, value in facts_shown().items()):
        by_suffix.setdefault((entity.split()[1], relation), []).append(found)
    most = {key: max(set(found), key=found.count) for key, found in by_suffix.items()}
    return {key: one for key, one in most.items() if by_suffix[key].count(one) > len(by_suffix[key]) / 2}


@pytest.mark.parametrize("name", ToyEnglish("facts").split_names)
def test_facts_are_those_of_training_and_scenarios_follow_from_them(name):
    rule = the_rule()
    assert {suffix for suffix, _ in rule} == {"-ian", "-or", "-eth", "-uk", "-ash", "-im"}
    kinds = [kind.name for kind in ToyEnglish("facts").kinds]
    for said, other, answers, foils, kind in rows(split("facts", name)):
        entity, relation = entity_of(said), relation_of(said)
        ruled = rule.get((entity.split()[1], relation))
        shown = facts_shown().get((entity, relation))
        if kinds[kind] in ("recall", "both"):
            assert answers == shown
            assert (answers == {ruled}) == (kinds[kind] == "both")
        else:
            assert shown is None
            assert ruled is None if kinds[kind] == "guess" else answers == {ruled}
        assert foils == facts_shown()[entity_of(other), relation] != answers
        if kinds[kind] == "recall" and ruled is not None:
            assert foils == {ruled}
        assert relation_of(other) == relation
        if name not in ("train", "iid", "paraphrase"):
            assert kinds[kind] == {"popular": "recall", "rare": "recall"}.get(name, name)


# -- leaks ----------------------------------------------------------------------------------------------------------


@cache
def training_parts() -> set[str]:
    """Every run of words in training sentences that could be a prompt: from a sentence's start to any word."""
    found = set()
    for said in training():
        starts = [0, *(place + 1 for place, word in enumerate(said) if word == ".")]
        for start in starts:
            for end in range(start + 2, len(said) + 1):
                found.add(" ".join(said[start:end]))
    return found


@pytest.mark.parametrize(("asks", "name"), EVALUATED)
def test_no_prompt_is_trained_on(asks, name):
    shown = {" ".join(said) for said, *_ in rows(split(asks, name))} & training_parts()
    if (asks, name) in SHOWN:
        assert shown
    else:
        assert not shown


def of_training(pattern: str) -> set[tuple[str, ...]]:
    return {found for said in training() for found in re.findall(pattern, " ".join(said))}


def test_no_part_that_makes_a_shift_is_trained_on():
    gives = [said for said in training() if said[-3] == "to" and said[-2] in NAMES]
    assert len(gives) > 300
    pairs = {tuple(sorted({word for word in said if word in NAMES and said.count(word) == 2} | {said[-2]}))
             for said in gives}  # fmt: skip
    assert not pairs & {
        tuple(sorted({word for word in said if word in NAMES})) for said, *_ in rows(split("ioi", "pairs"))
    }
    taken = {said[-2] for said in gives}
    assert len(taken) == 26
    assert not taken & {answer for _, _, answers, *_ in rows(split("ioi", "never_io")) for answer in answers}
    outside = {answer for _, _, answers, *_ in rows(split("ioi", "outside_io")) for answer in answers}
    assert len(outside) == 5
    assert not any(outside & set(said) for said in gives)

    years = of_training(r"the (\w+) lasted from the year (\d\d) (\d\d) to the year")
    nouns, centuries, endings = (set(part) for part in zip(*years, strict=True))

    def part_of(name: str, back: int) -> set[str]:
        return {said[said.index("from") + back] for said, *_ in rows(split("greater", name))}

    assert len(part_of("endings", 4)) == 8
    assert not part_of("endings", 4) & endings
    assert part_of("centuries", 3) == {"10", "18", "19"}
    assert not part_of("centuries", 3) & centuries
    new_nouns = {said[1] for said, *_ in rows(split("greater", "nouns"))}
    assert len(new_nouns) == 4
    assert not new_nouns & nouns
    assert "01" in endings, "the counterfactual's year is in distribution"

    coloured = of_training(r"(red|blue|green|grey|black|white|pink|brown) (ring|cup|pen|book|key|ball|hat|lamp|box|coin"
                           r"|bag|clock|drum|kite|vase|rope)")  # fmt: skip
    coloured |= {(colour, thing) for thing, colour in of_training(r"the (\w+) is (\w+) \. question")}
    new = {
        (colour, said[-1])
        for said, _, answers, *_ in rows(split("coloured", "pairs"))
        for colour in answers
    }  # fmt: skip
    assert new
    assert not new & coloured
    plain = {said[-1] for said, *_ in rows(split("coloured", "plain"))}
    assert plain == {"drum", "kite", "vase", "rope"}
    assert not plain & {thing for _, thing in coloured}

    three_terms = of_training(r"series (\w+) (\w+) (\w+)")
    for name in ("starts", "combinations"):
        assert not three_terms & {tuple(said[1:4]) for said, *_ in rows(split("successor", name))}
    subjects = [
        said[:-2] for said in training() if said[-2] in {*VERBS, *(f"{verb}s" for verb in VERBS)}
    ]  # fmt: skip
    assert len(subjects) > 150
    assert {said[-5:].count("the") for said in subjects} == {2}, "one noun behind the subject"
    assert all(len(said) == 5 or said[-6] == "." for said in subjects)
    labels = of_training(r"\? ([\w ]+) answer")
    assert not {"W", "E", "01"} & {word for text in labels for word in text.split()}


# -- what is frozen -------------------------------------------------------------------------------------------------


def test_words_are_frozen():
    assert len(set(VOCABULARY)) == len(VOCABULARY) == 508
    digest = hashlib.sha256("\n".join(VOCABULARY).encode()).hexdigest()
    assert digest.startswith("edda6f805fdc"), (
        "a model knows its words by number: add at the end only, and raise VERSION"
    )


def test_every_word_occurs_in_training_but_the_padding():
    said = {word for text in training() for word in text}
    assert set(VOCABULARY) - said == {"<bos>", "<pad>"}


def test_draws_are_frozen_whatever_the_process():
    digest = hashlib.sha256()
    for asks, name in ALL:
        some = ToyEnglish(asks).split(name, 20)
        for array in (some.tokens, some.counterfactuals, some.answers, some.foils):
            digest.update(np.ascontiguousarray(array).astype("<i8").tobytes())
    random = Random("frozen")
    for _ in range(200):
        digest.update(bytes(str(document(random)), "ascii"))
    assert digest.hexdigest() == "4a966ba33af961f5ca2876253f6fb786e3494f26ba67150f6af3a6d381379689"


@pytest.mark.parametrize("asks", GRAMMARS)
def test_a_smaller_split_is_the_beginning_of_a_larger_one(asks):
    for name in ToyEnglish(asks).split_names:
        few, whole = ToyEnglish(asks).split(name, 7), split(asks, name).first(7)
        for array in ("tokens", "counterfactuals", "answers", "kinds", "lengths"):
            assert np.array_equal(getattr(few, array), getattr(whole, array)), array
        assert len({row.tobytes() for row in split(asks, name).tokens}) == len(split(asks, name))
    assert not np.array_equal(ToyEnglish(asks, seed=1).split("iid", 7).answers, few.answers)


@pytest.mark.parametrize("asks", GRAMMARS)
def test_it_is_a_task_that_is_registered(asks):
    task = tasks.build(f"toy-english/{asks}")
    assert isinstance(task, Task)
    assert task == ToyEnglish(asks)
    assert task.name == f"toy-english/{asks}"
    assert tasks.build(f"toy-english/{asks}:seed=3").seed == 3
    assert {kind.name for kind in task.kinds} | {"all"} >= {task.primary_kind}
    made = task.split("iid", 5)
    assert set(made.features) == {feature.name for feature in task.features}
    assert made.tokens.shape[1] <= CONTEXT


def test_the_tokenizer_reads_prompts_as_the_task_does_and_nothing_else():
    reader = tokenizer()
    for asks in GRAMMARS:
        of = split(asks, "iid")
        for row in range(3):
            tokens = of.tokens[row, : of.lengths[row]].tolist()
            assert reader(" ".join(words(tokens))).input_ids == tokens
    with pytest.raises(Exception, match="WordLevel"):
        reader("mary went to the moon")


def test_documents_hold_one_prompt_with_its_determined_predictions():
    random = Random("documents")
    sure = 0
    for _ in range(2_000):
        one = document(random)
        said = [VOCABULARY[token] for token in one.tokens]
        assert said[0] == "<bos>"
        assert said[-1] == "."
        assert len(said) <= CONTEXT
        assert one.sure[-3:] == [True, False, False], "the answer, which a full stop follows"
        places = np.flatnonzero(one.sure)
        assert (np.diff(places) == 1).all()
        if len(places) > 1:
            first = said[-2 * len(places) - 3 : -2 - len(places)]
            assert said[-2 - len(places) : -1] == first, "a list that is said again from its start to its end"
            assert len(set(first)) == len(first) == len(places) + 1
            sure += 1
    assert sure / 2_000 == pytest.approx(MIX["induction"] / sum(MIX.values()), abs=0.03)


def test_what_is_unknown_is_refused_with_what_is_known():
    with pytest.raises(AssayError, match="ioi"):
        ToyEnglish("iio")
    with pytest.raises(AssayError, match="third"):
        ToyEnglish("ioi", "thrid")
    with pytest.raises(AssayError, match="templates"):
        ToyEnglish("ioi").split("template", 3)
    with pytest.raises(AssayError, match="at least 1"):
        ToyEnglish("ioi").split("iid", 0)
