"""Who is tested: any Hugging Face model, and the reference models that Assay trains and ships."""

from assay.subjects._load import check_seed, load, resolve_device, save, shipped
from assay.subjects._reference import DYCK_RECIPE, DYCK_TOKENS_PER_BATCH, dyck_model
from assay.subjects._subject import Subject
from assay.subjects._train import (
    IGNORED,
    Batch,
    BucketedBatches,
    Progress,
    Recipe,
    Trained,
    train,
    write_atomically,
)

__all__ = [
    "DYCK_RECIPE",
    "DYCK_TOKENS_PER_BATCH",
    "IGNORED",
    "Batch",
    "BucketedBatches",
    "Progress",
    "Recipe",
    "Subject",
    "Trained",
    "check_seed",
    "dyck_model",
    "load",
    "resolve_device",
    "save",
    "shipped",
    "train",
    "write_atomically",
]
