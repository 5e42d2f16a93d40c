"""`assert_faithful` on proxies of which it is known where they hold and where they do not."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import assay
from assay import AssayError
from assay.engine import Edit, EditedSubject, Engine, Head
from assay.faithfulness import JUDGEMENTS
from assay.faithfulness._assess import assess
from assay.faithfulness._verdicts import sequences_needed
from assay.subjects import Subject
from assay.tasks import UNSCORED, Dyck, Kind, Split
from assay.testing import Session, assert_faithful

SHORT, LONG = 8, 24


def random_split(subject, name, role, *, width, sequences, seed):
    tokens = np.random.default_rng(seed).integers(0, subject.vocabulary, (sequences, width))
    kinds = np.where(np.arange(width) == width - 1, UNSCORED, np.arange(width) % 2)
    return Split(
        name=name,
        role=role,
        description="random tokens",
        tokens=tokens,
        lengths=np.full(sequences, width),
        kinds=np.broadcast_to(kinds, tokens.shape).copy(),
    )


class TwoKinds:
    """Random tokens; predictions at even and at odd positions are of two kinds."""

    name = "two kinds"
    kinds = (Kind("even", "made at an even position"), Kind("odd", "made at an odd position"))
    primary_kind = "odd"
    features = ()
    split_names = ("train", "iid", "long")

    def __init__(self, subject):
        self.subject = subject

    def split(self, name, sequences):
        width = LONG if name == "long" else SHORT
        role = {"train": "train", "iid": "iid", "long": "shift"}[name]
        seed = self.split_names.index(name)
        return random_split(self.subject, name, role, width=width, sequences=sequences, seed=seed)

    def describe(self):
        return {}


@pytest.fixture(scope="module")
def subject():
    """A random model whose predictions hang on what its attention gathers."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=23, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.h[0].attn.c_proj.weight.mul_(8)
    return Subject(model, None, "random")


@pytest.fixture(scope="module")
def two_kinds(subject):
    return TwoKinds(subject)


@pytest.fixture(scope="module")
def splits(two_kinds):
    return [two_kinds.split(name, 200) for name in ("iid", "long")]


@pytest.fixture(scope="module")
def session():
    return Session()


def blind_beyond(subject, position, *, only_odd=False):
    """A proxy whose first layer attends to the first token alone from `position` on; the subject before."""

    def pattern(weights, visible):
        query = torch.arange(weights.shape[1])
        changed = (query >= position) & ((query % 2 == 1) | (not only_odd))
        first = torch.zeros_like(weights)
        first[..., 0] = 1
        return torch.where(changed[None, :, None], first, weights)

    return EditedSubject(subject, [Edit(head, pattern=pattern) for head in Engine(subject).site("layer0").places])


@pytest.fixture(scope="module")
def identity(subject):
    return EditedSubject(subject, [Edit(Head(0, 0), queries=lambda queries: queries)])


def failure(*arguments, **options):
    with pytest.raises(AssertionError) as caught:
        assert_faithful(*arguments, **options)
    return str(caught.value)


def limits_of(where, message):
    """The limits of an agreement in a message, in per cent."""
    found = re.search(rf"{where} +agrees on [\d.]+% \[([\d.]+)%, ([\d.]+)%\]", message)
    return float(found[1]), float(found[2])


def test_a_proxy_that_changes_nothing_passes(subject, identity, splits, two_kinds):
    assert_faithful(subject, identity, splits)
    assert_faithful(subject, identity, two_kinds, sequences=200)
    assert_faithful(subject, identity, splits, task=two_kinds, kinds=("all", "even", "odd"))


def test_a_proxy_that_breaks_on_long_sequences_fails_there_and_only_there(subject, splits, session):
    proxy = blind_beyond(subject, SHORT)
    message = failure(subject, proxy, splits, session=session)
    assert message.startswith("NOT FAITHFUL: EditedSubject(")
    rows = {line.split(",")[0].split()[-1]: line.split()[0] for line in message.splitlines()[2:4]}
    assert rows == {"long": "fails", "iid": "holds"}
    low, high = limits_of("iid, all", message)
    assert low == pytest.approx(100 * 0.025 ** (1 / 200), abs=0.25), "Clopper and Pearson's limit, by 2,000 draws"
    assert high == 100
    assert "] of 1,400 predictions in 200 sequences" in message
    assert "more sequences will not change it" in message
    assert "gap [+" in message
    assert_faithful(subject, proxy, splits, max_gap=1.0, session=session)


def test_a_proxy_that_breaks_everywhere_fails_in_distribution(subject, splits, session):
    message = failure(subject, blind_beyond(subject, 1), splits, session=session)
    assert message.splitlines()[2].split()[:2] == ["fails", "iid,"]


