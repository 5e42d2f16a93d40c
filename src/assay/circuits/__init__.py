"""Circuits: which edges of a subject's computation make its answer on pairs of inputs, found or given, and judged.

One file a discovery method; one line here registers it, and an entry point of `assay.discoveries` adds an outsider's.
"""

from assay.circuits._activations import IntegratedActivationAttribution
from assay.circuits._attribution import EdgeAttribution, IntegratedEdgeAttribution
from assay.circuits._circuit import LEAST_PAIRS, AllAblated, Circuit, CircuitProxy, RandomCircuit, write_mib
from assay.circuits._codes import DiscreteCodes, code_score
from assay.circuits._contextual import ContextualDecomposition
from assay.circuits._exact import ExactEdges, ExactNodes
from assay.circuits._graph import Edge, Graph
from assay.circuits._greedy import GreedyEdges
from assay.circuits._groups import HeadGroup, head_group
from assay.circuits._information_flow import InformationFlow
from assay.circuits._interaction_gradients import InteractionGradients
from assay.circuits._interventions import PathInterventions
from assay.circuits._mask_gradients import IntegratedMaskGradients
from assay.circuits._measured import divergences, measured, measured_by_pair
from assay.circuits._observable import ObservablePropagation
from assay.circuits._optimal import Learned, learn_constants
from assay.circuits._problem import Ablation, Batch, Discovery, Measure, Problem, Reference, discoveries
from assay.circuits._ships import Ships
from assay.circuits._stated import Found
from assay.circuits._tokens import TokenScores, token_scores
from assay.circuits._value_vectors import RandomValueVectors, ValueVectorEdit, ValueVectors, value_vectors

discoveries.register("cd-t", ContextualDecomposition)
discoveries.register("discrete-codes", DiscreteCodes)
discoveries.register("eap", EdgeAttribution)
discoveries.register("eap-ig", IntegratedEdgeAttribution)
discoveries.register("eap-ig-activations", IntegratedActivationAttribution)
discoveries.register("exact", ExactEdges)
discoveries.register("exact-nodes", ExactNodes)
discoveries.register("gim", InteractionGradients)
discoveries.register("greedy", GreedyEdges)
discoveries.register("information-flow", InformationFlow)
discoveries.register("mask-ig", IntegratedMaskGradients)
discoveries.register("observable", ObservablePropagation)
discoveries.register("path-interventions", PathInterventions)
discoveries.register("ships", Ships)

__all__ = [
    "LEAST_PAIRS",
    "Ablation",
    "AllAblated",
    "Batch",
    "Circuit",
    "CircuitProxy",
    "ContextualDecomposition",
    "Discovery",
    "DiscreteCodes",
    "Edge",
    "EdgeAttribution",
    "ExactEdges",
    "ExactNodes",
    "Found",
    "Graph",
    "GreedyEdges",
    "HeadGroup",
    "InformationFlow",
    "IntegratedActivationAttribution",
    "IntegratedEdgeAttribution",
    "IntegratedMaskGradients",
    "InteractionGradients",
    "Learned",
    "Measure",
    "ObservablePropagation",
    "PathInterventions",
    "Problem",
    "RandomCircuit",
    "RandomValueVectors",
    "Reference",
    "Ships",
    "TokenScores",
    "ValueVectorEdit",
    "ValueVectors",
    "code_score",
    "discoveries",
    "divergences",
    "head_group",
    "learn_constants",
    "measured",
    "measured_by_pair",
    "token_scores",
    "value_vectors",
    "write_mib",
]
