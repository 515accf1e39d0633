"""Sections `cost` and `reproduce`: how the artifacts were made, from their records."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.report.cells import amounts, computed, main, names, numbers, row, text
from pipeline.evaluation.report.cells import words as word_columns
from pipeline.evaluation.report.sources import Made, Origin, record_of
from pipeline.evaluation.report.training import PACE, POINTS_FILE, Points, draw_curve
from schemas.artifacts import Environment
from schemas.report_page import (
    Block,
    Cell,
    Column,
    PageArtifact,
    Row,
    Section,
    Table,
    Trace,
    Unit,
)
from schemas.runs import InputArtifact

_SPEC_FILE = "run.yaml"


def cost_section(
    folder: Path,
    origin: Origin,
    *,
    artifacts: Sequence[PageArtifact],
    trained: Sequence[InputArtifact],
    points: Mapping[str, Points],
) -> Section:
    """Time and work of every artifact; draws the pace of the trainings into `folder`."""
    names_of = {it.artifact: it.stage for it in artifacts}
    rows = [_cost_row(it, names_of[it.artifact], origin.run, points) for it in origin.made]
    head = (
        *names("stage"),
        *word_columns("made"),
        *main("time"),
        *amounts("pace", "parameters", "work"),
        *word_columns("workers", "device"),
    )
    return Section(
        name="cost",
        title="Cost",
        intro="As recorded when each artifact was made. What an earlier run had made already was "
        "not made again; its time is that of then. Pace is the median of the images a second. "
        "Work counts two operations for each multiply-add: forward and backward of a training, "
        "forward of an evaluation. This section and the next tell of machines and of time, so "
        "they differ where equal artifacts are made again; nothing else on this page does.",
        tables=(Table(title="Time and work", columns=head, rows=(*rows, _total_row(origin.made))),),
        figures=draw_curve(folder, trained, points, PACE),
        from_records=True,
    )


def reproduce_section(origin: Origin, artifacts: Sequence[PageArtifact]) -> Section:
    """Commands, machines, what the keys hold, and the experiment as a file."""
    names_of = {it.artifact: it.stage for it in artifacts}
    return Section(
        name="reproduce",
        title="How to reproduce it",
        intro="Equal keys and equal software give equal artifacts: bit for bit with as many "
        "workers and threads on the same kind of CPU, else to rounding. The digests of the data "
        "decide whether the corpus is the same.",
        tables=(_machines_table(origin.made, names_of), _keys_table(origin.made, names_of)),
        blocks=_blocks(origin),
        from_records=True,
    )


def _cost_row(made: Made, stage: str, run: str, points: Mapping[str, Points]) -> Row:
    record = record_of(made)
    here = made.record.run == run
    return row(
        [
            text(stage),
            text("now" if here else "earlier"),
            numbers(record.number("seconds", unit="seconds")),
            _pace(made, points.get(stage, {})),
            _counted(made, "parameters", "count"),
            _counted(made, "flops", "flops"),
            text(_workers(made.record.spec)),
            text(_device(made)),
        ],
        made.artifact,
    )


def _total_row(made: Sequence[Made]) -> Row:
    documents = [record_of(it) for it in made]
    seconds = [it.number("seconds", unit="seconds") for it in documents]
    total = computed(
        sum(it.value for it in seconds),
        "seconds",
        [trace for it in seconds for trace in it.traces],
        how="sum",
    )
    rest = [text("")] * 5
    return row([text("all together"), text(""), numbers(total), *rest], marked=True)


def _pace(made: Made, points: Points) -> Cell:
    """The median over the logged points."""
    logged = points.get(PACE.key)
    if not logged:
        return text("-")
    traces = [
        Trace(artifact=made.artifact, file=POINTS_FILE, where=f"{PACE.key}@{step}")
        for step, _ in logged
    ]
    median = statistics.median(value for _, value in logged)
    return numbers(computed(median, "per_second", traces, how="median"))


def _counted(made: Made, name: str, unit: Unit) -> Cell:
    """A number of the cost model, which follows from the spec, the model and the steps."""
    if name not in made.costs:
        return text("-")
    trace = record_of(made).trace("spec")
    return numbers(computed(made.costs[name], unit, [trace], how=f"estimate of {name}"))


def _workers(spec: Mapping[str, Any]) -> str:
    """Processes, and how they share the training."""
    resources = spec.get("resources")
    workers = spec.get("workers") if resources is None else resources["workers"]
    if workers is None:
        return "-"
    most = f"{workers['min']} to {workers['max']}" if isinstance(workers, dict) else str(workers)
    if resources is None:
        return most
    if resources["engine"] == "torch":
        return "1, plain torch"
    return f"{most}, ZeRO {resources['zero_stage']}"


def _device(made: Made) -> str:
    gpus = (made.record.spec.get("resources") or {}).get("gpus_per_worker", 0)
    return f"{gpus:g} GPU each" if gpus else made.record.environment.cpu


def _machines_table(made: Sequence[Made], names_of: Mapping[str, str]) -> Table:
    """Artifacts that were made by equal software on equal machines share a row."""
    groups: dict[tuple[str, ...], list[Made]] = {}
    for it in made:
        groups.setdefault(_machine(it.record.environment), []).append(it)
    head = (
        *names("stages"),
        *(Column(title=it, kind="code") for it in ("Python", "torch", "commit")),
        *names("platform"),
        *word_columns("processor"),
    )
    rows = tuple(
        row(
            [text(", ".join(names_of[it.artifact] for it in its)), *map(text, machine)],
            *(it.artifact for it in its),
        )
        for machine, its in groups.items()
    )
    return Table(title="Software and machines", columns=head, rows=rows)


def _machine(environment: Environment) -> tuple[str, ...]:
    commit = environment.git_commit or "unknown"
    return (
        environment.python,
        environment.packages.get("torch", "unknown"),
        commit[:12] + (" with changes" if environment.git_dirty else ""),
        environment.platform,
        environment.cpu,
    )


def _keys_table(made: Sequence[Made], names_of: Mapping[str, str]) -> Table:
    head = (
        *names("stage"),
        *(Column(title=it, kind="code") for it in ("key", "seed", "source", "code", "run")),
        *names("libraries in the key"),
    )
    rows = tuple(
        row(
            [
                text(names_of[it.artifact]),
                text(it.record.key[:12]),
                text("-" if it.record.key_record.seed is None else str(it.record.key_record.seed)),
                text(it.record.key_record.inputs.get("source", "-")[:12]),
                text(it.record.environment.code_digest[:12]),
                text(it.record.run),
                text(", ".join(f"{k} {v}" for k, v in it.record.key_record.libraries.items())),
            ],
            it.artifact,
        )
        for it in made
    )
    return Table(
        title="What the keys hold",
        note="The first digits of each digest. Source is the fingerprint of a raw corpus, code "
        "that of the source files a stage used.",
        columns=head,
        rows=rows,
        folded=True,
    )


def _blocks(origin: Origin) -> tuple[Block, ...]:
    if not origin.spec_yaml:
        return ()
    commits = dict.fromkeys(it.record.environment.git_commit for it in origin.made)
    checkout = [f"git checkout {it}" for it in commits if it][-1:]
    commands = [
        *checkout,
        "make setup",
        f"vitrail plan {_SPEC_FILE}    # {_SPEC_FILE}: the file below",
        f"vitrail run {_SPEC_FILE}",
    ]
    return (
        Block(title="Commands", text="\n".join(commands)),
        Block(title=f"The experiment: {_SPEC_FILE}", text=origin.spec_yaml, folded=True),
    )
