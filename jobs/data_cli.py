"""`vitrail data`: commands on shard sets."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.options import OutputOption, ProfileOption, SetOption, SpecArgument, WorkspaceOption
from schemas.errors import UsageError

data_app = typer.Typer(help="Look at shard sets, check them, and write them in other forms.")

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="SET", help="A folder, a URI or an artifact; with STAGE, a YAML file or recipe."
    ),
]
StageArgument = Annotated[
    str | None, typer.Argument(metavar="[STAGE]", help="The stage of the spec that made the set.")
]
TrainingArgument = Annotated[
    str, typer.Argument(metavar="STAGE", help="A stage of the spec that trains.")
]


@data_app.command()
def inspect(
    name: NameArgument,
    stage: StageArgument = None,
    *,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="Draw its figures there.")
    ] = None,
    workspace: WorkspaceOption = None,
    output: OutputOption = "text",
) -> None:
    """Show the splits, classes and refused files of a shard set."""
    from jobs.data_commands import inspect_set
    from jobs.data_sets import SetName

    inspect_set(SetName(name, stage, workspace), figures, output)


@data_app.command()
def verify(
    name: NameArgument,
    stage: StageArgument = None,
    *,
    workspace: WorkspaceOption = None,
    output: OutputOption = "text",
) -> None:
    """Read every byte of a shard set; exit 6 and name each file that is not what was written."""
    from jobs.data_commands import verify_set
    from jobs.data_sets import SetName

    raise typer.Exit(verify_set(SetName(name, stage, workspace), output))


@data_app.command()
def export(  # noqa: PLR0913  # a command has as many options as it has
    name: NameArgument,
    stage: StageArgument = None,
    *,
    to: Annotated[
        Literal["datasets", "parquet", "webdataset", "image_folder"],
        typer.Option("--to", help="The form to write."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder.")],
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Just this split; repeatable.")
    ] = None,
    workspace: WorkspaceOption = None,
    output: OutputOption = "text",
) -> None:
    """Write a shard set in a form that other tools read; removed images are left out."""
    from jobs.data_commands import export_set
    from jobs.data_sets import SetName

    export_set(SetName(name, stage, workspace), form=to, out=out, splits=split or [], output=output)


@data_app.command()
def remove(  # noqa: PLR0913  # a command has as many options as it has
    spec: SpecArgument,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="The stage that made the set.")],
    uids: Annotated[
        list[str] | None, typer.Argument(metavar="[UID]...", help="Images, 32 hex digits each.")
    ] = None,
    *,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="NAME", help="An image by its source's name; repeatable."),
    ] = None,
    listed: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="A uid or a source's name in each line."),
    ] = None,
    note: Annotated[str, typer.Option("--note", help="Why; kept beside every image.")] = "",
    name: Annotated[
        str | None, typer.Option("--name", help="Of the new stage. [default: STAGE-kept]")
    ] = None,
    workspace: WorkspaceOption = None,
    profile: ProfileOption = None,
    set_: SetOption = None,
    output: OutputOption = "text",
) -> None:
    """Take images out of a shard set: writes a stage into the spec, and runs it."""
    from jobs.data_remove import named_images, remove_from
    from jobs.target import Target

    named = named_images(uids or [], source or [], listed, note)
    target = Target(spec, workspace, profile, tuple(set_ or ()))
    raise typer.Exit(remove_from(target, stage, named, name=name, output=output))


@data_app.command()
def which(  # noqa: PLR0913  # a command has as many options as it has
    spec: SpecArgument,
    stage: TrainingArgument,
    *,
    step: Annotated[
        int | None, typer.Option("--step", help="Which images are in this optimizer step, from 0?")
    ] = None,
    uid: Annotated[
        str | None, typer.Option("--uid", help="Which steps take this image? 32 hex digits.")
    ] = None,
    workspace: WorkspaceOption = None,
    profile: ProfileOption = None,
    set_: SetOption = None,
    output: OutputOption = "text",
) -> None:
    """Say which images a training step takes, or which steps take an image."""
    from jobs.data_commands import which_images, which_steps
    from jobs.target import Target

    if (step is None) == (uid is None):
        raise UsageError("give exactly one of --step and --uid")
    target = Target(spec, workspace, profile, tuple(set_ or ()))
    if step is not None:
        which_images(target, stage, step=step, output=output)
    elif uid is not None:
        which_steps(target, stage, uid=uid, output=output)
