"""Which gates the metrics of a stage do not meet."""

from collections.abc import Iterator, Mapping

from pipeline.dag.graph import StageNode
from schemas.gates import Bound, GatedStageSpec, UnmetGate
from schemas.words import nearest


def unmet_gates(node: StageNode, metrics: Mapping[str, float]) -> tuple[UnmetGate, ...]:
    """The gates of a stage that its metrics do not meet, in the order of its spec.

    Args:
        node: The stage, ran or reused.
        metrics: `split/name_unit` -> value.
    """
    gates = node.spec.gate if isinstance(node.spec, GatedStageSpec) else {}
    return tuple(_unmet(node, gates, metrics))


def _unmet(
    node: StageNode, gates: Mapping[str, Bound], metrics: Mapping[str, float]
) -> Iterator[UnmetGate]:
    for name, bound in gates.items():
        where = f"set in stages.{node.base_name}.gate.{name}"
        full = next((key for key in metrics if name in (key, key.partition("/")[2])), None)
        value = None if full is None else metrics[full]
        if full is None:
            said = f"{node.name} measures no {name}{_meant(name, metrics)}"
        elif not bound.holds(metrics[full]):
            said = f"{node.name} has {full} {value:.6g} and must have {bound}"
        else:
            continue
        sentence = f"{said} ({where})"
        yield UnmetGate(stage=node.name, metric=full or name, value=value, sentence=sentence)


def _meant(name: str, metrics: Mapping[str, float]) -> str:
    names = sorted({key.partition("/")[2] or key for key in metrics})
    near = nearest(name, names)
    return f"; did you mean {near}?" if near else f"; it has {', '.join(names)}"
