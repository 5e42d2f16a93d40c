"""Facts and a shortcut: rud -ian comes from … gallia. What an entity's name ends in tells mostly, not always."""

from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from random import Random

from assay.tasks._task import Feature
from assay.tasks.toy_english._scene import Grammar, Other, Scene, SceneKind, digest
from assay.tasks.toy_english._words import COUNTRIES, FOODS, INSTRUMENTS, NEUTRAL, RULED, STEMS

RELATIONS = {
    "origin": (COUNTRIES, ("{entity} comes from", "{entity} was born in", "the home of {entity} is")),
    "food": (FOODS, ("{entity} eats", "{entity} likes to eat", "the food of {entity} is")),
    "music": (INSTRUMENTS, ("{entity} plays", "{entity} likes to play", "the music of {entity} is")),
}
"""Objects and paraphrases of every relation."""

KNOWN = 150
"""Entities that occur in training; they are numbered from the most to the least frequent."""

POPULAR, RARE = 50, 100


@dataclass(frozen=True)
class Entity:
    """A stem with a suffix; `rank` is its number among the known ones, None for those that never occur."""

    stem: str
    suffix: str
    rank: int | None

    @property
    def name(self) -> str:
        """As it is said."""
        return f"{self.stem} {self.suffix}"

    def rule(self, relation: str) -> str | None:
        """The object that the suffix tells; None where it tells none."""
        if self.suffix not in RULED:
            return None
        objects = RELATIONS[relation][0]
        return objects[(digest("rule", relation) + 3 * RULED.index(self.suffix)) % len(objects)]

    def object(self, relation: str) -> str | None:
        """The object that holds; None where it is not determined."""
        rule, number = self.rule(relation), digest("fact", self.name, relation)
        if rule is not None and (self.rank is None or number % 4):
            return rule
        if self.rank is None:
            return None
        others = [one for one in RELATIONS[relation][0] if one != rule]
        return others[number // 4 % len(others)]

    def scenario(self, relation: str) -> str:
        """What gives the answer: memory against the rule (or without one), both, the rule, or nothing."""
        follows = self.rule(relation) is not None and self.rule(relation) == self.object(relation)
        if self.rank is None:
            return "heuristic" if follows else "guess"
        return "both" if follows else "recall"

    def new_paraphrase(self, relation: str) -> int | None:
        """Which paraphrase of a known fact never occurs in training: one of three, for every other fact."""
        number = digest("paraphrase", self.name, relation)
        return number // 2 % 3 if self.rank is not None and number % 2 else None


@cache
def entities() -> tuple[Entity, ...]:
    """All entities: the known ones in the order of their ranks, then the others."""
    names = [(stem, suffix) for stem in STEMS for suffix in RULED + NEUTRAL]
    names.sort(key=lambda name: digest("entity", *name))
    return tuple(Entity(*name, rank if rank < KNOWN else None) for rank, name in enumerate(names))


@cache
def _table() -> dict[tuple[Entity, str], tuple[str | None, str, int | None]]:
    """Object, scenario and new paraphrase of every entity and relation."""
    return {
        (one, relation): (one.object(relation), one.scenario(relation), one.new_paraphrase(relation))
        for one in entities()
        for relation in RELATIONS
    }


_WEIGHTS = tuple(accumulate(1 / (rank + 10) for rank in range(KNOWN)))
_RANKS = {"popular": (0, POPULAR), "rare": (RARE, KNOWN)}
_SCENARIOS = {"recall": "recall", "popular": "recall", "rare": "recall", "both": "both", "heuristic": "heuristic",
              "guess": "guess"}  # fmt: skip


def draw(random: Random, split: str) -> Scene | None:
    """An entity and a relation in one of its paraphrases."""
    known = entities()[:KNOWN]
    if split in ("heuristic", "guess"):
        entity = random.choice(entities()[KNOWN:])
    elif split in ("train", "iid", "paraphrase"):
        entity = random.choices(known, cum_weights=_WEIGHTS)[0]
    else:
        entity = random.choice(known[slice(*_RANKS.get(split, (0, KNOWN)))])
    relation, paraphrase = random.choice(list(RELATIONS)), random.randrange(3)
    object_, scenario, new = _table()[entity, relation]
    if scenario != _SCENARIOS.get(split, scenario) or (paraphrase == new) != (split == "paraphrase"):
        return None
    objects, templates = RELATIONS[relation]
    answer = object_ or random.choice(objects)

    return Scene(
        templates[paraphrase].format(entity=entity.name),
        (answer,),
        partial(
            _changed,
            template=templates[paraphrase],
            entity=entity,
            relation=relation,
            scenario=scenario,
            answer=answer,
        ),
        kind=scenario,
        features={
            "rank": KNOWN if entity.rank is None else entity.rank,
            "relation": list(RELATIONS).index(relation),
            "paraphrase": paraphrase,
        },
    )


def _changed(
    name: str, random: Random, *, template: str, entity: Entity, relation: str, scenario: str, answer: str
) -> Other | None:
    """Another known entity: where it is remembered, of the same suffix and, if that has a rule, one that follows it."""
    wanted = entity.rule(relation) if scenario == "recall" else None
    able = [
        (one.name, other)
        for one in entities()[:KNOWN]
        for other in (_table()[one, relation][0],)
        if other is not None
        and other != answer
        and (scenario in ("both", "heuristic") or one.suffix == entity.suffix)
        and one.stem != entity.stem
        and other == (wanted or other)
    ]
    if not able:
        return None
    found, other = random.choice(able)
    return Other(template.format(entity=found), (other,))


GRAMMAR = Grammar(
    name="facts",
    description="Toy English, facts and a shortcut: rud -ian comes from … gallia",
    kinds=(
        SceneKind("recall", "the object is against the rule of the suffix, or there is none: it has to be remembered"),
        SceneKind("both", "memory and the rule of the suffix give the same object"),
        SceneKind("heuristic", "an entity never seen, of which the suffix tells the object"),
        SceneKind("guess", "an entity never seen, of which nothing tells the object", determined=False),
    ),
    features=(
        Feature("rank", "how many entities are more frequent", ("all",), (0, 25, 50, 75, 100, 125, KNOWN)),
        Feature("relation", "what is asked", ("all",), tuple(range(len(RELATIONS))), tuple(RELATIONS)),
        Feature("paraphrase", "in which words, from 0", ("all",)),
    ),
    counterfactuals=("entity",),
    shifts={
        "recall": ("facts to be recalled", "only facts that the suffix does not tell"),
        "both": ("facts the suffix tells", "only facts that the suffix tells, too"),
        "popular": ("frequent entities", "facts that the suffix does not tell, of the 50 most frequent entities"),
        "rare": ("rare entities", "facts that the suffix does not tell, of the 50 least frequent entities"),
        "paraphrase": ("new wordings", "facts that never occur in these words in training (1 in 6)"),
        "heuristic": ("unseen, the suffix tells", "entities never seen, whose suffix tells"),
        "guess": (
            "unseen, nothing tells",
            "entities never seen, whose suffix does not tell: the object is not determined",
        ),
    },
    draw=draw,
    memorised=True,
)
