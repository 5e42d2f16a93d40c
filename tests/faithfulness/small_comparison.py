"""What the shared comparison is asked; also imported by runs in processes of their own."""

import assay

CALL = {"sites": ("all",), "sequences": 20, "fit_sequences": 100, "resamples": 150, "seed": 3}


def recipes():
    return [assay.SVD(rank=2), assay.SVD(rank=8), assay.SVD(rank=32), assay.OneHotAttention()]
