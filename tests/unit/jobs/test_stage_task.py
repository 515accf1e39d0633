import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from infra.serial_pool import SerialPool
from infra.storage import LocalStore
from jobs import filter as filter_job
from jobs import ingest as ingest_job
from jobs.stage import StageEntry, StageOutput, StageTools
from jobs.stage_task import append_line, execute_stage
from pipeline.dag.execute import RunContext, execute
from pipeline.dag.experiment_file import parse_experiment
from pipeline.dag.graph import expand
from pipeline.dag.plan import Facts
from pipeline.dag.selection import Selection
from pipeline.data.shards.shard_set import ShardSet
from pipeline.data.sources import fingerprint
from pipeline.ports import ArtifactStore
from schemas.artifacts import StageResult
from schemas.errors import DiskFullError
from schemas.manifest import DATASET_FOLDER
from schemas.runs import InputArtifact, StageOutcome, StageRequest
from tests.support.corpora import write_folder
from tests.support.fakes import FixedProvenance

TEXT = """\
name: mend
seed: 1
stages:
  corpus:
    kind: ingest
    source: {{type: image_folder, uri: {uri}, splits: {{train: train, test: test}}}}
  clean: {{kind: filter, data: corpus, against: [corpus@test]}}
  pixels: {{kind: baseline, data: clean, image_px: 8}}
"""


def read_everything(request: StageRequest, tools: StageTools) -> StageOutput:
    """A consumer: reads every image and label of its data."""
    split = ShardSet.open(Path(request.inputs["data"].path) / DATASET_FOLDER).split("train")
    rows = [split.row(index).label for index in range(split.num_rows)]
    (tools.attempt.path / "labels.txt").write_text(str(rows))
    tools.metrics.log({"train/rows_count": len(rows)}, step=0)
    return StageOutput({"train/rows_count": len(rows)})


ENTRIES: Mapping[str, StageEntry] = {
    "ingest": ingest_job.run,
    "filter": filter_job.run,
    "baseline": read_everything,
}


@dataclass
class TaskRunner:
    """`StageRunner` that makes stages in this process, as a stage task does."""

    store: ArtifactStore
    before: Callable[[StageRequest], None]
    waiting: list[StageRequest] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def submit(self, request: StageRequest) -> None:
        self.waiting.append(request)

    def wait(
        self,
        timeout_seconds: float,  # nothing takes time here
    ) -> Sequence[tuple[StageRequest, StageResult | BaseException]]:
        request = self.waiting.pop(0)
        self.before(request)
        self.ran.append(request.stage)
        try:
            return [(request, run_task(request, self.store))]
        except Exception as error:
            return [(request, error)]

    def close(self) -> None:
        self.waiting.clear()


def run_task(
    request: StageRequest, store: ArtifactStore, entry: StageEntry | None = None
) -> StageResult:
    return execute_stage(
        request,
        entry=entry or ENTRIES[request.spec["kind"]],
        store=store,
        provenance=FixedProvenance(),
        pool=SerialPool(),
    )


@dataclass
class Workshop:
    """A corpus, a store, and runs over them."""

    root: Path

    def __post_init__(self) -> None:
        self.raw = write_folder(self.root / "raw", per_class=4, splits=("train", "test"))
        self.store = LocalStore(self.root / "store")

    def run(
        self, before: Callable[[StageRequest], None] = lambda _: None, *, forced: Sequence[str] = ()
    ) -> tuple[list[str], tuple[StageOutcome, ...]]:
        """The stages that ran, every try of them, and how all ended."""
        runner = TaskRunner(self.store, before)
        provenance = FixedProvenance()
        outcomes = execute(
            expand(
                parse_experiment(
                    TEXT.format(uri=self.raw), name_of_file="x.yaml", profile=None, overrides=()
                )
            ),
            Facts(
                store=self.store,
                experiment="mend",
                file="x.yaml",
                libraries=provenance.library_versions,
                fingerprint=fingerprint,
                code_files=provenance.code_files_of,
            ),
            runner=runner,
            context=RunContext(
                run="r1",
                pause_path=str(self.root / "pause"),
                emit=lambda _: None,
                pause=lambda: False,
                now_ms=lambda: 1000,
                metrics_path=lambda artifact: f"{artifact}/metrics.jsonl",
            ),
            selection=Selection(force=tuple(forced)),
        )
        return runner.ran, outcomes

    def shard_of(self, stage: str) -> Path:
        """The training shard of what the stage made last."""
        result = self.store.get_ref("mend", stage)
        assert result is not None
        data = ShardSet.open(self.store.path(result) / DATASET_FOLDER)
        return data.shards_folder / data.split("train").shard_names[0]


