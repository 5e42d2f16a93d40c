"""Who is tested: any Hugging Face model, and the reference models that Assay trains and ships."""

from assay.subjects._load import check_seed, load, resolve_device, save, shipped
from assay.subjects._reference import (
    CODE_RECIPE,
    CODE_TOKENS_PER_BATCH,
    DYCK_RECIPE,
    DYCK_TOKENS_PER_BATCH,
    code_model,
    dyck_model,
)
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
    "CODE_RECIPE",
    "CODE_TOKENS_PER_BATCH",
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
    "code_model",
    "dyck_model",
    "load",
    "resolve_device",
    "save",
    "shipped",
    "train",
    "write_atomically",
]
