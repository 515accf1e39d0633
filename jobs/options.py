"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Output = Literal["text", "json"]

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A YAML file, or the name of a recipe.")
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        envvar="VITRAIL_WORKSPACE",
        help="Folder of store, runs and tracker. [default: .vitrail]",
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URI",
        help="Where artifacts are kept: a folder, or s3://BUCKET/PREFIX. [env var: VITRAIL_STORE] "
        "[default: in the workspace]",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Replace a value of the spec; repeatable."),
]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="Apply one of the spec's named profiles.")
]
OutputOption = Annotated[Output, typer.Option("--output", help="What stdout gets.")]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="A,B", help="Run just these stages.")
]
FromOption = Annotated[
    str | None, typer.Option("--from", metavar="A,B", help="Run these and all that follow.")
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="A,B", help="Run these and all they need.")
]
ForceOption = Annotated[
    str | None, typer.Option("--force", metavar="A,B", help="Make these again though made.")
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server or database. [default: SQLite in the workspace]",
    ),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run, as `run` printed it.")]
