"""`assay compare`: one's own model and text from the command line."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import assay
from assay import cli
from assay.engine import Engine, collect
from assay.faithfulness import Comparison
from assay.studies import text
from assay.subjects import Subject, save


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    lines = [f"def f{n}(a, b): return a{n} + {n} if a else 'b{n}'" for n in range(24)]
    for name, part in {"fit": lines[:10], "iid": lines[10:20]}.items():
        (folder / f"{name}.txt").write_text("\n".join(part), encoding="utf-8")
        rows = "\n".join(json.dumps({"body": line}) for line in part)
        (folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    (folder / "prose.txt").write_text("\n".join(f"Call {n} a day, if you like to." for n in range(9)), encoding="utf-8")
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    return folder


def call_of(texts, *changed):
    """The shortest call that works, with options put over it."""
    given = {
        "--fit": texts / "fit.txt", "--split": f"iid={texts / 'iid.txt'}", "--simplify": "one-hot",
        "--max-length": 16, "--sequences": 4, "--fit-sequences": 4,
    }  # fmt: skip
    extra = []
    for name, value in zip(changed[::2], changed[1::2], strict=True):
        if name in ("--split+", "--simplify+", "--sites+"):
            extra += [name[:-1], value]
        else:
            given[name] = value
    return [*(part for pair in given.items() for part in pair), *extra]


def test_a_run_from_files_to_the_page(command, texts, tmp_path):
    status, out, err = command(
        "compare", "code-python", "--fit", texts / "fit.txt", "--split", f"iid={texts / 'iid.txt'}",
        "--split", f"prose={texts / 'prose.txt'}", "--simplify", "svd:rank=2", "--simplify", "one-hot",
        "--sites", "layer0", "--max-length", "24", "--sequences", "6", "--fit-sequences", "6",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    comparison = Comparison.load(tmp_path / "run")
    assert comparison.shifts == ("prose",)
    assert comparison.record.task["max_length"] == 24
    assert [split.sequences for split in comparison.record.splits] == [6, 6, 6]
    assert "SVD(rank=2)" in out
    assert "Same prediction as the subject on all predictions" in " ".join(out.split())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Same prediction as the subject on all predictions" in page
    assert ">word continuation<" in page
    assert {path.suffix for path in (tmp_path / "run" / "figures").iterdir()} == {".svg", ".png"}
    for verdict in comparison.verdicts():
        assert verdict.where in page


@pytest.mark.slow
def test_dictionaries_trained_and_of_files(command, texts, tmp_path):
    subject = assay.load("code-python")
    task = text.task_of(subject, texts / "fit.txt", {"iid": texts / "iid.txt"}, max_length=24)
    engine = Engine(subject)
    samples = collect(engine, task.split("train", 10), ()).at(engine.site("layer2.residual"))
    recipe = assay.SparseAutoencoder(k=4, features=64, steps=20, batch=64).fit(samples)
    ((dictionary,),) = recipe.dictionaries_.values()
    named = replace(dictionary, origin={"hook": "blocks.2.hook_resid_pre"})
    named.save(tmp_path / "sae")
    trained = ("--simplify", "sae:k=4,features=64,steps=20,batch=64", "--fit-sequences", 10, "--max-length", 24)
    status, out, err = command(
        *("compare", "code-python"), *call_of(texts, *trained),
        "--simplify", f"sae:path={tmp_path / 'sae'}", "--sites", "layer1.mlp", "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    comparison = Comparison.load(tmp_path / "run")
    assert {verdict.site for verdict in comparison.verdicts()} == {"layer1.mlp", "layer2.residual"}
    assert "split by split" in " ".join(out.split())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("split by split") >= 2


def test_json_fields_and_precision(command, texts, tmp_path):
    arguments = call_of(texts, "--split", f"iid={texts / 'iid.jsonl'}", "--text-field", "body", "--dtype", "bfloat16")
    arguments[arguments.index("--fit") + 1] = texts / "fit.jsonl"
    status, out, err = command(
        "compare", "code-python", *arguments, "--no-controls", "--json", "--out", tmp_path / "run"
    )
    assert status == 0, err
    found = json.loads(out)
    assert found["primary_metric"] == "same_prediction"
    assert [row["proxy"] for row in found["same_prediction"]] == ["OneHotAttention()"]
    assert Comparison.load(tmp_path / "run").record.subjects[0]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("--simplify", "svdd:rank=2"), "did you mean 'svd'"),
        (("--simplify", "svd:size=2"), "unknown parameter of svd 'size'; known: centred, joint, rank"),
        (("--simplify", "svd:rnk=2"), "unknown parameter of svd 'rnk'; did you mean 'rank'?"),
        (("--simplify", "svd:rank=0"), "rank must be a whole number of at least 1"),
        (("--simplify", "round-weights:bits=1"), "bits must be a whole number from 2 to 16"),
        (("--simplify", "sae:kind=topp"), "unknown kind 'topp'"),
        (("--split", "iid=nowhere.txt"), "no file 'nowhere.txt'"),
        (("--split", "nowhere.txt"), "NAME=FILE"),
        (("--split", "other={texts}/fit.txt"), "exactly one must be called iid"),
        (("--split+", "iid={texts}/prose.txt"), "two splits are called 'iid'"),
        (("--split+", "train={texts}/prose.txt"), "train is no name for a shift"),
        (("--fit", "nowhere.txt"), "no file 'nowhere.txt'"),
        (("--max-length", "257"), "256 positions"),
        (("--dtype", "int8"), "unknown dtype 'int8'"),
        (("--objective", "speech"), "unknown objective"),
        (("--objective", "masked"), "as a masked language model"),
        (("--pooling", "median"), "unknown pooling"),
        (("--pooling", "mean"), "pooling is for embeddings"),
        (("--prompt", "query: "), "prompt is for embeddings"),
        (("--device", "abacus"), "abacus"),
        (("--seed", "5"), "shipped with seeds"),
        (("--sequences", "1"), "sequences"),
        (("--primary-kind", "repeats"), "unknown kind of prediction 'repeats'"),
        (("--primary-metric", "kl"), "no rate of which more is better"),
        (("--positions", "last"), "unknown positions 'last'"),
        (("--sites", "layer99"), "site 'layer99' is not in 'code-python'"),
        (("--sites", "layer0.hed1"), "did you mean 'layer0.head1'"),
        (("--sites", "all.residul"), "did you mean 'all.residual'"),
        (("--sites", "all-layers", "--sites+", "layer0"), "layer0 is meant twice"),
        (("--sites", "layer0.head1+L0H1"), "layer0.head1.keys is meant twice"),
        (("--sites", "layer0.head1+all-heads"), "'all-heads' stands for many sites"),
    ],
)
def test_wrong_calls_end_with_2_and_the_reason(command, texts, changed, words):
    filled = [str(part).format(texts=texts) for part in changed]
    status, out, err = command("compare", "code-python", *call_of(texts, *filled))
    assert status == 2
    said = " ".join(err.replace("│", " ").split())
    assert words in said
    named = "MODEL" if words == "as a masked language model" else changed[0].removesuffix("+")
    assert f"Invalid value for {named}:" in said.replace("'", ""), "the option that is wrong is named"
    assert not out


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("--split+", "dark={texts}/binary.txt"), "cannot be read as UTF-8"),
        (("--split+", "none={texts}/empty.txt"), "split 'none' has no sequence"),
        (("--split", "iid={texts}/iid.jsonl"), "no field 'text', only 'body'"),
    ],
)
def test_work_that_fails_ends_with_1_and_one_line(command, texts, tmp_path, changed, words):
    filled = [str(part).format(texts=texts) for part in changed]
    status, out, err = command("compare", "code-python", *call_of(texts, *filled), "--out", tmp_path / "run")
    assert status == 1
    assert words in err
    assert len([line for line in err.strip().splitlines() if "error" in line]) == 1
    assert "Traceback" not in err
    assert not out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("max-of-4", "has no tokenizer"),
        ("./nowhere", "there is no folder"),
        ("code-pythom", "did you mean 'code-python'"),
    ],
)
def test_models_that_cannot_be_asked_are_wrong_calls(command, texts, name, words):
    status, _, err = command("compare", name, *call_of(texts))
    assert status == 2
    said = " ".join(err.replace("│", " ").split())
    assert words in said
    assert "Invalid value for MODEL:" in said


def test_a_seed_is_of_shipped_models_only(command, texts, tmp_path):
    (tmp_path / "mine").mkdir()
    status, _, err = command("compare", tmp_path / "mine", *call_of(texts), "--seed", 0)
    assert status == 2
    assert "Invalid value for --seed" in err
    assert "is none; leave it out" in " ".join(err.replace("│", " ").split())


def test_a_run_without_a_shift_is_warned_about_and_says_where_it_is(command, texts, tmp_path):
    status, _, err = command("compare", "code-python", *call_of(texts), "--no-controls", "--out", tmp_path / "run")
    assert status == 0, err
    said = err.replace("\n", "")
    assert "warning: there is no shift" in err
    assert said.index("there is no shift") < said.index(f"Working in {tmp_path / 'run'}")
    assert any(text.startswith("No shift was judged") for text in Comparison.load(tmp_path / "run").warnings())
    shifted = ("--split", f"prose={texts / 'prose.txt'}", "--out", tmp_path / "other")
    status, _, err = command("compare", "code-python", *call_of(texts), "--no-controls", *shifted)
    assert (status, "there is no shift" in err) == (0, False)
    assert not any(text.startswith("No shift") for text in Comparison.load(tmp_path / "other").warnings())


def test_a_masked_language_model_from_a_folder(command, texts, tmp_path):
    words = ["[PAD]", "[UNK]", "[MASK]", "def", "return", "if", "else", "a", "b", "+", "(", ")", ":", ",", "you"]
    words += [str(number) for number in range(24)]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=20,
    )  # fmt: skip
    save(Subject(BertForMaskedLM(config).eval(), tokenizer, "mine"), tmp_path / "mine")
    arguments = call_of(texts)
    at = arguments.index("--max-length")
    del arguments[at : at + 2]
    status, out, err = command("compare", tmp_path / "mine", *arguments, "--out", tmp_path / "run")
    assert status == 0, err
    record = Comparison.load(tmp_path / "run").record
    assert record.task["objective"] == record.subjects[0]["objective"] == "masked"
    assert record.task["max_length"] == 20, "as many as the model has positions"
    assert "OneHotAttention()" in out


def test_half_precision_has_a_noise_floor_that_counts():
    """In bfloat16 some predictions flip when nothing is changed; a gap that small decides nothing."""
    lines = [f"def f{n}(a, b): return a{n} + {n} if a else 'b{n}'" for n in range(10, 82)]
    subject = assay.load("code-python", dtype=torch.bfloat16)
    task = assay.tasks.Text(
        subject.tokenizer, train=lines[::3], iid=lines[1::3], shifts={"again": lines[2::3]}, max_length=64
    )
    full_rank = assay.SVD(rank=32)
    comparison = assay.compare(subject, task, [full_rank], sequences=24, fit_sequences=10, resamples=99, controls=False)
    floor = comparison.record.noise_floor
    assert floor.logit_difference_as_loaded > 1e-3
    assert 0 < floor.flipped < 0.05
    [verdict] = comparison.verdicts(min_agreement=0.5, max_gap=0.0)
    assert verdict.judgement == "inconclusive"
    assert any("% of the predictions (the noise floor)" in note for note in verdict.notes)
    [verdict] = comparison.verdicts(min_agreement=0.5, max_gap=floor.flipped)
    assert verdict.judgement == "inconclusive"
    assert "Some of these gaps are within the noise floor." in verdict.notes


def test_verdicts_about_the_kind_that_the_user_cares_for(command, texts, tmp_path):
    asked = ("--primary-kind", "repeated", "--primary-metric", "proxy_accuracy")
    status, out, err = command(
        "compare", "code-python", *call_of(texts, *asked), "--no-controls", "--json", "--out", tmp_path
    )
    assert status == 0, err
    found = json.loads(out)
    assert (found["primary_kind"], found["primary_metric"]) == ("repeated", "proxy_accuracy")
    assert [row["proxy"] for row in found["proxy_accuracy"]] == ["OneHotAttention()"]


# -- other models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    """The shipped model with its matrices rounded to three bits."""
    subject = assay.load("code-python")
    with torch.no_grad():
        for parameter in subject.model.parameters():
            if parameter.dim() == 2:
                step = parameter.abs().amax(dim=1, keepdim=True) / 3
                parameter.copy_((parameter / step).round() * step)
    folder = tmp_path_factory.mktemp("models") / "rounded"
    save(subject, folder)
    return folder


def call_with(texts, *others):
    arguments = ["--split", f"iid={texts / 'iid.txt'}", "--split", f"prose={texts / 'prose.txt'}", "--max-length", 24]
    return [*arguments, "--sequences", 6, *(part for other in others for part in ("--with", other))]


def test_other_models_need_no_text_to_fit_on(command, texts, tmp_path, rounded):
    status, out, err = command(
        "compare", "code-python", *call_with(texts, "code-python", rounded), "--out", tmp_path / "run"
    )
    assert status == 0, err
    record = Comparison.load(tmp_path / "run").record
    assert [split.role for split in record.splits] == ["iid", "shift"]
    assert "code-python at model: IDENTICAL. Not one logit differs" in " ".join(out.split())
    assert "rounded at model: UNFAITHFUL" in " ".join(out.split())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for words in (
        "Not one logit differs",
        "Where rounded breaks",
        "The tails: KL of single predictions",
        "right to wrong",
    ):
        assert words in page, words
    assert "Where code-python breaks" not in page, "nothing breaks in what is identical"
    assert page.count(": mean KL") == 10, "of twelve sequences the ten worst are shown"


@pytest.mark.parametrize(
    ("required", "other", "expected"),
    [("identical", "same", 0), ("faithful", "same", 0), ("faithful", "rounded", 3), ("identical", "rounded", 3)],
)
def test_what_is_required_decides_the_exit_status(  # noqa: PLR0917
    command, texts, tmp_path, rounded, required, other, expected
):
    name = {"same": "code-python", "rounded": rounded}[other]
    status, out, err = command(
        "compare", "code-python", *call_with(texts, name), "--out", tmp_path / "run", "--require", required,
        "--junit", tmp_path / "made" / "junit.xml", "--json",
    )  # fmt: skip
    assert status == expected, err
    assert json.loads(out)["required"]["met"] == (expected == 0)
    assert (f"required {required}: {other} at model: UNFAITHFUL" in " ".join(err.split())) == (expected == 3)
    suite = ElementTree.parse(tmp_path / "made" / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", str(int(expected == 3)))
    assert (suite.find("testcase/failure") is not None) == (expected == 3)
    said = {one.get("name"): one.get("value") for one in suite.iter("property")}
    [verdict] = json.loads(out)["verdicts"]
    assert said["judgement"] == verdict["judgement"]
    assert float(said["agreement"]) == pytest.approx(verdict["agreement"])


def test_limits_of_verdicts_are_those_of_the_page(command, texts, tmp_path, rounded):
    limits = ("--min-agreement", "0.01", "--max-gap", "1")
    arguments = (*call_with(texts, rounded), *limits, "--out", tmp_path / "run")
    status, out, err = command("compare", "code-python", *arguments, "--require", "faithful")
    assert status == 0, err
    assert "rounded at model: FAITHFUL" in " ".join(out.split())
    [verdict] = Comparison.load(tmp_path / "run").verdicts()
    assert verdict.judgement == "faithful"
    assert verdict.where in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give what to judge: --simplify RECIPE, or --with MODEL"),
        (("--simplify", "svd:rank=2"), "recipes are fitted on text: --fit FILE"),
        (("--with", "./nowhere"), "there is no folder"),
        (("--with", "code-pythom"), "did you mean 'code-python'"),
        (("--with", "code-python", "--require", "good"), "unknown judgement to require 'good'"),
        (("--with", "code-python", "--junit", "x.xml"), "--require faithful"),
        (("--with", "code-python", "--sites", "layer0"), "sites are for its parts"),
        (("--with", "code-python", "--positions", "scored"), "positions are for its parts"),
        (("--with", "code-python", "--max-gap", "nan"), "must be a share between 0 and 1"),
        (("--with", "code-python", "--min-agreement", "95"), "must be a share between 0 and 1"),
    ],
)
def test_wrong_calls_with_other_models(command, texts, arguments, words):
    status, out, err = command("compare", "code-python", *call_with(texts), *arguments)
    assert status == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert not out


# -- llama.cpp's counting -------------------------------------------------------------------------------------------


def counted_alone(first, second, tokens, bos):
    """llama.cpp's mean KL and share of the same top of two models on a text, one prediction at a time."""
    context = 24
    kls, same, nlls = [], [], []
    for start in range(0, len(tokens) // context * context, context):
        chunk = list(tokens[start : start + context])
        run = [bos, *chunk[1:]]
        with torch.no_grad():
            base, other = (model(input_ids=torch.tensor([run])).logits[0].double() for model in (first, second))
        for position in range(context // 2, context - 1):
            scores = base[position].tolist()
            top = max(scores)
            bottom = max(min(scores), top - 16)
            level = math.log(sum(math.exp(score - top) for score in scores))
            step = (top - bottom) / 65535
            kept = [bottom - top - level + step * round(max(score - bottom, 0) / step) for score in scores]
            own = other[position].log_softmax(-1).tolist()
            kls.append(sum(math.exp(p) * (p - q) for p, q in zip(kept, own, strict=True) if p > -16))
            same.append(kept.index(max(kept)) == own.index(max(own)))
            nlls.append(-own[chunk[position + 1]])
    return sum(kls) / len(kls), sum(same) / len(same), math.exp(sum(nlls) / len(nlls)), len(kls)


@pytest.mark.slow
def test_models_are_counted_as_llama_cpp_does(command, texts, tmp_path, rounded):
    status, out, err = command(
        "compare", "code-python", *call_with(texts, rounded), "--counting", "llama.cpp", "--context", 24,
        "--sequences", 11, "--json", "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads(out)["counting"]
    assert found == json.loads((tmp_path / "run" / "counting.json").read_text(encoding="utf-8"))
    assert "longer than" not in err, "nothing is run at the length of the whole text"
    base, other = assay.load("code-python"), assay.load(rounded)
    for name in ("iid", "prose"):
        whole = (texts / f"{name}.txt").read_text(encoding="utf-8")
        tokens = base.tokenizer(whole, verbose=False)["input_ids"][: 11 * 24]
        kl, same, perplexity, count = counted_alone(base.model, other.model, tokens, bos=tokens[0])
        counts = found["models"]["rounded"][name]
        assert counts["positions"] == count
        assert counts["kl"]["value"] == pytest.approx(kl, abs=1e-6)
        assert counts["same_top"]["value"] == pytest.approx(same, abs=1e-6)
        assert counts["perplexity"]["value"] == pytest.approx(perplexity, rel=1e-5)
    assert "As llama.cpp counts" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    status, _, err = command(
        "compare", "code-python", *call_with(texts, rounded), "--sequences", 11, "--out", tmp_path / "run"
    )
    assert status == 0, err
    assert not (tmp_path / "run" / "counting.json").exists(), "it is not what this run was asked for"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--with", "code-python", "--counting", "lm-eval"), "unknown counting 'lm-eval'"),
        (("--simplify", "round-weights:bits=4", "--counting", "llama.cpp"), "give the other one (--with MODEL"),
        (("--with", "code-python", "--context", "24"), "--counting llama.cpp"),
        (
            ("--with", "code-python", "--counting", "llama.cpp"),
            "chunks of 512 tokens and 'code-python' has 256 positions",
        ),
        (("--with", "code-python", "--counting", "llama.cpp", "--context", "256"), "its text has 470 tokens"),
        (("--with", "code-python", "--counting", "llama.cpp", "--context", "8"), "fewer than 100"),
    ],
)
def test_what_llama_cpp_would_not_count_is_a_wrong_call(command, texts, arguments, words):
    status, out, err = command("compare", "code-python", *call_with(texts), *arguments)
    assert status == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert not out


# -- a call in a file, and two runs side by side ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_runs(texts, tmp_path_factory):
    """A run, and the one that its run.yaml makes with another recipe and fewer sequences."""
    folder = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    for arguments in (
        ("code-python", *call_with(texts), "--simplify", "round-weights:bits=8", "--with", "code-python",
         "--no-controls", "--min-agreement", "0.5", "--out", folder / "first"),
        ("--config", folder / "first" / "run.yaml", "--sequences", "4", "--simplify", "round-weights:bits=2",
         "--simplify", "round-weights:bits=8", "--out", folder / "second"),
    ):  # fmt: skip
        patch.setattr("sys.argv", ["assay", "compare", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code  # noqa: PT017
    patch.undo()
    return folder / "first", folder / "second"


def test_a_run_leaves_the_call_that_repeats_it(texts, two_runs):
    first, second = two_runs
    assert yaml.safe_load((first / "run.yaml").read_text(encoding="utf-8")) == {
        "model": "code-python",
        "split": [f"iid={texts / 'iid.txt'}", f"prose={texts / 'prose.txt'}"],
        "simplify": ["round-weights:bits=8"],
        "with": ["code-python"],
        "max-length": 24,
        "sequences": 6,
        "controls": False,
        "min-agreement": 0.5,
    }
    asked = yaml.safe_load((second / "run.yaml").read_text(encoding="utf-8"))
    assert asked["sequences"] == 4, "what is typed goes before the file"
    assert asked["simplify"] == ["round-weights:bits=2", "round-weights:bits=8"]
    record = Comparison.load(second).record
    assert record.settings["min_agreement"] == 0.5
    assert record.settings["controls"] is False
    assert [split.sequences for split in record.splits] == [4, 4]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("sequence: 4", "did you mean 'sequences'?"),
        ("config: run.yaml", "no option of this command"),
        ("sequences: {a: 1}", "it must be text or a number"),
        ("controls: 3", "it must be true or false"),
        ("- a", "holds no table"),
        ("a: [", "is no YAML"),
        ("!!python/object/apply:os.getcwd []", "is no YAML"),
        ("model: code-python\nsequences: many", "valid integer"),
        ("model: code-python\nsequences: 1", "--sequences"),
    ],
)
def test_a_file_that_holds_no_call_is_a_wrong_call(command, tmp_path, written, words):
    (tmp_path / "run.yaml").write_text(written, encoding="utf-8")
    status, out, err = command("compare", "--config", tmp_path / "run.yaml")
    assert status == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert not out


def test_two_runs_side_by_side(command, two_runs):
    status, out, _ = command("compare-runs", *two_runs, "--json")
    assert status == 0
    found = json.loads(out)
    verdicts = {row["proxy"]: (row["first"], row["second"], row["changed"]) for row in found["verdicts"]}
    assert verdicts["code-python"] == ("identical", "identical", False)
    assert verdicts["RoundWeights(bits=2)"][0] is None
    assert verdicts["RoundWeights(bits=2)"][2] is True
    runs = [Comparison.load(folder) for folder in two_runs]
    for row in found["numbers"]:
        values = [
            run.agreement(row["split"]).set_index("proxy").loc[row["proxy"], ["estimate", "low", "high"]]
            for run in runs
        ]
        (first, low, high), (second, other_low, other_high) = values
        assert (row["first"], row["second"]) == (pytest.approx(first), pytest.approx(second))
        assert row["moved"] == pytest.approx(second - first)
        assert row["apart"] == (high < other_low or other_high < low)
    assert {(row["proxy"], row["split"]) for row in found["numbers"]} == {
        (proxy, split) for proxy in ("code-python", "RoundWeights(bits=8)") for split in ("iid", "prose")
    }
    asked = {row["name"]: (row["first"], row["second"]) for row in found["settings"]}
    assert asked["settings.sequences"] == ("6", "4")
    assert asked["splits.iid.sequences"] == ("6", "4")
    assert "splits.iid.sha256" in asked
    assert not [name for name in asked if name.startswith(("subjects", "environment", "created"))]


def test_two_runs_in_the_terminal(command, two_runs):
    status, out, _ = command("compare-runs", *two_runs)
    assert status == 0
    for words in ("Verdicts that changed", "What was asked differently", "settings.sequences", "verdicts changed"):
        assert words in " ".join(out.split())
    status, out, _ = command("compare-runs", two_runs[0], two_runs[0])
    assert (status, out.strip()) == (0, "0 of 2 verdicts changed.")
    status, _, err = command("compare-runs", two_runs[0], "nowhere")
    assert status == 2
    assert "SECOND" in err


def test_a_task_is_judged_by_its_name(command, tmp_path):
    status, _, err = command(
        "compare", "toy-english", "--task", "toy-english/greater:seed=2", "--simplify", "one-hot", "--sites", "layer0",
        "--sequences", "6", "--fit-sequences", "6", "--no-controls", "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    comparison = Comparison.load(tmp_path / "run")
    assert comparison.record.task["task"] == "toy-english/greater"
    assert comparison.record.task["seed"] == 2
    assert comparison.shifts == ("nouns", "clause", "endings", "centuries")
    rows = comparison.results
    chosen = rows.query("metric == 'subject_accuracy' and split == 'iid' and feature == '' and kind == 'answer'")
    assert chosen["estimate"].tolist() == [1.0], "every later year is right, not the one that was drawn alone"
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text(encoding="utf-8"))["task"] == (
        "toy-english/greater:seed=2"
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("toy-english", "--task", "toy-english/iio"), "toy-english/ioi"),
        (("toy-english", "--task", "toy-english/ioi", "--pairs", "x.jsonl"), "splits of its own"),
        (("code-python", "--task", "toy-english/ioi"), "do not belong together"),
    ],
    ids=["unknown", "beside pairs", "another vocabulary"],
)
def test_a_task_that_cannot_be_judged_is_a_wrong_call(command, tmp_path, given, says):
    status, _, err = command("compare", *given, "--simplify", "one-hot", "--out", tmp_path / "run")
    assert status == 2
    assert says in " ".join(err.replace("│", " ").split())
