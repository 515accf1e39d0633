"""Stage `report`: one page about the stages that it is given."""

from jobs.stage import StageOutput, StageTools
from pipeline.evaluation.report import write_report
from schemas.evaluation import ReportSpec
from schemas.runs import InputArtifact, StageRequest


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Write `report.html`, `report.json` and the figures into the attempt."""
    spec = ReportSpec.parse(request.spec)
    sources = _in_order(request)
    document = write_report(
        tools.attempt.path,
        title=spec.title,
        sources=sources,
    )
    for note in document.notes:
        tools.say(note)
    return StageOutput(
        metrics={
            "report/stages_count": float(len(sources)),
            "report/accuracies_count": float(len(document.accuracies)),
        }
    )


def _in_order(request: StageRequest) -> list[InputArtifact]:
    """The inputs as the user listed them: ports are `of[0]`, `of[1]`, and so on."""
    ports = sorted(request.inputs, key=lambda port: int(port.removeprefix("of[").removesuffix("]")))
    return [request.inputs[port] for port in ports]
