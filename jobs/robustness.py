"""Stage `robustness`: images changed in many ways, and what models still recognise of them."""

import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import torch

from jobs.passes import PASSES_FOLDER, do_pass, pass_of, pool_of
from jobs.stage import StageOutput, StageTools
from pipeline.data.feed.loader import probe_batch
from pipeline.data.shards.shard_set import ShardSet
from pipeline.evaluation.classify import check_same_classes
from pipeline.evaluation.passes import Pass
from pipeline.evaluation.robustness.drawing import draw_report
from pipeline.evaluation.robustness.learning import PatchLesson, learn_patch
from pipeline.evaluation.robustness.planning import learned_name, patch_side
from pipeline.evaluation.robustness.saliency import can_guide
from pipeline.evaluation.robustness.strips import strips_of
from pipeline.evaluation.robustness.summary import clean_accuracy, corruption_errors, curves_of
from pipeline.evaluation.robustness.work import LoadedTests, Named, Robustness
from pipeline.model.saved import load_saved
from schemas.checkpoint import MODEL_FOLDER
from schemas.errors import PausedError
from schemas.manifest import DATASET_FOLDER
from schemas.robustness import (
    ABSENT_CORRUPTIONS,
    CorruptionTest,
    PatchDropTest,
    RobustnessSpec,
    UniversalPatchTest,
)
from schemas.robustness_report import (
    ROBUSTNESS_FILE,
    AbsentTest,
    MeasuredModel,
    RobustnessCurve,
    RobustnessReport,
)
from schemas.runs import InputArtifact, StageRequest
from schemas.spec import canonical_json

