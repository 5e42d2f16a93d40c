"""What `sae` stands for on the command line: a dictionary of files, or one that is trained."""

from dataclasses import fields
from typing import Any

from assay._errors import AssayError, unknown_name
from assay._given import checked
from assay.dictionaries._given import GivenDictionary
from assay.dictionaries._sparse_autoencoder import SparseAutoencoder


@checked
def sparse_autoencoder(
    path: str | None = None,
    site: str | None = None,
    scale: float | None = None,
    unchecked: bool = False,
    **training: Any,
) -> SparseAutoencoder | GivenDictionary:
    """The dictionary of the files at `path`, or one that is trained with the parameters of `SparseAutoencoder`.

    Raises AssayError for a parameter that there is not, and for parameters of the one together with the other's.
    """
    known = [item.name for item in fields(SparseAutoencoder) if item.init]
    for name in training:
        if name not in known:
            raise unknown_name("parameter", name, ["path", "site", "scale", "unchecked", *known])
    if path is not None:
        if training:
            raise AssayError(
                f"path={path!r} is read as it is, and not trained; leave out {', '.join(training)}, or the path."
            )
        return GivenDictionary(path, site, scale, unchecked)
    of_files = {"site": site, "scale": scale, "unchecked": unchecked or None}
    given = [name for name, value in of_files.items() if value is not None]
    if given:
        raise AssayError(
            f"{given[0]} is for a dictionary of files (path=...); one that is trained acts at the sites of the "
            "comparison (--sites layer2.residual)."
        )
    return SparseAutoencoder(**training)
