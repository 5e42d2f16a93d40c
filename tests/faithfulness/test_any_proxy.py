"""Whatever answers (tokens, valid) with logits is judged as what it is."""

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.engine import EditedSubject, Engine, WholeModel, batches, tensors
from assay.faithfulness import CleanPass, metrics
from assay.faithfulness._scores import Scores, score
from assay.subjects import Subject
from assay.tasks import UNSCORED

QUICK = {"sequences": 30, "fit_sequences": 30, "resamples": 100}


@pytest.fixture(scope="module")
def judged():
    return [metric for name in metrics if not getattr(metric := metrics.get(name)(), "of_pairs", False)]


@pytest.fixture(scope="module")
def other(subject):
    """Another model of the same shape: the weights of the subject with a little noise."""
    model = copy.deepcopy(subject.model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return Subject(model, subject.tokenizer, "other")


class Plain:
    """A callable that is nothing but that."""

    def __init__(self, model):
        self.model = model

    def __call__(self, tokens, valid=None):
        return self.model(tokens, valid)

    def __repr__(self):
        return "Plain()"


@dataclass
class Answers:
    """A recipe that gives the proxy it is given."""

    proxy: object
    fitted_: bool = field(default=False, init=False)
    whole = True
    streams = ()

    def fit(self, samples):
        self.fitted_ = True
        return self

    def apply(self, subject):
        return self.proxy

    def control(self):
        return None


def sums(scores, metric, kind="all"):
    place = next(
        number
        for number, column in enumerate(scores.columns)
        if (column.metric, column.kind, column.feature) == (metric, kind, "")
    )
    return scores.sums[:, place], scores.counts[:, place]


def by_hand(subject, model, task, split):
    """Same prediction and KL of every sequence, one at a time, without any of the harness."""
    same, divergence, wrong, ratio = [], [], [], []
    kinds = task.kinds
    for row in range(len(split)):
        length = int(split.lengths[row])
        tokens = torch.from_numpy(split.tokens[row : row + 1, :length].astype(np.int64))
        a, b = (one(tokens)[0].double() for one in (subject, model))
        agree, kl, flips, change = 0.0, 0.0, 0.0, 0.0
        for position in range(length):
            kind = int(split.kinds[row, position])
            if kind == UNSCORED:
                continue
            among = kinds[kind].candidates
            chosen = list(range(a.shape[-1])) if among is None else list(among)
            picks = [chosen[int(one[position, chosen].argmax())] for one in (a, b)]
            agree += picks[0] == picks[1]
            p, q = (one[position].log_softmax(dim=-1) for one in (a, b))
            kl += float((p.exp() * (p - q)).sum())
            if kinds[kind].determined:
                right = int(split.tokens[row, position + 1])
                flips += picks[0] == right != picks[1]
                change += float(p[right] - q[right])
        same.append(agree)
        divergence.append(kl)
        wrong.append(flips)
        ratio.append(change)
    return tuple(map(np.array, (same, divergence, wrong, ratio)))


@pytest.mark.parametrize("make", [Plain, WholeModel, lambda model: model, lambda model: EditedSubject(model, [])],
                         ids=["a callable", "a whole model", "a subject", "edits of another subject"])  # fmt: skip
def test_another_model_scores_what_a_loop_finds_however_it_is_given(make, subject, other, task, judged):
    split = task.split("iid", 12)
    found = score(Engine(subject), {"other": make(other)}, task, split, judged)["other"]
    same, divergence, wrong, ratio = by_hand(subject, other, task, split)
    assert 0 < same.sum() < sums(found, "same_prediction")[1].sum(), "the other model differs somewhere, and not always"
    np.testing.assert_array_equal(sums(found, "same_prediction")[0], same)
    np.testing.assert_allclose(sums(found, "kl")[0], divergence, rtol=1e-4)
    np.testing.assert_array_equal(sums(found, "flip_to_wrong")[0], wrong)
    np.testing.assert_allclose(sums(found, "log_perplexity_ratio")[0], ratio, rtol=1e-3, atol=1e-5)
    assert found.largest > 1e-2


def test_attention_is_compared_where_there_is_some_and_skipped_with_a_reason_elsewhere(subject, other, task, judged):
    split = task.split("iid", 12)
    proxies = {"whole": WholeModel(other), "called": Plain(other)}
    found = score(Engine(subject), proxies, task, split, judged)
    attention = sums(found["whole"], "attention_jsd")
    assert (attention[0] > 0).all()
    engine, divergences = Engine(subject), np.zeros(len(split))
    from assay.faithfulness import attention_divergence  # noqa: PLC0415

    for row in range(len(split)):
        length = int(split.lengths[row])
        tokens = torch.from_numpy(split.tokens[row : row + 1, :length].astype(np.int64))
        ours, theirs = (Engine(one).run(tokens, read=("patterns",)).patterns for one in (subject, other))
        rows = torch.stack([attention_divergence(ours[layer], theirs[layer])[0] for layer in range(engine.layers)])
        scored = torch.from_numpy(split.kinds[row, :length] != UNSCORED)
        divergences[row] = float(rows.mean(dim=0)[scored].sum())
    np.testing.assert_allclose(attention[0], divergences, rtol=1e-3, atol=1e-6)
    assert not sums(found["called"], "attention_jsd")[1].any()
    assert found["called"].skipped == {
        "attention_jsd": "the proxy has no attention that could be compared with the subject's"
    }


def test_attention_is_the_same_where_the_subjects_is_made_again(subject, other, task, judged, monkeypatch):
    """As for large batches, whose patterns are not kept."""
    split = task.split("iid", 12)
    kept = score(Engine(subject), {"whole": WholeModel(other)}, task, split, judged)["whole"]
    monkeypatch.setattr("assay.faithfulness._clean_pass.WEIGHTS_KEPT", 0)
    again = score(Engine(subject), {"whole": WholeModel(other)}, task, split, judged)["whole"]
    np.testing.assert_allclose(sums(again, "attention_jsd")[0], sums(kept, "attention_jsd")[0], rtol=1e-4)


def test_attention_that_cannot_be_cut_alike_is_skipped(subject, other, task, judged, monkeypatch):
    """As of a rounded model whose numbers are so large that rows by themselves differ from all together."""
    monkeypatch.setattr("assay.faithfulness._clean_pass.ROWS", 3)
    whole = WholeModel(other)
    whole._engine = Engine(other)
    whole._engine._rows_agree = False
    found = score(Engine(subject), {"it": whole}, task, task.split("iid", 12), judged)["it"]
    assert "cannot be computed a few rows at a time" in found.skipped["attention_jsd"]
    assert sums(found, "kl")[0].sum() > 0


@pytest.mark.parametrize("rows", [3, 64])
def test_a_copy_differs_in_not_one_bit(subject, task, judged, monkeypatch, rows):
    """Also in parts of a few rows; a copy that is called, not read, has other kernels and may differ by rounding."""
    monkeypatch.setattr("assay.faithfulness._clean_pass.ROWS", rows)
    split = task.split("unseen_depth", 20)
    twin = Subject(copy.deepcopy(subject.model), subject.tokenizer, "twin")
    found = score(Engine(subject), {"twin": twin, "called": Plain(twin)}, task, split, judged)
    assert found["twin"].largest == 0
    assert sums(found["twin"], "kl")[0].sum() == 0
    assert found["called"].largest < 1e-3


def test_one_weight_changed_is_not_identical(subject, task, judged):
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if "c_attn.weight" in name)[0, 0] += 1e-3
    found = score(Engine(subject), {"it": Subject(model, None, "it")}, task, task.split("iid", 12), judged)["it"]
    assert 0 < found.largest < 1


