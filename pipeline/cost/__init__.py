"""What a stage will cost, from specs alone: parameters, FLOPs, memory, time, disk.

Every formula stands in the docstring of its function; tests and the benchmark `estimate` hold them
against what torch and the engines measure.
"""

from pipeline.cost.activations import activation_bytes
from pipeline.cost.clusters import Cluster, on_clusters
from pipeline.cost.devices import ASSUMED_MFU, DEVICES, Device
from pipeline.cost.flops import (
    model_flops,
    objective_flops,
    resnet_flops,
    training_flops,
    vit_flops,
)
from pipeline.cost.layout import USABLE_RATIO, Layout, lay_out
from pipeline.cost.learning import Learning, learning
from pipeline.cost.memory import MemoryBytes, training_memory
from pipeline.cost.parameters import (
    model_parameters,
    objective_parameters,
    resnet_parameters,
    trained_parameters,
    vit_parameters,
)
from pipeline.cost.stages import ASSUMED_CLASSES, SMALL_BYTES, Training, estimate, training_of
from pipeline.cost.state import StateBytes, backward_bytes, state_bytes, update_bytes

__all__ = [
    "ASSUMED_CLASSES",
    "ASSUMED_MFU",
    "DEVICES",
    "SMALL_BYTES",
    "USABLE_RATIO",
    "Cluster",
    "Device",
    "Layout",
    "MemoryBytes",
    "StateBytes",
    "Training",
    "activation_bytes",
    "backward_bytes",
    "estimate",
    "Learning",
    "lay_out",
    "learning",
    "model_flops",
    "model_parameters",
    "on_clusters",
    "objective_flops",
    "objective_parameters",
    "resnet_flops",
    "resnet_parameters",
    "state_bytes",
    "trained_parameters",
    "training_flops",
    "training_memory",
    "training_of",
    "update_bytes",
    "vit_flops",
    "vit_parameters",
]
