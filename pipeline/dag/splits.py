"""The splits that each shard set will have, known before anything is made, and who reads which."""

from collections.abc import Mapping

from pipeline.dag.overrides import Path
from schemas.data import FilterSpec, IngestSpec
from schemas.errors import SpecError
from schemas.experiment import AnyStage, nearest
from schemas.stage import StageRef


def splits_made(
    spec: AnyStage, inputs: Mapping[str, StageRef], known: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """The splits of what a stage makes; none for what is no shard set.

    Args:
        spec: The stage.
        inputs: What it reads, by port.
        known: The splits of every stage that it reads.
    """
    if isinstance(spec, FilterSpec):
        return known[inputs["data"].stage]
    if not isinstance(spec, IngestSpec):
        return ()
    if spec.split is not None:
        return ("train", "test")
    return tuple(getattr(spec.source, "splits", {})) or ("train",)


def check_reference(
    spec: AnyStage, port: str, reference: StageRef, *, splits: tuple[str, ...], where: str
) -> None:
    """Refuse a reference to a split that there will not be.

    Args:
        spec: The stage that reads.
        port: Where it reads.
        reference: What it reads, a split filled in where the port has a default.
        splits: The splits of the stage that is read.
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
    wanted = fixed or ((reference.split,) if reference.split else ())
    for split in wanted:
        if split not in splits:
            raise SpecError(_no_such_split(reference.stage, split, splits), where=where)


def _no_such_split(stage: str, split: str, splits: tuple[str, ...]) -> str:
    if not splits:
        return f"{stage!r} is no shard set, so it has no split {split!r}; write {stage}"
    meant = nearest(split, list(splits))
    question = f" (did you mean {meant!r}?)" if meant else ""
    has = "its splits are" if len(splits) > 1 else "its only split is"
    return f"{stage!r} has no split {split!r}{question}; {has} {', '.join(splits)}"


def port_field(port: str) -> str:
    """The field of a port: `against` of `against[0]`."""
    return port.partition("[")[0]


def port_path(stage: str, port: str) -> Path:
    """Where a reference stands in the experiment's plain data."""
    field, _, rest = port.partition("[")
    return ("stages", stage, field, int(rest.rstrip("]"))) if rest else ("stages", stage, field)
