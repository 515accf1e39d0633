"""Stage `report`: one page about the stages that it is given and all that they were made from."""

from pathlib import Path

from infra.run_folder import RunFolder
from infra.storage import open_store
from jobs.lineage import ancestry
from jobs.stage import StageOutput, StageTools
from pipeline.dag.yaml_text import write_yaml
from pipeline.evaluation.report import Origin, write_report
from schemas.evaluation import ReportSpec
from schemas.runs import InputArtifact, StageRequest


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Write `report.html`, `report.md`, `report.json` and the figures into the attempt."""
    spec = ReportSpec.parse(request.spec)
    sources = _in_order(request)
    document = write_report(
        tools.attempt.path, title=spec.title, sources=sources, origin=_origin(request, sources)
    )
    for note in document.notes:
        tools.say(note.text)
    return StageOutput(
        metrics={
            "report/stages_count": float(len(sources)),
            "report/artifacts_count": float(len(document.lineage)),
        }
    )


def _origin(request: StageRequest, sources: list[InputArtifact]) -> Origin:
    """What the store and the run's folder tell of how the inputs came to be."""
    experiment = RunFolder(Path(request.pause_path).parent).read_spec()
    return Origin(
        experiment=request.experiment,
        run=request.run,
        made=ancestry(open_store(request.store), [it.artifact for it in sources]),
        spec_yaml="" if experiment is None else write_yaml(experiment),
    )


def _in_order(request: StageRequest) -> list[InputArtifact]:
    """The inputs as the user listed them: ports are `of[0]`, `of[1]`, and so on."""
    ports = sorted(request.inputs, key=lambda port: int(port.removeprefix("of[").removesuffix("]")))
    return [request.inputs[port] for port in ports]
