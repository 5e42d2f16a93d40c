"""The ratio of two models' perplexities is the one that lm-evaluation-harness makes of the same documents."""

import copy

import pytest
import torch

import assay
from assay import OtherModel
from assay.subjects import Subject

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is in the extra peers")


@pytest.mark.filterwarnings("ignore")  # what the harness and its packages warn of is theirs
def test_perplexities_are_those_of_the_harness():
    from lm_eval.api.instance import Instance  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    base = assay.load("code-python")
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                step = parameter.abs().amax(dim=1, keepdim=True) / 15
                parameter.copy_((parameter / step).round() * step)
    texts = [f"def f{n}(a, b):\n    return a{n} + {n} if a else 'b{n}'"[: 20 + n] for n in range(12)]
    asked = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)]
    sums = [
        HFLM(
            one, tokenizer=base.tokenizer, add_bos_token=False, max_length=256, batch_size=4, device="cpu"
        ).loglikelihood_rolling(asked, disable_tqdm=True)
        for one in (base.model, model)
    ]
    tokens = sum(map(len, texts))
    task = assay.tasks.Text(base.tokenizer, None, texts[:6], {"other": texts[6:]}, max_length=64)
    comparison = assay.compare(base, task, [OtherModel(Subject(model, base.tokenizer, "other"))], resamples=99)
    rows = comparison.results.query("metric == 'log_perplexity_ratio' and kind == 'all' and feature == ''")
    assert rows["predictions"].sum() == tokens, "every character of every document, each once"
    ours = (rows["estimate"] * rows["predictions"]).sum() / tokens
    assert ours > 1e-3
    assert ours == pytest.approx((sum(sums[0]) - sum(sums[1])) / tokens, abs=1e-5)
