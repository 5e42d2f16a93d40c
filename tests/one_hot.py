"""A model whose first residual stream is a vector of its token that a test gives, and tasks of given sequences."""

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from assay import GivenDictionary
from assay.dictionaries import Dictionary
from assay.engine import Engine, collect
from assay.subjects import Subject
from assay.tasks import UNSCORED, Kind, Split


def subject_of(vectors, *, positions=32, tokenizer=None):
    """A model with `vectors` (token, width) as its embeddings, and no embeddings of positions."""
    config = GPT2Config(
        vocab_size=len(vectors), n_positions=positions, n_embd=vectors.shape[1], n_layer=1, n_head=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval().double()
    with torch.no_grad():
        model.transformer.wte.weight.copy_(vectors)
        model.transformer.wpe.weight.zero_()
    return Subject(model, tokenizer, "one-hot")


def split_of(name, tokens, *, kinds=None, features=None, lengths=None):
    """A split of rows of tokens; every position but the last is scored, of kind 0, unless `kinds` says otherwise."""
    tokens = np.asarray(tokens)
    if kinds is None:
        kinds = np.zeros_like(tokens)
        kinds[:, -1] = UNSCORED
    return Split(
        name=name,
        role=name if name in ("train", "iid") else "shift",
        description="",
        tokens=tokens,
        lengths=np.full(len(tokens), tokens.shape[1]) if lengths is None else np.asarray(lengths),
        kinds=np.asarray(kinds),
        features=features or {},
    )


@dataclass
class Given:
    """A task of given splits."""

    splits: list[Split]
    kinds: tuple[Kind, ...] = (Kind("next", "the next token"),)
    features: tuple = ()
    name: str = "given"
    primary_kind: str = "all"
    parameters: dict = field(default_factory=dict)

    @property
    def split_names(self):
        return tuple(one.name for one in self.splits)

    def split(self, name, sequences):
        return next(one for one in self.splits if one.name == name).first(sequences)

    def describe(self):
        return {"task": "given"}


def relu_dictionary(encoder, decoder, *, bias=None, **options):
    """A ReLU dictionary without a bias of the decoder."""
    zeros = torch.zeros(encoder.shape[1], dtype=torch.float64)
    base = torch.zeros(decoder.shape[1], dtype=torch.float64)
    return Dictionary("relu", encoder, zeros if bias is None else bias, decoder, base, **options)


def fitted(dictionary, subject, task, site="layer0.residual"):
    """A recipe of a dictionary in force at a site."""
    engine = Engine(subject)
    given = GivenDictionary(dictionary, site=site, unchecked=True)
    stream = "mlp" if site.endswith("mlp") else "residual"
    split = task.split(task.split_names[0], 20)
    return given.fit(collect(engine, split, (stream,)).at(engine.site(site)))
