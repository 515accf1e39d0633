"""`vitrail model` and `vitrail predict`: commands on trained and imported models."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.options import OutputOption, WorkspaceOption

model_app = typer.Typer(help="Bring models in, send them out, and look at them.")

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model's folder or an artifact; with STAGE, a YAML file or recipe."
    ),
]
StageArgument = Annotated[
    str | None, typer.Argument(metavar="[STAGE]", help="The stage of the spec that made the model.")
]
AssumeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="What a file leaves open, such as num_heads=6 or gelu=tanh; repeatable.",
    ),
]
ReadLayout = Literal["google", "timm", "hf", "safetensors"]
LayoutOption = Annotated[
    ReadLayout | None,
    typer.Option("--layout", help="The layout of the file. [default: recognised]"),
]


@model_app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file of weights, or a folder.")],
    *,
    layout: LayoutOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="A new folder. [default: SRC's name, -model]"),
    ] = None,
    set_: AssumeOption = None,
    output: OutputOption = "text",
) -> None:
    """Make a model of weights from elsewhere; exit 3 and list what does not fit."""
    from jobs.model_commands import import_model

    import_model(Path(source), layout=layout, out=out, assume=set_ or [], output=output)


@model_app.command()
def export(  # a command has as many options as it has
    name: ModelArgument,
    stage: StageArgument = None,
    *,
    layout: Annotated[
        Literal["google", "timm", "hf", "safetensors", "onnx"],
        typer.Option("--layout", help="What to write."),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PATH", help="A new file; for hf and timm a folder."),
    ],
    workspace: WorkspaceOption = None,
    output: OutputOption = "text",
) -> None:
    """Write a model for other tools; says what the layout does not carry."""
    from jobs.model_commands import export_model
    from jobs.model_names import ModelName

    export_model(ModelName(name, stage, workspace), layout=layout, out=out, output=output)


@model_app.command()
def info(  # a command has as many options as it has
    name: Annotated[
        str, typer.Argument(metavar="PATH", help="A model of ours, or a file of weights.")
    ],
    stage: StageArgument = None,
    *,
    layout: LayoutOption = None,
    set_: AssumeOption = None,
    workspace: WorkspaceOption = None,
    output: OutputOption = "text",
) -> None:
    """Show the architecture, size and conventions of a model, ours or not."""
    from jobs.model_commands import show_model
    from jobs.model_names import ModelName

    show_model(ModelName(name, stage, workspace), layout=layout, assume=set_ or [], output=output)


@model_app.command()
def card(
    name: ModelArgument,
    stage: StageArgument = None,
    *,
    workspace: WorkspaceOption = None,
    output: OutputOption = "text",
) -> None:
    """Print a model card in Markdown: data, lineage, figures, conventions."""
    from jobs.model_cards import show_card
    from jobs.model_names import ModelName

    show_card(ModelName(name, stage, workspace), output)


def predict(  # noqa: PLR0913  # a command has as many options as it has
    name: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    *,
    stage: Annotated[
        str | None, typer.Option("--stage", help="The stage that made it; MODEL is then a spec.")
    ] = None,
    attention: Annotated[
        Literal["last", "rollout"],
        typer.Option("--attention", help="Of the last block, or followed through all blocks."),
    ] = "last",
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to name.")] = 5,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="For overlays. [default: this folder]")
    ] = Path(),
    workspace: WorkspaceOption = None,
    output: OutputOption = "text",
) -> None:
    """Say what is on images, and draw where the model looks."""
    from jobs.model_names import ModelName
    from jobs.predict import predict_images

    model = ModelName(name, stage, workspace)
    predict_images(model, images, attention=attention, top=top, out=out, output=output)
