"""Stage `import`: weights from elsewhere become a model that other stages start from."""

from pathlib import Path

from jobs.stage import StageOutput, StageTools
from pipeline.model.interchange import Loaded, load
from pipeline.model.saved import save_model
from schemas.checkpoint import MODEL_FOLDER, ModelOrigin, SavedModel
from schemas.interchange import ImportSpec
from schemas.runs import StageRequest


def run(request: StageRequest, tools: StageTools) -> StageOutput:
    """Read the weights and write `model/` into the attempt; what was assumed is said.

    Raises:
        SpecError: If they are not those of a ViT in the layout that the spec names.
        IntegrityError: If a file is torn.
    """
    spec = ImportSpec.parse(request.spec)
    found = load(Path(spec.source.uri), spec.source.layout, assume=spec.assume)
    for line in remarks(found.origin):
        tools.say(line)
    folder = tools.attempt.path / MODEL_FOLDER
    save_model(folder, found.weights, saved_model(found, key=request.key))
    count = sum(weight.numel() for weight in found.weights.values())
    return StageOutput(metrics={"model/parameters_count": float(count)})


def saved_model(found: Loaded, *, key: str | None) -> SavedModel:
    """What an imported model says of itself."""
    return SavedModel(
        spec=found.spec,
        class_names=found.class_names,
        probabilities=found.probabilities,
        trained_steps=0,
        key=key,
        origin=found.origin,
    )


def remarks(origin: ModelOrigin) -> list[str]:
    """What a person should know of an import, one line each."""
    assumed = ", ".join(origin.assumed)
    dropped = ", ".join(origin.dropped)
    return [
        *([f"the file does not say, and was taken: {assumed}"] if assumed else []),
        *([f"left out: {dropped}"] if dropped else []),
        *origin.notes,
    ]
