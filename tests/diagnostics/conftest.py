import pytest

from assay.circuits import Circuit
from small_decoder import fitted, pairs_of, random_decoder


@pytest.fixture(scope="module")
def decoder():
    return random_decoder()


@pytest.fixture(scope="module")
def pairs(decoder):
    return pairs_of(decoder)


@pytest.fixture(scope="module")
def found(decoder):
    return fitted(Circuit(edges=12, method="exact"), decoder, pairs_of(decoder, "train"))