def test_the_verdict_and_the_record_say_identical(subject, task):
    twin = Subject(copy.deepcopy(subject.model), subject.tokenizer, "twin")
    comparison = assay.compare(subject, task, [Answers(twin), assay.SVD(rank=2)], **QUICK)
    of_twin, of_svd = sorted(comparison.verdicts(), key=lambda verdict: verdict.proxy)
    assert (of_twin.judgement, of_twin.site) == ("identical", "model")
    assert of_svd.judgement != "identical"
    records = {record.proxy: record for record in comparison.record.proxies}
    splits = {split.name for split in comparison.record.splits} - {"train"}
    assert records[of_twin.proxy].logit_difference == dict.fromkeys(splits, 0.0)
    assert all(value > 0 for value in records["SVD(rank=2)"].logit_difference.values())
    assert records[of_twin.proxy].heads == ()


def test_what_replaces_the_whole_model_is_judged_once_whatever_the_sites(subject, other, task):
    options = {**QUICK, "sites": ["layer0", "layer1"]}
    comparison = assay.compare(subject, task, [Answers(other), assay.SVD(rank=2)], **options)
    sites = {record.proxy: set() for record in comparison.record.proxies}
    for record in comparison.record.proxies:
        sites[record.proxy].add(record.site)
    whole = next(name for name in sites if name.startswith("Answers"))
    assert sites.pop(whole) == {"model"}
    assert set().union(*sites.values()) == {"layer0", "layer1"}
    assert "model" not in set(comparison.results.query("not trained")["site"]), "a shuffled copy tells nothing of it"
    alone = assay.compare(subject, task, [Answers(other)], **QUICK)
    assert all(variant["trained"] for variant in alone.record.subjects)