def test_the_kind_that_failed_is_named(subject, splits, two_kinds, session):
    proxy = blind_beyond(subject, SHORT, only_odd=True)
    assert_faithful(subject, proxy, splits, task=two_kinds, kinds=("even",), max_gap=0.05, session=session)
    message = failure(subject, proxy, splits, task=two_kinds, kinds=("even", "odd"), max_gap=0.05, session=session)
    standing = {" ".join(line.split()[1:3]): line.split()[0] for line in message.splitlines()[2:6]}
    assert standing == {"long, odd": "fails", "long, even": "holds", "iid, odd": "holds", "iid, even": "holds"}
    of_all = failure(subject, proxy, splits, task=two_kinds, kinds=("all",), session=session)
    assert "lowest on long: odd " in of_all


def test_the_default_kind_is_the_primary_one(subject, splits, two_kinds, session):
    proxy = blind_beyond(subject, SHORT, only_odd=True)
    message = failure(subject, proxy, two_kinds, sequences=200, session=session)
    assert "long, odd" in message
    assert "long, even" not in message


def test_too_little_data_is_told_apart_from_unfaithful(subject, identity, splits):
    message = failure(subject, identity, splits, sequences=40)
    assert message.startswith("NOT DECIDED (too little data to tell): EditedSubject(")
    assert "fails" not in message
    low, high = limits_of("iid, all", message)
    assert low == pytest.approx(100 * 0.025 ** (1 / 40), abs=1.2)
    assert high == 100
    assert "sequences a split decide" in message


@pytest.mark.parametrize("sequences", [40, 100])
def test_the_number_of_sequences_that_it_asks_for_decides(subject, identity, two_kinds, sequences):
    message = failure(subject, identity, two_kinds, sequences=sequences)
    wanted = int(message.rsplit("about ", 1)[1].split(" ", 1)[0].replace(",", ""))
    assert sequences < wanted <= 400
    assert_faithful(subject, identity, two_kinds, sequences=wanted)


def test_without_disagreement_about_183_sequences_are_enough(subject, identity, two_kinds):
    """Clopper-Pearson: 1 - 0.025^(1/183) = 0.02, and 0.025^(1/72) = 0.95; by draws, so more and fewer are asked."""
    assert_faithful(subject, identity, two_kinds, sequences=210)
    assert "undecided  long, " in failure(subject, identity, two_kinds, sequences=160)
    assert "holds      iid, " in failure(subject, identity, two_kinds, sequences=82)
    assert "undecided  iid, " in failure(subject, identity, two_kinds, sequences=63)


def test_the_advice_on_sequences_is_that_of_the_verdicts(subject, two_kinds):
    """One way to do it: what `sequences_needed` says of the numbers of the findings that are undecided."""
    proxy, splits = blind_beyond(subject, SHORT, only_odd=True), [two_kinds.split(name, 60) for name in ("iid", "long")]
    options = {"seed": 0, "resamples": 500, "level": 0.95, "min_agreement": 0.95}
    arguments = Engine(subject), proxy, two_kinds, splits
    near = assess(*arguments, kinds=("odd",), max_gap=0.02, **options).findings[1].value - 0.04
    result = assess(*arguments, kinds=("odd",), max_gap=near, **options)
    undecided = [finding for finding in result.findings if finding.standing == "undecided"]
    assert undecided
    needed = [
        sequences_needed(60, one.value, one.low, one.high, one.bound, without_errors=one.agreement == 1)
        for one in undecided
    ]
    message = failure(subject, proxy, splits, task=two_kinds, kinds=("odd",), max_gap=near, resamples=500)
    assert f"about {max(needed):,} sequences a split decide" in message


