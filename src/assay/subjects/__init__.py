"""Who is tested: any Hugging Face model, and the reference models that Assay trains and ships."""

from assay._files import write_atomically
from assay.subjects._load import (
    DTYPES,
    check_name,
    check_seed,
    load,
    resolve_device,
    resolve_dtype,
    save,
    shipped,
    takes_base,
)
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
from assay.subjects._objective import Pooling, pool, resolve_objective, resolve_pooling
from assay.subjects._packaged import PACKAGED
from assay.subjects._pooled import PooledMLPConfig, PooledMLPForCausalLM, pooled_mlp
from assay.subjects._reference import (
    CODE_RECIPE,
    CODE_TOKENS_PER_BATCH,
    DYCK_RECIPE,
    DYCK_TOKENS_PER_BATCH,
    code_model,
    dyck_model,
)
from assay.subjects._subject import Subject
from assay.subjects._toy_english import TOY_ENGLISH_RECIPE, PackedDocuments, toy_english_model
from assay.subjects._train import (
    IGNORED,
    Batch,
    BucketedBatches,
    Progress,
    Recipe,
    Trained,
    train,
)
from assay.subjects._under_control import Repeated, corrupted
from assay.subjects._watch import Event, Watch

__all__ = [
    "CODE_RECIPE",
    "CODE_TOKENS_PER_BATCH",
    "DTYPES",
    "DYCK_RECIPE",
    "DYCK_TOKENS_PER_BATCH",
    "IGNORED",
    "LINEAR_MAX_BATCH",
    "LINEAR_MAX_RECIPE",
    "MAX_OF_K_BATCH",
    "MAX_OF_K_RECIPE",
    "PACKAGED",
    "TOY_ENGLISH_RECIPE",
    "Batch",
    "BucketedBatches",
    "Event",
    "LinearMaxConfig",
    "LinearMaxForCausalLM",
    "MaxOfKConfig",
    "MaxOfKForCausalLM",
    "PackedDocuments",
    "PooledMLPConfig",
    "PooledMLPForCausalLM",
    "Pooling",
    "Progress",
    "Recipe",
    "Repeated",
    "Subject",
    "Trained",
    "Watch",
    "check_name",
    "check_seed",
    "code_model",
    "corrupted",
    "dyck_model",
    "import_max_of_k",
    "linear_max_model",
    "load",
    "max_of_k_batches",
    "max_of_k_model",
    "pool",
    "pooled_mlp",
    "resolve_device",
    "resolve_dtype",
    "resolve_objective",
    "resolve_pooling",
    "save",
    "shipped",
    "takes_base",
    "toy_english_model",
    "train",
    "write_atomically",
]