def test_metrics_that_a_proxy_cannot_have_are_skipped_in_the_results(subject, other, task):
    comparison = assay.compare(subject, task, [Answers(Plain(other))], **QUICK)
    rows = comparison.results.query("metric == 'attention_jsd'")
    assert len(rows)
    assert rows["estimate"].isna().all()
    assert set(rows["reason"]) == {"skipped: the proxy has no attention that could be compared with the subject's"}


class Wrong:
    def __init__(self, what):
        self.what = what

    def __call__(self, tokens, valid=None):
        if self.what == "raises":
            raise KeyError("no such thing")
        if self.what == "another type":
            return [1.0]
        batch, positions = tokens.shape
        if self.what == "one position less":
            return torch.zeros(batch, positions - 1, 9)
        return torch.zeros(batch, positions, 3 if self.what == "another vocabulary" else 9)

    def __repr__(self):
        return f"Wrong({self.what!r})"


@pytest.mark.parametrize(("what", "message"), {
    "raises": r"Wrong\('raises'\) fails when it is called with tokens of shape .*no such thing",
    "another type": r"Wrong\('another type'\) gives logits of type list",
    "one position less": r"Wrong\('one position less'\) gives logits of shape",
    "another vocabulary": r"it gives 3 logits for every token and the subject .* of one vocabulary",
}.items())  # fmt: skip
def test_what_gives_something_else_than_logits_is_refused_in_one_line(what, message, subject, task, judged):
    with pytest.raises(AssayError, match=message) as caught:
        score(Engine(subject), {"it": Wrong(what)}, task, task.split("iid", 12), judged)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("proxy", [None, 3, "text", Plain], ids=["nothing", "a number", "text", "a class"])
def test_what_cannot_be_called_is_no_proxy(proxy, subject, task):
    with pytest.raises(AssayError, match=r"apply\(subject\) is a \w+, not a proxy"):
        assay.compare(subject, task, [Answers(proxy)], **QUICK)


def test_a_recipe_may_refuse_a_split_before_any_work(subject, other, task, tmp_path):
    class Short(Answers):
        def check(self, subject, splits):
            longest = max(split.tokens.shape[1] for split in splits)
            raise AssayError(f"reads 4 tokens, not {longest}.")

    with pytest.raises(AssayError, match="reads 4 tokens, not"):
        assay.compare(subject, task, [Short(other)], folder=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_a_recipe_is_fitted_with_the_subject_and_the_split_at_hand(subject, task):
    seen = []

    @dataclass
    class Looks(Answers):
        learns = True

        def fit(self, samples):
            seen.append((samples.subject, samples.split))
            return self

    assay.compare(subject, task, [Looks(subject)], **QUICK, refit=False, controls=False)
    ((found, split),) = seen
    assert found is subject
    np.testing.assert_array_equal(split.tokens, task.split("train", QUICK["fit_sequences"]).tokens)


def test_half_of_a_batch_is_answered_in_any_pieces(subject, other, task):
    split = task.split("iid", 12)
    engine = Engine(subject)
    _, batch = next(batches(engine, split))
    tokens, valid = tensors(batch, subject.device)
    for _, answer in CleanPass(engine, tokens, valid).answers([WholeModel(other)]):
        whole = answer.logits(slice(None))
        for positions in (slice(2, 5), torch.tensor([0, 3, 4])):
            torch.testing.assert_close(answer.logits(positions), whole[:, positions], atol=1e-4, rtol=1e-4)
        assert answer.held > 0


def test_a_padded_vocabulary_is_cut(subject, task, judged):
    """Rows behind the subject's vocabulary answer nothing that can be asked; without them the copy is identical."""
    model = copy.deepcopy(subject.model)
    known = subject.vocabulary
    model.resize_token_embeddings(known + 7, mean_resizing=False)
    padded = Subject(model, None, "padded")
    found = score(Engine(subject), {"it": WholeModel(padded, vocabulary=known)}, task, task.split("iid", 12), judged)[
        "it"
    ]
    assert isinstance(found, Scores)
    assert found.largest < 1e-4