PATCHES_FOLDER = "patches"
_NO_METRIC = re.compile(r"[^A-Za-z0-9_-]+")
"""What no name of a metric holds."""


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Run every test on every model; write answers, `robustness.json` and figures."""
    stage = _Stage(request, RobustnessSpec.parse(request.spec), tools)
    stage.learn_patches()
    found = [stage.measured(size, numbers) for size, numbers in stage.by_size().items()]
    report = stage.report(found)
    folder = tools.attempt.path
    (folder / ROBUSTNESS_FILE).write_text(canonical_json(report.dump()) + "\n")
    _draw(folder, report, found[0], stage)
    for gap in report.absent:
        model = "" if gap.model is None else f" of {gap.model}"
        tools.say(f"{gap.test}{model}: {gap.what} is absent: {gap.reason}")
    return StageOutput(metrics=_metrics(report), spent=(PASSES_FOLDER,))


@dataclass(frozen=True)
class _Found:
    """What a pass over the images of one size gave."""

    numbers: tuple[int, ...]
    """Of its models."""
    tested: LoadedTests
    file: str
    table: pa.Table


class _Stage:
    """The models and images of one stage."""

    def __init__(self, request: StageRequest, spec: RobustnessSpec, tools: StageTools) -> None:
        """Open everything, and refuse models of other classes."""
        self.request, self.spec, self.tools = request, spec, tools
        self.data = request.inputs["data"]
        self.models = _models(request)
        self.saved = [load_saved(_folder(it)) for it in self.models]
        shards = ShardSet.open(Path(self.data.path) / DATASET_FOLDER)
        for saved in self.saved:
            check_same_classes(saved.class_names, shards.class_names)
        self.images = pass_of(self._work(()), self.data, spec, images=spec.samples).open().num_rows
        self.reference = request.inputs.get("reference")

    @property
    def guide(self) -> Named | None:
        """The model that says what is salient, if that is asked and there is one."""
        orders = {it for test in self.spec.tests if isinstance(test, PatchDropTest)
                  for it in test.orders}  # fmt: skip
        if orders <= {"random"}:
            return None
        given = self.request.inputs.get("guide")
        if given is not None:
            return Named(given.stage, _folder(given), 0)
        able = (number for number, saved in enumerate(self.saved) if can_guide(saved.spec))
        number = next(able, None)
        return None if number is None else self.named(number)

    @property
    def training_images(self) -> int:
        """Images that universal patches are learned on: at most half."""
        lessons = [it for it in self.spec.tests if isinstance(it, UniversalPatchTest)]
        return min(lessons[0].training_images, self.images // 2) if lessons else 0

    @property
    def patches(self) -> Path:
        """Where learned patches are kept: an attempt after this one finds them."""
        return self.tools.attempt.progress / PASSES_FOLDER / PATCHES_FOLDER

    def by_size(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """Models whose input has the same size."""
        found: dict[tuple[int, int], tuple[int, ...]] = defaultdict(tuple)
        for number, saved in enumerate(self.saved):
            found[saved.spec.image_px] += (number,)
        return found

    def named(self, number: int) -> Named:
        """A model of the spec."""
        artifact = self.models[number]
        return Named(artifact.stage, _folder(artifact), number)

    def learn_patches(self) -> None:
        """Learn every universal patch that is asked for and not there yet.

        Raises:
            PausedError: If a stop was requested; the next call goes on with the next patch.
        """
        due = [lesson for lesson in self._lessons() if not lesson.file.is_file()]
        spec = self.spec
        done = pool_of(spec, self.tools).map(
            learn_patch,
            due,
            label="learning patches",
            gpus=spec.gpus_per_worker,
            at_once=spec.workers,
        )
        for lesson, _ in done:
            self.tools.say(f"learned {lesson.file.stem}, {lesson.side} px a side")
            if self.tools.stop.requested():
                raise PausedError("stopped between two patches")

    def _lessons(self) -> Iterator[PatchLesson]:
        images = self.pass_over(())
        for test in self.spec.tests:
            if not isinstance(test, UniversalPatchTest) or not self.training_images:
                continue
            for number, saved in enumerate(self.saved):
                for percent in test.side_percents:
                    for draw in range(test.seeds):
                        yield PatchLesson(
                            dataset=images.dataset,
                            split=images.split,
                            model=self.named(number).folder,
                            test=test,
                            side=patch_side(saved.spec.image_px, percent),
                            training_images=self.training_images,
                            seed=self.request.seed,
                            draw=draw,
                            threads=self.spec.threads,
                            gpu=bool(self.spec.gpus_per_worker),
                            file=self.patches / learned_name(number, percent, draw),
                        )

    def measured(self, size: tuple[int, int], numbers: tuple[int, ...]) -> _Found:
        """Run the tests on the models of one size, whose folders are read here once more."""
        task = self.pass_over(numbers)
        file = f"answers-{size[0]}x{size[1]}.arrow"
        names = ", ".join(self.models[number].stage for number in numbers)
        tested = self._work(numbers).load(torch.device("cpu"))
        passes = sum(plan.passes for plan in tested.plans)
        self.tools.say(f"{self.images} images x {passes:g} forward passes: {names}")
        table = do_pass(
            task, self.tools.attempt.path / file, self.spec, self.tools, label="testing"
        )
        return _Found(numbers, tested, file, table)

    def report(self, found: list[_Found]) -> RobustnessReport:
        """The document."""
        models: dict[int, MeasuredModel] = {}
        curves: dict[int, tuple[RobustnessCurve, ...]] = {}
        absent = list(_never_there(self.spec))
        for it in found:
            for number, plan in zip(it.numbers, it.tested.plans, strict=True):
                stage = self.models[number].stage
                places = [place for trial in plan.trials for place in trial.places]
                curves[number] = curves_of(it.table, stage, places)
                models[number] = self._model(number, it, plan.passes)
                absent.extend(plan.absent)
        ordered = tuple(curve for number in sorted(curves) for curve in curves[number])
        guide = self.guide
        return RobustnessReport(
            data=self.data.stage,
            split=self.pass_over(()).split,
            images=self.images,
            seed=self.request.seed,
            guide=None if guide is None else guide.stage,
            tests=self.spec.tests,
            models=tuple(models[number] for number in sorted(models)),
            curves=ordered,
            corruptions=corruption_errors(
                ordered, None if self.reference is None else self.reference.stage
            ),
            absent=tuple(absent),
        )

    def _model(self, number: int, found: _Found, passes: float) -> MeasuredModel:
        artifact, saved = self.models[number], self.saved[number]
        return MeasuredModel(
            stage=artifact.stage,
            digest=artifact.digest,
            type=saved.spec.type,
            image_px=saved.spec.image_px,
            clean=clean_accuracy(found.table, artifact.stage),
            answers=found.file,
            column=f"{artifact.stage}|clean",
            passes_per_image=passes,
        )

    def pass_over(self, numbers: tuple[int, ...]) -> Pass:
        """The tests of some models on the images of the stage."""
        return pass_of(self._work(numbers), self.data, self.spec, images=self.spec.samples)

    def _work(self, numbers: tuple[int, ...]) -> Robustness:
        return Robustness(
            models=tuple(map(self.named, numbers)),
            guide=self.guide if numbers else None,
            tests=self.spec.tests,
            patches=self.patches,
            training_images=self.training_images if numbers else 0,
            seed=self.request.seed,
        )


def _models(request: StageRequest) -> list[InputArtifact]:
    """The models as the user listed them."""
    if "model" in request.inputs:
        return [request.inputs["model"]]
    count = sum(port.startswith("model[") for port in request.inputs)
    return [request.inputs[f"model[{number}]"] for number in range(count)]


def _folder(artifact: InputArtifact) -> Path:
    return Path(artifact.path) / MODEL_FOLDER


def _never_there(spec: RobustnessSpec) -> Iterator[AbsentTest]:
    if any(isinstance(test, CorruptionTest) for test in spec.tests):
        for name, reason in ABSENT_CORRUPTIONS.items():
            yield AbsentTest(test="corruption", model=None, what=name, reason=reason)


def _draw(folder: Path, report: RobustnessReport, found: _Found, stage: _Stage) -> None:
    """Figures of every test; what images look like is shown with the models of one size."""
    split = stage.pass_over(()).open()
    first = found.tested.see(probe_batch(split, 1, found.tested.image_px))
    draw_report(folder, report, strips_of(found.tested, first))
    if stage.patches.is_dir():
        shutil.copytree(stage.patches, folder / PATCHES_FOLDER)


def _metrics(report: RobustnessReport) -> dict[str, float]:
    """Clean accuracy, the mean accuracy of each curve, and errors under corruptions."""
    split, metrics = report.split, {}
    names = {it.stage: _NO_METRIC.sub("_", it.stage).strip("_") for it in report.models}
    for model in report.models:
        metrics[f"{split}/{names[model.stage]}_clean_top1_ratio"] = model.clean.top1_ratio
    for test in report.tests:
        for model in report.models:
            own = [
                point.mean
                for curve in report.curves
                if (curve.test, curve.model) == (test.type, model.stage)
                and curve.measure != "dropped_ratio"
                for point in curve.points
            ]
            unit = "correlation" if test.type == "token_correlation" else "mean_top1_ratio"
            if own:
                metrics[f"{split}/{names[model.stage]}_{test.type}_{unit}"] = fmean(own)
    for found in report.corruptions:
        if found.mce_ratio is not None:
            metrics[f"{split}/{names[found.model]}_mce_ratio"] = found.mce_ratio
    return metrics | {f"{split}/images_count": float(report.images)}
