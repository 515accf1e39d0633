"""What the commands that work on a spec do: init, recipes, config, plan, explain, run, ui."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from jobs.console import (
    code_note,
    print_document,
    print_outcomes,
    print_plan,
    stderr,
    stdout,
    table,
)
from jobs.recipes import describe, find_spec, recipe_files
from jobs.target import Target
from jobs.wiring import planning_facts, stage_costs
from jobs.workspace import Workspace, open_workspace
from pipeline.dag.graph import Graph, expand
from pipeline.dag.plan import Planned, plan
from pipeline.dag.selection import Selection
from schemas.errors import UsageError
from schemas.experiment import ExperimentSpec
from schemas.runs import Decision, PlanDocument, RunDocument
from schemas.spec import Semantic, Spec

Selected = tuple[str | None, str | None, str | None, str | None]
"""The texts of --only, --from, --until and --force."""


class RecipeEntry(Spec):
    """One line of `vitrail recipes`."""

    name: Semantic[str]
    description: Semantic[str]


class RecipeList(Spec):
    """`vitrail recipes --output json`."""

    schema_version: Semantic[int] = 1
    recipes: Semantic[tuple[RecipeEntry, ...]]


def init_file(file: Path, recipe: str) -> None:
    """Write a recipe to a new file."""
    source = find_spec(recipe)
    try:
        with file.open("x") as target:
            target.write(source.read_text())
    except FileExistsError:
        raise UsageError(f"{file} exists and stays as it is; give another name") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error
    console = stdout()
    console.print(f"wrote {file} from the recipe {recipe}", markup=False)
    console.print(f"next: vitrail plan {file}", markup=False)


def list_recipes(output: str) -> None:
    """Print the recipes."""
    entries = tuple(
        RecipeEntry(name=name, description=describe(path)) for name, path in recipe_files().items()
    )
    if output == "json":
        print_document(RecipeList(recipes=entries))
        return
    rows = [(entry.name, entry.description) for entry in entries]
    stdout().print(table(("recipe", "what it is"), rows))


def print_schema() -> None:
    """Print the JSON Schema of an experiment."""
    print(json.dumps(ExperimentSpec.model_json_schema(), indent=2))  # noqa: T201  # data


def show_spec(spec: str, *, profile: str | None, overrides: list[str]) -> None:
    """Print a spec with all defaults."""
    print_document(Target(spec, None, profile, tuple(overrides)).experiment())


def selection_of(texts: Selected) -> Selection:
    """The selection that the options spell."""
    only, from_, until, force = (
        tuple(part.strip() for part in (text or "").split(",") if part.strip()) for text in texts
    )
    return Selection(only=only, from_=from_, until=until, force=force)


def show_plan(target: Target, *, selected: Selected, output: str) -> bool:
    """Print the plan; True if something would run."""
    experiment, workspace = target.experiment(), target.place()
    graph = expand(experiment)
    facts = planning_facts(experiment, target.spec, workspace)
    planned = plan(graph, facts, selection=selection_of(selected))
    document = plan_document(experiment, graph, planned, workspace)
    if output == "json":
        print_document(document)
    else:
        print_plan(document)
        if _pending(planned):
            stdout().print(f"next: {_as_run_command()}", markup=False)
    return _pending(planned)


def _as_run_command() -> str:
    """The `plan` command that was given, as the `run` that would follow it."""
    words = [word for word in sys.argv[1:] if word != "--detailed-exitcode"]
    return shlex.join(["vitrail", *("run" if word == "plan" else word for word in words)])


def plan_document(
    experiment: ExperimentSpec, graph: Graph, planned: tuple[Planned, ...], workspace: Workspace
) -> PlanDocument:
    """The plan with the cost of what would run."""
    from infra.atomic_files import free_bytes

    costs = stage_costs(graph)
    decisions = tuple(
        item.decision.revise(estimate={**item.decision.estimate, **costs(item.node)})
        if item.decision.action in {"run", "pending"}
        else item.decision
        for item in planned
    )
    needed = sum(decision.estimate.get("disk_bytes", 0) for decision in decisions)
    return PlanDocument(
        experiment=experiment.name,
        workspace=str(workspace.root),
        stages=decisions,
        disk_bytes_needed=int(needed),
        disk_bytes_free=free_bytes(workspace.root),
    )


def _pending(planned: tuple[Planned, ...]) -> bool:
    return any(item.decision.action in {"run", "pending"} for item in planned)


def explain_stage(target: Target, stage: str, output: str) -> None:
    """Print why a stage would run again."""
    experiment, workspace = target.experiment(), target.place()
    graph = expand(experiment)
    facts = planning_facts(experiment, target.spec, workspace)
    names = set(graph.matching(stage))
    planned = plan(graph, facts, selection=Selection())
    decisions = [item.decision for item in planned if item.decision.stage in names]
    if output == "json":
        upstream = graph.upstream(names)
        kept = tuple(item for item in planned if item.decision.stage in upstream)
        print_document(plan_document(experiment, graph, kept, workspace))
        return
    for decision in decisions:
        _print_explanation(decision)
    _print_upstream(graph, planned, names)


def _print_explanation(decision: Decision) -> None:
    console = stdout()
    console.print(f"{decision.stage}: {decision.action}: {decision.reason}", markup=False)
    if decision.changes:
        rows = [(item.field, _text(item.before), _text(item.after)) for item in decision.changes]
        console.print(table(("field", "last time", "now"), rows))
    if decision.artifact:
        console.print(f"artifact: {decision.artifact}", markup=False)
    if decision.code_changed:
        console.print(code_note(decision.code_changed), markup=False)


def _print_upstream(graph: Graph, planned: tuple[Planned, ...], names: set[str]) -> None:
    upstream = graph.upstream(names) - names
    said: dict[str, list[str]] = {}
    for item in planned:
        if item.decision.stage in upstream:
            said.setdefault(item.decision.action, []).append(item.decision.stage)
    for action, stages in said.items():
        verb = {"reuse": "reused", "run": "run first", "pending": "wait for others"}[action]
        stdout().print(f"{', '.join(stages)}: {verb}", markup=False)


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def run_spec(
    target: Target,
    *,
    selected: Selected,
    places: tuple[str | None, str | None, str | None],
    output: str,
) -> int:
    """Run a pipeline; prints what became of it and returns the exit code."""
    from jobs.controller import RunOptions, run_pipeline

    workspace = target.place()
    address, tracking_uri, run_id = places
    options = RunOptions(
        file=target.spec,
        workspace=workspace,
        selection=selection_of(selected),
        address=address,
        tracking_uri=tracking_uri or workspace.tracking_uri,
        run_id=run_id,
    )
    document, code = run_pipeline(target.experiment(), options)
    if output == "json":
        print_document(document)
    else:
        print_run(document, workspace, target)
    return code


def print_run(document: RunDocument, workspace: Workspace, target: Target) -> None:
    """The short table at the end of a run, and where to go from there."""
    from jobs.results import accuracy_rows

    console = stdout()
    print_outcomes(document)
    rows = accuracy_rows(document, workspace)
    if rows:
        console.print()
        console.print(table(("stage", "method", ">top-1", "95 % interval", ">correct"), rows))
    console.print()
    if document.report:
        console.print(f"report: {document.report}", markup=False)
    if document.tracking_url:
        console.print(f"MLflow: {document.tracking_url}  (start it with: vitrail ui)", markup=False)
    if document.status == "finished":
        _print_next(document, target)


def _print_next(document: RunDocument, target: Target) -> None:
    trained = [stage.name for stage in document.stages if stage.kind == "finetune"]
    console = stdout()
    console.print("next:")
    console.print("  vitrail ui", markup=False)
    if trained:
        changed = f"{trained[0]}.optim.peak_lr=5e-4"
        console.print(f"  vitrail plan {target.spec} --set {changed}", markup=False)
        console.print(f"  vitrail explain {target.spec} {trained[0]} --set {changed}", markup=False)


def serve_ui(folder: Path | None, tracking_uri: str | None, port: int) -> None:
    """Become the MLflow server of a workspace, or of another database."""
    from infra.mlflow_tracking import ui_command, ui_environment

    workspace = open_workspace(folder)
    if tracking_uri is None and not (workspace.root / "mlflow.db").is_file():
        raise UsageError(
            f"there is no tracking database in {workspace.root} yet", hint="vitrail run digits"
        )
    command = ui_command(
        tracking_uri or workspace.tracking_uri,
        artifact_root=workspace.root / "mlartifacts",
        port=port,
    )
    stderr().print(f"MLflow on http://127.0.0.1:{port}, until Ctrl-C", markup=False)
    sys.stderr.flush()
    # The server takes this process's place, so that Ctrl-C reaches it and nothing else.
    os.execve(command[0], command, {**os.environ, **ui_environment()})  # noqa: S606  # our own
