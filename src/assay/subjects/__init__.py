"""Who is tested: any Hugging Face model, and the reference models that Assay trains and ships."""

from assay.subjects._load import check_seed, load, resolve_device, save, shipped
from assay.subjects._max_of_k import (
    LINEAR_MAX_BATCH,
    LINEAR_MAX_RECIPE,
    MAX_OF_K_BATCH,
    MAX_OF_K_RECIPE,
    LinearMaxConfig,
    LinearMaxForCausalLM,
    MaxOfKConfig,
    MaxOfKForCausalLM,
    import_max_of_k,
    linear_max_model,
    max_of_k_batches,
    max_of_k_model,
)
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
    "LINEAR_MAX_BATCH",
    "LINEAR_MAX_RECIPE",
    "MAX_OF_K_BATCH",
    "MAX_OF_K_RECIPE",
    "Batch",
    "BucketedBatches",
    "LinearMaxConfig",
    "LinearMaxForCausalLM",
    "MaxOfKConfig",
    "MaxOfKForCausalLM",
    "Progress",
    "Recipe",
    "Subject",
    "Trained",
    "check_seed",
    "dyck_model",
    "import_max_of_k",
    "linear_max_model",
    "load",
    "max_of_k_batches",
    "max_of_k_model",
    "resolve_device",
    "save",
    "shipped",
    "train",
    "write_atomically",
]
