"""Who watches a training stage, and what its speed is read against."""

import re
from pathlib import Path

import psutil
import torch

from infra.metric_segments import SegmentLog
from infra.pace_file import PaceFile, pace_path
from jobs.stage_task import METRICS_FILE, PauseFile, append_line, log_path
from pipeline.cost import DEVICES, learning, training_flops
from pipeline.training.meter import Gauge
from pipeline.training.peak import measured_peak
from pipeline.training.teller import Watch
from schemas.backbones import BackboneSpec, ResNetSpec
from schemas.model import ViTSpec
from schemas.runs import StageRequest
from schemas.training import FinetuneSpec, PretrainSpec


def watch_of(request: StageRequest, progress: Path, gauge: Gauge, *, rank: int) -> Watch:
    """What rank 0 tells goes beside the run; the others only say what memory they take."""
    if rank:
        return Watch(gauge=gauge)
    log = log_path(request)
    return Watch(
        metrics=SegmentLog(progress / METRICS_FILE),
        stop=PauseFile(Path(request.pause_path)),
        pace=PaceFile(pace_path(log.parent, request.stage)),
        say=lambda line: append_line(log, f"{request.stage}: {line}"),
        gauge=gauge,
    )


def gauge_of(spec: PretrainSpec | FinetuneSpec, model: BackboneSpec) -> Gauge:
    """Of this worker; on a CPU its peak is measured, the first time in a process."""
    on_gpu = spec.resources.gpus_per_worker > 0
    if on_gpu:
        peak = known_peak(torch.cuda.get_device_name(), bf16=spec.precision != "fp32")
    else:
        peak = measured_peak(spec.precision, torch.get_num_threads())
    return Gauge(
        flops_per_image=_training_flops(spec, model),
        peak_flops=peak,
        memory_bytes=torch.cuda.max_memory_allocated if on_gpu else _resident,
    )


def known_peak(name: str, *, bf16: bool) -> float | None:
    """FLOPs in a second of the GPU that its driver calls so; None for one that is not listed."""
    words = re.split(r"[^a-z0-9]+", name.lower().replace("rtx ", "rtx"))
    for device in sorted(DEVICES, key=len, reverse=True):
        # "a100-40" is an "NVIDIA A100-SXM4-40GB".
        if all(part in words or f"{part}gb" in words for part in device.split("-")):
            return DEVICES[device].flops(bf16=bf16)
    return None


def _training_flops(spec: PretrainSpec | FinetuneSpec, model: BackboneSpec) -> float | None:
    """Nobody has counted a library's model."""
    if isinstance(model, ViTSpec | ResNetSpec):
        first = learning(model, spec).first_layer
        return float(training_flops(model, spec.objective, first_layer=first))
    return None


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
