"""Nouns: specs, records, manifests, reports; validation and digests, no other behaviour."""

from schemas.experiment import ExperimentSpec
from schemas.model import ModelSpec, ViTSpec

__all__ = ["ExperimentSpec", "ModelSpec", "ViTSpec"]
