"""The command `vitrail`. Light to start: a command imports what it needs when it runs."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from jobs.data_cli import data_app
from jobs.model_cli import model_app, predict
from jobs.options import (
    ForceOption,
    FromOption,
    OnlyOption,
    OutputOption,
    ProfileOption,
    RunArgument,
    SetOption,
    SpecArgument,
    StoreOption,
    TrackingOption,
    UntilOption,
    WorkspaceOption,
)
from schemas.errors import UsageError, VitrailError

app = typer.Typer(
    name="vitrail",
    help="From raw images to evaluated, registered Vision Transformers: one declared pipeline.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
)
config_app = typer.Typer(help="Look at a spec, or at what a spec may say.")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")
app.command()(predict)


@app.callback(invoke_without_command=False)
def options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options of every command; `main` reads them before any command runs."""


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    recipe: Annotated[str, typer.Option("--recipe", help="The recipe to start from.")] = "photos",
) -> None:
    """Write a recipe to a file of your own."""
    from jobs.commands import init_file

    init_file(file, recipe)


@app.command()
def recipes(*, output: OutputOption = "text") -> None:
    """List the recipes that ship with Vitrail."""
    from jobs.commands import list_recipes

    list_recipes(output)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    from jobs.commands import print_schema

    print_schema()


@config_app.command("show")
def config_show(
    spec: SpecArgument, *, profile: ProfileOption = None, set_: SetOption = None
) -> None:
    """Check a spec and print it with every default filled in, as JSON."""
    from jobs.commands import show_spec

    show_spec(spec, profile=profile, overrides=set_ or [])


@app.command()
def plan(  # noqa: PLR0913  # a command has as many options as it has
    spec: SpecArgument,
    *,
    workspace: WorkspaceOption = None,
    store: StoreOption = None,
    profile: ProfileOption = None,
    set_: SetOption = None,
    only: OnlyOption = None,
    from_: FromOption = None,
    until: UntilOption = None,
    force: ForceOption = None,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit 10 if something would run.")
    ] = False,
    output: OutputOption = "text",
) -> None:
    """Say what a run would do, and why, without doing it."""
    from jobs.commands import show_plan
    from jobs.target import Target

    target = Target(spec, workspace, profile, tuple(set_ or ()), store)
    changes = show_plan(target, selected=(only, from_, until, force), output=output)
    if changes and detailed_exitcode:
        raise typer.Exit(10)


@app.command()
def estimate(  # noqa: PLR0913  # a command has as many options as it has
    spec: SpecArgument,
    *,
    workspace: WorkspaceOption = None,
    profile: ProfileOption = None,
    set_: SetOption = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option("--gpu", help="A GPU by name, such as h100; repeatable. [default: several]"),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=1, help="How many. [default: the spec's resources.workers]"),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option("--images", min=1, help="Images of the corpus. [default: of the one made]"),
    ] = None,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option("--price-per-gpu-hour", min=0, help="In any currency.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option("--mfu", min=0.01, max=1, help="Share of the peak that training gets."),
    ] = None,
    output: OutputOption = "text",
) -> None:
    """Say what training would take on named GPUs: memory, speed, hours, cost."""
    from jobs.estimating import Question, show_estimate
    from jobs.target import Target

    question = Question(tuple(gpu or ()), gpus, images, price_per_gpu_hour, mfu)
    show_estimate(Target(spec, workspace, profile, tuple(set_ or ())), question, output)


@app.command()
def explain(
    spec: SpecArgument,
    stage: Annotated[str, typer.Argument(help="The stage to explain.")],
    *,
    workspace: WorkspaceOption = None,
    profile: ProfileOption = None,
    set_: SetOption = None,
    output: OutputOption = "text",
) -> None:
    """Say why one stage would run again, field by field."""
    from jobs.commands import explain_stage
    from jobs.target import Target

    explain_stage(Target(spec, workspace, profile, tuple(set_ or ())), stage, output)


@app.command()
def run(  # noqa: PLR0913  # a command has as many options as it has
    spec: SpecArgument,
    *,
    workspace: WorkspaceOption = None,
    store: StoreOption = None,
    profile: ProfileOption = None,
    set_: SetOption = None,
    only: OnlyOption = None,
    from_: FromOption = None,
    until: UntilOption = None,
    force: ForceOption = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray cluster, HOST:PORT. [default: embedded]"),
    ] = None,
    tracking_uri: TrackingOption = None,
    run_id: Annotated[str | None, typer.Option("--run-id", hidden=True)] = None,
    output: OutputOption = "text",
) -> None:
    """Make everything the spec declares; what is made already is reused."""
    from jobs.commands import run_spec
    from jobs.target import Target

    code = run_spec(
        Target(spec, workspace, profile, tuple(set_ or ()), store),
        selected=(only, from_, until, force),
        places=(address, tracking_uri, run_id),
        output=output,
    )
    raise typer.Exit(code)


