"""A small experiment, and a world in which it can be planned and run in milliseconds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.dag.execute import RunContext, execute
from pipeline.dag.experiment_file import parse_experiment
from pipeline.dag.graph import Graph, expand
from pipeline.dag.plan import Facts, Planned, plan
from pipeline.dag.selection import Selection
from schemas.experiment import ExperimentSpec
from schemas.runs import Event, StageOutcome
from tests.support.fakes import FixedProvenance, InlineRunner, MemoryStore

TEXT = """\
name: pets
seed: 17
stages:
  corpus:
    kind: ingest
    source: {type: image_folder, uri: /data/photos}
  pets:
    kind: ingest
    source: {type: image_folder, uri: /data/pets, splits: {train: train/, test: test/}}
  clean: {kind: filter, data: corpus, against: [pets@test]}
  pretrain:
    kind: pretrain
    data: clean
    model: {variant: Ti, patch_px: 16, image_px: 32}
    optim: {peak_lr: 1e-3}
    batch: {global_samples: 8}
    duration: {steps: 10}
  transfer:
    kind: finetune
    data: pets
    init: pretrain
    optim: {peak_lr: 1e-3}
    batch: {global_samples: 8}
    duration: {steps: 5}
    register_as: pets
  accuracy: {kind: evaluate, data: pets, model: transfer}
  pixels: {kind: baseline, data: pets, image_px: 8}
  report: {kind: report, of: [accuracy, pixels]}
profiles:
  small: {pretrain.model.variant: S, pretrain.duration: {epochs: 2}}
"""
REMOVED_UID = "0" * 32
_CHANGES = f"""\
  grown: {{kind: append, to: corpus, source: {{type: image_folder, uri: /data/more}}}}
  left: {{kind: remove, data: grown, uids: ["{REMOVED_UID}"], note: request 17}}
"""
CURATED = TEXT.replace("  clean:", _CHANGES + "  clean:").replace(
    "data: corpus, against", "data: left, against"
)
"""The same with a corpus that grew, and of which an image was taken out."""
STAGES = ("corpus", "pets", "clean", "pretrain", "transfer", "accuracy", "pixels", "report")


def experiment(*overrides: str, text: str = TEXT, profile: str | None = None) -> ExperimentSpec:
    """The small experiment, changed as `--set` would."""
    return parse_experiment(text, name_of_file="run.yaml", profile=profile, overrides=overrides)


@dataclass
class World:
    """A store, a runner and a source; `plan` and `run` are one command each."""

    root: Path
    listing: dict[str, str] = field(default_factory=dict)
    """Fingerprints by URI, where they are not the URI itself."""
    events: list[Event] = field(default_factory=list)
    pause_after: int | None = None
    """Number of tries after which a stop is asked for."""

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.root)
        self.provenance = FixedProvenance()
        self.runner = InlineRunner(self.store, self.provenance)

    def facts(self) -> Facts:
        """Fresh answers, as a new process would have."""
        return Facts(
            store=self.store,
            experiment="pets",
            file="run.yaml",
            libraries=self.provenance.library_versions,
            fingerprint=lambda source: self.listing.get(source.uri, source.uri),
            code_files=self.provenance.code_files_of,
        )

    def plan(self, graph: Graph, selection: Selection | None = None) -> tuple[Planned, ...]:
        return plan(graph, self.facts(), selection=selection or Selection())

    def actions(self, graph: Graph, selection: Selection | None = None) -> dict[str, str]:
        """Stage -> what the plan says."""
        return {entry.node.name: entry.decision.action for entry in self.plan(graph, selection)}

    def run(self, graph: Graph, selection: Selection | None = None) -> dict[str, StageOutcome]:
        """Stage -> how it ended. `runner.ran` is of this run only."""
        self.runner.ran.clear()
        self.events.clear()
        context = RunContext(
            run="r1",
            pause_path="/run/pause",
            emit=self.events.append,
            pause=lambda: self.pause_after is not None and len(self.runner.ran) >= self.pause_after,
            now_ms=lambda: 1000,
            metrics_path=lambda artifact: f"/store/{artifact}/progress/metrics.jsonl",
        )
        outcomes = execute(
            graph,
            self.facts(),
            runner=self.runner,
            context=context,
            selection=selection or Selection(),
        )
        return {outcome.name: outcome for outcome in outcomes}

    def told(self, kind: str, stage: str) -> list[Event]:
        """Events of one type about one stage."""
        return [event for event in self.events if (event.type, event.stage) == (kind, stage)]


def graph_of(*overrides: str, text: str = TEXT) -> Graph:
    """The small experiment's graph."""
    return expand(experiment(*overrides, text=text))


def statuses(outcomes: dict[str, StageOutcome], names: Sequence[str] = STAGES) -> list[str]:
    """How these stages ended."""
    return [outcomes[name].status for name in names]
