"""The splits that each shard set will have, as far as specs can say it, and who reads which."""

from collections.abc import Mapping

from pipeline.dag.overrides import Path
from schemas.curation import AppendSpec, FilterSpec, RemoveSpec
from schemas.data import CorpusSpec
from schemas.errors import SpecError
from schemas.experiment import AnyStage
from schemas.probing import FeaturesSpec
from schemas.sources import ArrowSource, CifarSource, HfSource, ImageFolderSource
from schemas.stage import StageRef
from schemas.words import nearest

Splits = tuple[str, ...] | None
"""None where only the corpus itself can say it, when it is read."""


def splits_made(
    spec: AnyStage, inputs: Mapping[str, StageRef], known: Mapping[str, Splits]
) -> Splits:
    """The splits of what a stage makes; empty for what has none.

    Args:
        spec: The stage.
        inputs: What it reads, by port.
        known: The splits of every stage that it reads.
    """
    if isinstance(spec, FilterSpec | RemoveSpec):
        return known[inputs["data"].stage]
    if isinstance(spec, FeaturesSpec):
        return spec.splits or known[inputs["data"].stage]
    if isinstance(spec, AppendSpec):
        old, new = known[inputs["to"].stage], _new_splits(spec)
        return None if old is None or new is None else tuple(dict.fromkeys((*old, *new)))
    return _new_splits(spec) if isinstance(spec, CorpusSpec) else ()


def _new_splits(spec: CorpusSpec) -> Splits:
    source = spec.source
    if spec.split is not None or isinstance(source, CifarSource):
        return ("train", "test")
    if isinstance(source, ArrowSource) or (isinstance(source, HfSource) and not source.splits):
        return None
    labels = source.labels if isinstance(source, ImageFolderSource) else None
    if labels is not None and labels.split_column is not None:
        return None
    return tuple(getattr(source, "splits", {})) or ("train",)


def check_reference(
    spec: AnyStage, port: str, reference: StageRef, *, splits: Splits, where: str
) -> None:
    """Refuse a reference to a split that there will not be.

    Args:
        spec: The stage that reads.
        port: Where it reads.
        reference: What it reads, a split filled in where the port has a default.
        splits: The splits of the stage that is read; of unknown ones the reader asks at its start.
        where: Place of the reference, for errors.

    Raises:
        SpecError: If a split is missing, or is named where none can be chosen.
    """
    fixed = spec.fixed_splits.get(port_field(port), ())
    if fixed and reference.split is not None:
        raise SpecError(
            f"{reference} names a split, but a {spec.kind} stage always reads "
            f"{' and '.join(fixed)}; write {reference.stage}",
            where=where,
        )
    if port_field(port) in spec.whole_sets and reference.split is not None:
        raise SpecError(
            f"{reference} names a split, but a {spec.kind} stage reads the whole set; write "
            f"{reference.stage}",
            where=where,
        )
    wanted = fixed or ((reference.split,) if reference.split else ())
    for split in wanted:
        if splits is not None and split not in splits:
            raise SpecError(_no_such_split(reference.stage, split, splits), where=where)


def _no_such_split(stage: str, split: str, splits: tuple[str, ...]) -> str:
    if not splits:
        return f"{stage!r} has no splits, so it has no split {split!r}; write {stage}"
    meant = nearest(split, list(splits))
    question = f" (did you mean {meant!r}?)" if meant else ""
    has = "its splits are" if len(splits) > 1 else "its only split is"
    return f"{stage!r} has no split {split!r}{question}; {has} {', '.join(splits)}"


def port_field(port: str) -> str:
    """The field of a port: `against` of `against[0]`."""
    return port.partition("[")[0]


def port_path(stage: str, spec: AnyStage, port: str) -> Path:
    """Where a reference of `spec` stands in the experiment's plain data."""
    name, _, rest = port.partition("[")
    field = type(spec).model_fields[name].alias or name
    return ("stages", stage, field, int(rest.rstrip("]"))) if rest else ("stages", stage, field)
