"""How a proxy is judged: metrics, statistics, comparison, verdicts."""

from assay.faithfulness._clean_pass import CleanPass
from assay.faithfulness._compare import Step, compare
from assay.faithfulness._comparison import Comparison, FeatureRecord, Record
from assay.faithfulness._embeddings import Cosine, SameNeighbour, embedding_metrics
from assay.faithfulness._heads import Correlation, head_scores, rank_correlation
from assay.faithfulness._metrics import Metric, Pair, Predictions, attention_divergence, metrics
from assay.faithfulness._primary import resolve_metrics, resolve_primary
from assay.faithfulness._scores import ALL, LAYER
from assay.faithfulness._statistics import Estimates, estimate, gap, holm
from assay.faithfulness._verdicts import RULES, Verdict
from assay.faithfulness._workers import Workers

__all__ = [
    "ALL",
    "LAYER",
    "RULES",
    "CleanPass",
    "Comparison",
    "Correlation",
    "Cosine",
    "Estimates",
    "FeatureRecord",
    "Metric",
    "Pair",
    "Predictions",
    "Record",
    "SameNeighbour",
    "Step",
    "Verdict",
    "Workers",
    "attention_divergence",
    "compare",
    "embedding_metrics",
    "estimate",
    "gap",
    "head_scores",
    "holm",
    "metrics",
    "rank_correlation",
    "resolve_metrics",
    "resolve_primary",
]