def test_nothing_is_decided_above_the_noise_floor(two_kinds):
    """In bfloat16 an edit that changes nothing flips predictions; the verdict of `compare` is inconclusive, too."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=23, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.02,
                        bos_token_id=None, eos_token_id=None)  # fmt: skip
    subject = Subject(GPT2LMHeadModel(config).bfloat16().eval(), None, "coarse")
    proxy = EditedSubject(subject, [Edit(Head(0, 0), queries=lambda queries: queries)])
    message = failure(subject, proxy, two_kinds, sequences=100, max_gap=0.0)
    assert message.startswith("NOT DECIDED (too noisy to tell): ")
    assert "compute in a wider dtype" in message
    assert {line.split()[0] for line in message.splitlines()[2:4]} == {"undecided"}


def test_few_sequences_are_said_to_be_few(subject, identity, splits):
    assert "only 3 of 3 sequences have such predictions" in failure(subject, identity, splits, sequences=3)


def test_a_kind_that_does_not_occur_is_undecided(subject, identity, splits, two_kinds):
    without = [replace(split, kinds=np.where(split.kinds == 1, UNSCORED, split.kinds)) for split in splits]
    message = failure(subject, identity, without, task=two_kinds)
    assert message.startswith("NOT DECIDED")
    assert "not measured: no such prediction in this split" in message
    assert "only 0 of 200 sequences" in message


def test_the_same_seed_gives_the_same_message_with_and_without_a_session(subject, splits):
    proxy = blind_beyond(subject, SHORT)
    first, second = (failure(subject, proxy, splits, seed=5, resamples=200) for _ in range(2))
    session = Session()
    kept = [failure(subject, proxy, splits, seed=5, resamples=200, session=session) for _ in range(2)]
    assert {first, second, *kept} == {first}
    assert failure(subject, proxy, splits, seed=6, resamples=200) != first


def test_a_proxy_that_is_not_finite_fails(subject, splits):
    proxy = EditedSubject(subject, [Edit(Head(0, 0), queries=lambda queries: queries * float("nan"))])
    message = failure(subject, proxy, splits)
    assert message.startswith("NOT FAITHFUL")
    assert "not finite" in message


def test_it_measures_what_compare_measures(session):
    subject, task = session.load("dyck-20-10"), Dyck(training_sentences=2_000, max_brackets=60)
    recipe = assay.SVD(rank=2)
    comparison = assay.compare(
        subject,
        task,
        [recipe],
        sites=["layer1"],
        sequences=40,
        fit_sequences=50,
        controls=False,
        refit=False,
        resamples=200,
    )
    proxy = session.proxy(subject, recipe, task, site="layer1", sequences=50)
    splits = [task.split(name, 40) for name in task.split_names[1:]]
    result = assess(
        session.engine(subject), proxy, task, splits, kinds=(task.primary_kind,), min_agreement=0.95, max_gap=0.02,
        seed=0, resamples=200, level=0.95,
    )  # fmt: skip
    frame = comparison.to_frame()
    frame = frame[(frame["metric"] == "same_prediction") & (frame["feature"] == "")].set_index(["split", "kind"])
    assert len(result.agreement) == len(frame)
    for place, value in result.agreement.items():
        np.testing.assert_equal(value, frame.loc[place, "estimate"])
    gaps = comparison.gaps().set_index("split")
    shifts = [finding for finding in result.findings if finding.is_gap]
    assert {finding.split for finding in shifts} == set(gaps.index)
    for finding in shifts:
        assert finding.value == pytest.approx(gaps.loc[finding.split, "gap"], abs=1e-12)
    assert result.noise == comparison.record.noise_floor.flipped
    (verdict,) = comparison.verdicts()
    standing = result.findings[0].standing
    expected = {"fails": ("unfaithful",), "undecided": ("inconclusive",)}
    assert verdict.judgement in expected.get(standing, tuple(one for one in JUDGEMENTS if one != "unfaithful"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_agreement": 95.0}, r"min_agreement=95.0\): must be a share"),
        ({"max_gap": -0.1}, r"max_gap=-0.1\): must be a share"),
        ({"level": 95.0}, r"level=95.0\)"),
        ({"resamples": 1}, r"resamples=1\): must be at least 2"),
        ({"sequences": 0}, r"sequences=0\): must be at least 2"),
        ({"kinds": ("evn",)}, "no kind 'evn'; there are all, prediction"),
        ({"kinds": ()}, "at least one kind"),
    ],
)
def test_wrong_calls_are_refused(subject, identity, splits, options, message):
    with pytest.raises(AssayError, match=message):
        assert_faithful(subject, identity, splits, **options)


def test_wrong_splits_are_refused(subject, identity, splits, two_kinds):
    iid, shift = splits
    for given in ([iid], [shift], [iid, iid, shift], [two_kinds.split("train", 5), iid, shift], []):
        with pytest.raises(AssayError, match="one split of role 'iid' and at least one of role 'shift'"):
            assert_faithful(subject, identity, given)
    with pytest.raises(AssayError, match="same name"):
        assert_faithful(subject, identity, [iid, shift, shift])
    with pytest.raises(AssayError, match="only for a list of splits"):
        assert_faithful(subject, identity, two_kinds, task=two_kinds)
    other = replace(shift, kinds=np.where(shift.kinds == 1, 7, shift.kinds))
    with pytest.raises(AssayError, match="has kind 7"):
        assert_faithful(subject, identity, [iid, other], task=two_kinds)
    with pytest.raises(AssayError, match="do not belong together"):
        assert_faithful(subject, identity, [iid, replace(shift, tokens=shift.tokens + 10_000)])


def test_a_proxy_of_another_subject_is_judged_as_the_other_model_that_it_is(subject, splits):
    other = subject.shuffled_copy(seed=9)
    message = failure(subject, EditedSubject(other, []), splits)
    assert message.startswith("NOT FAITHFUL")
    assert limits_of("iid, all", message) == limits_of("iid, all", failure(subject, other, splits))
    assert limits_of("iid, all", message)[1] < 50
