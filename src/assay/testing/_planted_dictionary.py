"""A subject whose vectors are sparse sums of known atoms: what a dictionary has to find."""

from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.linalg import hadamard
from transformers import GPT2Config, GPT2LMHeadModel

from assay._errors import AssayError, unknown_name
from assay.subjects import Subject
from assay.tasks import Feature, Kind, Role, Split

DIRECTIONS, ATOMS, ACTIVE = 32, 64, 3
"""Dimensions of the space that atoms span, atoms, and how many of them a vector is a sum of."""

POSITIONS = 8
"""Tokens of a sequence, each of which is answered by itself."""

WORDS = {"train": 4_000, "iid": 1_000, "combinations": 1_000}
"""Tokens of each split; none is in two of them."""

LEADING, REST, LEAD = (1.25, 1.5), (0.75, 1.0), 0.1
"""Coefficients of the leading atom and of the others, and by how much (in logits) the one leads."""

MODULUS = 8
"""A leading atom never goes with one whose number adds up with its own to a multiple of this, but under the shift."""


@dataclass(frozen=True)
class SparseSums:
    """Vectors that are sums of three of 64 atoms in 32 dimensions, as the tokens of a model that names the leading one.

    The `atoms` are those of two bases, none of which is near to one of the other (the axes, and the rows of a Hadamard
    matrix), turned at random and laid where coordinates sum to 0: unit vectors whose products are 1/√32 = 0.177 at
    most. That is below 1/(2k - 1) = 0.2 for sums of k = 3, so orthogonal matching pursuit with the true atoms finds
    every support, exactly (Tropp, Greed is good, 2004). The coefficient of the leading atom is in [1.25, 1.5], those of
    the two others are in [0.75, 1]; sums that it does not lead by `LEAD`, read with every atom, are not drawn.

    `subject()` is an ordinary GPT-2 whose tokens are these sums (`layer0.residual` has them), whose attention and MLP
    write nothing, and whose unembedding reads the atoms: it always names the leading one. The norms, with an epsilon of
    1e12 and weights of 1e6, change nothing. `iid` has other tokens than `train`; under the shift the leading atom goes
    with another with which it never goes elsewhere, so that whoever has the atoms loses nothing. `seed` draws the
    tokens and sequences; the atoms are always the same.
    """

    seed: int = 0

    name = "sparse-sums"
    primary_kind = "leading"
    split_names = ("train", "iid", "combinations")
    kinds = (Kind("leading", "the atom with the largest coefficient", tuple(range(ATOMS))),)
    features: tuple[Feature, ...] = ()

    @property
    def atoms(self) -> Float[np.ndarray, "atom width"]:
        """The true ones, unit vectors, in the model's coordinates."""
        return _atoms().copy()

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {"task": self.name, **asdict(self)}

    def sums(self, name: str) -> tuple[Int[np.ndarray, "word active"], Float[np.ndarray, "word active"]]:
        """The atoms of every token of a split, the leading one first, and their coefficients."""
        self._check(name)
        rng = np.random.default_rng([self.seed, self.split_names.index(name)])
        supports, coefficients = np.empty((0, ACTIVE), dtype=np.int64), np.empty((0, ACTIVE))
        while len(supports) < WORDS[name]:
            drawn = rng.permuted(np.tile(np.arange(ATOMS), (WORDS[name], 1)), axis=1)[:, :ACTIVE]
            sizes = rng.uniform(*REST, size=drawn.shape)
            sizes[:, 0] = rng.uniform(*LEADING, size=len(drawn))
            read = np.einsum("wa,wad->wd", sizes, _atoms()[drawn]) @ _atoms().T
            first = np.take_along_axis(read, drawn[:, :1], axis=1)[:, 0]
            np.put_along_axis(read, drawn[:, :1], -np.inf, axis=1)
            odd = ((drawn[:, :1] + drawn[:, 1:]) % MODULUS == 0).any(axis=1)
            taken = (odd == (name == "combinations")) & (first >= read.max(axis=1) + LEAD)
            supports = np.concatenate((supports, drawn[taken]))
            coefficients = np.concatenate((coefficients, sizes[taken]))
        return supports[: WORDS[name]], coefficients[: WORDS[name]]

    def vectors(self, name: str) -> Float[np.ndarray, "word width"]:
        """Every token of a split as the sum that it is."""
        supports, coefficients = self.sums(name)
        return np.einsum("wa,wad->wd", coefficients, _atoms()[supports])

    def subject(self) -> Subject:
        """The model, in float32."""
        width = DIRECTIONS + 1
        config = GPT2Config(
            vocab_size=ATOMS + sum(WORDS.values()),
            n_positions=POSITIONS,
            n_embd=width,
            n_layer=1,
            n_head=1,
            n_inner=4,
            layer_norm_epsilon=1e12,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.fill_(1e6 if "ln_" in name and name.endswith("weight") else 0.0)
            tokens = np.concatenate([self.vectors(name) for name in self.split_names])
            model.transformer.wte.weight[ATOMS:] = torch.from_numpy(tokens).float()
            model.lm_head.weight[:ATOMS] = torch.from_numpy(_atoms()).float()
        return Subject(model, None, f"planted-{self.name}")

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` pairs of a split; in a counterfactual all tokens are others, with another leading atom.

        Raises AssayError for an unknown split or a number below 1.
        """
        self._check(name)
        if sequences < 1:
            raise AssayError(f"split({name!r}, sequences={sequences}): must be at least 1.")
        roles: dict[str, tuple[Role, str]] = {
            "train": ("train", "sums of three atoms"),
            "iid": ("iid", "other sums of that kind"),
            "combinations": ("shift", "the leading atom beside one with which it never goes elsewhere"),
        }
        leading = self.sums(name)[0][:, 0]
        rng = np.random.default_rng([self.seed, self.split_names.index(name), 1])
        own = rng.integers(WORDS[name], size=(sequences, POSITIONS))
        other = (own + rng.integers(1, WORDS[name], size=own.shape)) % WORDS[name]
        while (same := leading[own] == leading[other]).any():
            other[same] = rng.integers(WORDS[name], size=int(same.sum()))
        start = ATOMS + sum(WORDS[before] for before in self.split_names[: self.split_names.index(name)])
        role, description = roles[name]
        return Split(
            name=name,
            role=role,
            description=description,
            tokens=start + own,
            lengths=np.full(sequences, POSITIONS),
            kinds=np.zeros_like(own),
            counterfactuals=start + other,
            answers=leading[own],
            foils=leading[other],
        )

    def recovery(self, directions: Float[np.ndarray, "direction width"]) -> tuple[float, float]:
        """How well some directions have the atoms: over atoms, the mean of the best cosine, and the share above 0.9.

        Signs count. Random directions are the floor, and it is not 0: the best of many is near something.
        """
        unit = directions / np.linalg.norm(directions, axis=1, keepdims=True).clip(min=1e-30)
        best = (_atoms() @ unit.T).max(axis=1)
        return float(best.mean()), float((best > 0.9).mean())

    def _check(self, name: str) -> None:
        if name not in self.split_names:
            raise unknown_name("split", name, self.split_names)


@cache
def _atoms() -> Float[np.ndarray, "atom width"]:
    both = np.concatenate((np.eye(DIRECTIONS), hadamard(DIRECTIONS) / np.sqrt(DIRECTIONS)))
    ones = np.ones((DIRECTIONS + 1, 1))
    turned, _ = np.linalg.qr(np.hstack((ones, np.random.default_rng(0).normal(size=(DIRECTIONS + 1, DIRECTIONS)))))
    found: np.ndarray = both @ turned[:, 1:].T
    return found
