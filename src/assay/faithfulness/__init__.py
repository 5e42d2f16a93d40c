"""How a proxy is judged: metrics, statistics, comparison, verdicts."""

from assay.faithfulness._between_runs import BetweenRuns, between_runs
from assay.faithfulness._cells import REFITTED
from assay.faithfulness._clean_pass import CleanPass
from assay.faithfulness._compare import Step, check_fits, compare, resolve_positions
from assay.faithfulness._comparison import Comparison, FeatureRecord, Record
from assay.faithfulness._embeddings import Cosine, SameNeighbour, embedding_metrics
from assay.faithfulness._folder import CALL, claim
from assay.faithfulness._heads import Correlation, head_scores, rank_correlation
from assay.faithfulness._metrics import Metric, Pair, Predictions, attention_divergence, metrics
from assay.faithfulness._metrics_of_pairs import LogitDeviation, LogitDifference, SubjectLogitDifference
from assay.faithfulness._primary import resolve_metrics, resolve_primary
from assay.faithfulness._scores import ALL, LAYER
from assay.faithfulness._statistics import (
    CHANGE_OF_RATE,
    RATE,
    UNBOUNDED,
    Draws,
    Estimates,
    Weights,
    draws,
    estimate,
    every,
    gap,
    holm,
)
from assay.faithfulness._verdicts import JUDGEMENTS, MEAN_ABLATION, RULES, Judgement, Requirement, Verdict, Verdicts
from assay.faithfulness._workers import Workers

__all__ = [
    "ALL",
    "CALL",
    "CHANGE_OF_RATE",
    "JUDGEMENTS",
    "LAYER",
    "MEAN_ABLATION",
    "RATE",
    "REFITTED",
    "RULES",
    "UNBOUNDED",
    "BetweenRuns",
    "CleanPass",
    "Comparison",
    "Correlation",
    "Cosine",
    "Draws",
    "Estimates",
    "FeatureRecord",
    "Judgement",
    "LogitDeviation",
    "LogitDifference",
    "Metric",
    "Pair",
    "Predictions",
    "Record",
    "Requirement",
    "SameNeighbour",
    "Step",
    "SubjectLogitDifference",
    "Verdict",
    "Verdicts",
    "Weights",
    "Workers",
    "attention_divergence",
    "between_runs",
    "check_fits",
    "claim",
    "compare",
    "draws",
    "embedding_metrics",
    "estimate",
    "every",
    "gap",
    "head_scores",
    "holm",
    "metrics",
    "rank_correlation",
    "resolve_metrics",
    "resolve_positions",
    "resolve_primary",
]