@app.command()
def submit(  # noqa: PLR0913  # a command has as many options as it has
    spec: SpecArgument,
    *,
    address: Annotated[
        str,
        typer.Option("--address", envvar="RAY_ADDRESS", help="Jobs server, http://HOST:8265."),
    ] = "http://127.0.0.1:8265",
    workspace: WorkspaceOption = None,
    store: StoreOption = None,
    profile: ProfileOption = None,
    set_: SetOption = None,
    tracking_uri: TrackingOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the log.")] = False,
) -> None:
    """Run the pipeline as a job on a Ray cluster; Ctrl-C only detaches."""
    from jobs.remote import submit_spec
    from jobs.target import Target

    target = Target(spec, workspace, profile, tuple(set_ or ()), store)
    raise typer.Exit(submit_spec(target, address, tracking_uri=tracking_uri, detach=detach))


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="[default: newest]")] = None,
    *,
    workspace: WorkspaceOption = None,
    output: OutputOption = "text",
) -> None:
    """Show how a run stands, stage by stage."""
    from jobs.remote import show_status

    show_status(run, workspace, output)


@app.command()
def logs(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="[default: newest]")] = None,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until it ends.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Print the log of a run; with -f, Ctrl-C only detaches."""
    from jobs.remote import show_logs

    show_logs(run, workspace, follow=follow)


@app.command()
def cancel(run: RunArgument, *, workspace: WorkspaceOption = None) -> None:
    """Stop a run at its next safe point; `run` or `submit` go on from there."""
    from jobs.remote import cancel_run

    cancel_run(run, workspace)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="A run of the workspace.")],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="Another run.")],
    *,
    workspace: WorkspaceOption = None,
    output: OutputOption = "text",
) -> None:
    """Compare what two runs measured, image by image, and say in what they differ."""
    from jobs.compare_runs import show_comparison

    show_comparison(first, second, workspace, output)


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SPEC|ARTIFACT]...", help="[default: all artifacts]"),
    ] = None,
    *,
    workspace: WorkspaceOption = None,
    output: OutputOption = "text",
) -> None:
    """Read every byte of artifacts; exit 6 and name each file that is not what was written."""
    from jobs.store_commands import verify_store

    raise typer.Exit(verify_store(names or [], workspace, output))


@app.command()
def gc(  # noqa: PLR0913  # a command has as many options as it has
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Do it. [default: only say it]")] = False,
    keep_days: Annotated[
        float, typer.Option("--keep-days", min=0, help="Younger results stay.")
    ] = 14,
    trash_days: Annotated[
        float, typer.Option("--trash-days", min=0, help="Younger trash can be taken back.")
    ] = 7,
    pin: Annotated[str | None, typer.Option("--pin", metavar="ARTIFACT", help="Keep it.")] = None,
    unpin: Annotated[str | None, typer.Option("--unpin", metavar="ARTIFACT")] = None,
    restore: Annotated[
        str | None, typer.Option("--restore", metavar="ARTIFACT", help="Out of the trash.")
    ] = None,
    workspace: WorkspaceOption = None,
    output: OutputOption = "text",
) -> None:
    """Say what in the store nobody needs; with --apply, put it into the trash, and empty that."""
    from jobs.console import print_document, stdout
    from jobs.store_commands import collect_garbage, pin_artifact

    if pin or unpin or restore:
        done = pin_artifact((pin, unpin, restore), workspace)
        if output == "json":
            print_document(done)
        else:
            stdout().print(f"{done.artifact} is {done.done}", markup=False)
        return
    collect_garbage((keep_days, trash_days), workspace, apply=apply, output=output)


@app.command()
def ui(
    *,
    workspace: WorkspaceOption = None,
    tracking_uri: TrackingOption = None,
    port: Annotated[int, typer.Option("--port", help="Port on the loopback interface.")] = 5000,
) -> None:
    """Open MLflow on the workspace, until Ctrl-C."""
    from jobs.commands import serve_ui

    serve_ui(workspace, tracking_uri, port)


@app.command()
def doctor(*, workspace: WorkspaceOption = None, output: OutputOption = "text") -> None:
    """Check this machine; exit 8 with a fix for each finding."""
    from jobs.doctor import examine

    if examine(workspace, output):
        raise typer.Exit(8)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("vitrail"))


def main() -> None:
    """Run the command line and leave with the exit code that the design promises."""
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        # The reader of our output has left, which is its right; Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if debug:
            raise
        code = _fail(error)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: Exception) -> int:
    """Print an error as a sentence; returns its exit code."""
    from jobs.console import print_error

    sentence = _as_sentence(error)
    print_error(sentence)
    return sentence.exit_code


def _as_sentence(error: Exception) -> VitrailError:
    if isinstance(error, VitrailError):
        return error
    if isinstance(error, TyperException):
        what = error.format_message()
        return UsageError(what[:1].lower() + what[1:], hint="vitrail --help")
    return VitrailError(
        f"unexpected {type(error).__name__}: {error}",
        hint=f"vitrail --debug {shlex.join(sys.argv[1:])}",
    )


if __name__ == "__main__":
    main()