def damage_image(shard: Path) -> None:
    flip(shard, shard.read_bytes().index(b"\xff\xd8\xff") + 400)


def damage_label(shard: Path) -> None:
    mapped = pa.memory_map(str(shard)).read_buffer()
    labels = pa.ipc.open_file(mapped).get_batch(0)["label"].buffers()[1]
    flip(shard, labels.address - mapped.address)


def flip(path: Path, place: int) -> None:
    """Another bit in the same file, at the same time as before."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_ino == before.st_ino


def once(stage: str, damage: Callable[[], None]) -> Callable[[StageRequest], None]:
    """Does the damage right before the first try of a stage."""
    done: list[str] = []

    def before(request: StageRequest) -> None:
        if request.stage == stage and not done:
            done.append(stage)
            damage()

    return before


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.mark.parametrize("damage", [damage_image, damage_label])
def test_damage_before_the_first_reader_is_mended_from_the_source(
    workshop: Workshop, damage: Callable[[Path], None]
) -> None:
    ran, outcomes = workshop.run(once("clean", lambda: damage(workshop.shard_of("corpus"))))
    assert ran == ["corpus", "clean", "corpus", "clean", "pixels"]
    assert [outcome.status for outcome in outcomes] == ["ran"] * 3
    for stage in ("corpus", "clean", "pixels"):
        result = workshop.store.get_ref("mend", stage)
        assert result is not None
        assert workshop.store.verify(result) is None


def test_damage_that_a_set_shares_with_its_parent_is_mended_in_both(workshop: Workshop) -> None:
    ran, outcomes = workshop.run(once("pixels", lambda: damage_label(workshop.shard_of("clean"))))
    assert ran == ["corpus", "clean", "pixels", "clean", "corpus", "clean", "pixels"]
    assert [outcome.status for outcome in outcomes] == ["ran"] * 3
    assert workshop.shard_of("clean").samefile(workshop.shard_of("corpus"))


def test_a_second_reader_trusts_what_was_verified(workshop: Workshop) -> None:
    workshop.run()
    markers = list((workshop.root / "store").rglob("verified.json"))
    assert len(markers) == 2, "corpus and clean have readers"
    stamps = [marker.stat().st_mtime_ns for marker in markers]
    ran, _ = workshop.run(forced=["pixels"])
    assert ran == ["pixels"]
    assert [marker.stat().st_mtime_ns for marker in markers] == stamps


def test_a_forced_stage_begins_a_new_curve(workshop: Workshop) -> None:
    workshop.run()
    workshop.run(forced=["pixels"])
    result = workshop.store.get_ref("mend", "pixels")
    assert result is not None
    curve = workshop.store.path(result) / "logs" / "metrics.jsonl"
    assert len(curve.read_text().splitlines()) == 1


def test_no_progress_but_the_curve_survives_a_commit(workshop: Workshop) -> None:
    workshop.run()
    left = [path.name for path in (workshop.root / "store").glob("artifacts/*/progress/*")]
    assert sorted(left) == ["metrics.jsonl"] * 3


def test_a_result_that_is_damaged_when_its_key_is_asked_for_is_replaced(
    workshop: Workshop,
) -> None:
    requests: list[StageRequest] = []
    workshop.run(requests.append)
    request = requests[-1]
    first = workshop.store.lookup("baseline", request.key)
    assert first is not None
    assert run_task(request, workshop.store) == first
    (workshop.store.path(first) / "labels.txt").unlink()
    assert run_task(request, workshop.store).attempt != first.attempt


def full_disk(request: StageRequest, tools: StageTools) -> StageOutput:
    tools.say(f"{request.stage} has something to say")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard.arrow")


def test_a_full_disk_is_told_even_if_the_log_is_full_too(workshop: Workshop) -> None:
    requests: list[StageRequest] = []
    workshop.run(requests.append)
    log = workshop.root / "log.txt"
    log.unlink()
    log.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), log.open("ab", buffering=0) as file:
        file.write(b"x")
    request = requests[0].revise(key="0" * 64)
    with pytest.raises(DiskFullError, match=r"the disk is full: shard\.arrow could not be written"):
        run_task(request, workshop.store, full_disk)
    append_line(workshop.root / "no" / "folder" / "log.txt", "lost")


def test_inputs_are_checked_once_each_by_the_store(workshop: Workshop) -> None:
    asked: list[str] = []

    class Watched(LocalStore):
        def check_input(self, artifact: InputArtifact) -> str | None:
            asked.append(artifact.stage)
            return super().check_input(artifact)

    workshop.store = Watched(workshop.root / "store")
    workshop.run()
    assert asked == ["corpus", "clean"], "the filter reads the corpus through two ports"
