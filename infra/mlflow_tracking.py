"""`Tracker` on MLflow, in a database file of the workspace or on a server. MLflow's only door.

Everything goes through an explicit client with explicit run ids: the fluent API keeps one active
run for each process, and records a run that died by an exception as finished.
"""

import contextlib
import getpass
import json
import logging
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import SpecError, UnreachableError, UsageError, VitrailError
from schemas.runs import MetricPoint

UI_HOST = "127.0.0.1"
UI_PORT = 5000
"""Where `vitrail ui` serves a database tracker, unless told otherwise."""

_TAG_RUN, _TAG_STAGE, _TAG_DIGEST = "vitrail.run", "vitrail.stage", "vitrail.digest"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_MODEL_FOLDER = "model"
_VIEW = "workflowType=machine_learning"
"""Without it MLflow's pages show the side bar for language models, and no training runs."""

# MLflow's own limits: values of parameters and tags, entries of a call, digest of a dataset.
_PARAM_CHARS, _TAG_CHARS = 6000, 8000
_METRICS_PER_CALL, _PARAMS_PER_CALL = 1000, 100
_DIGEST_CHARS = 32

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "600",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Nothing is cut in silence or sent elsewhere, and a server that is away is noticed soon: the
mirror tries again anyway."""

_REFUSALS = (
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
)
"""Answers that will be the same next time."""


class MlflowTracker:
    """Fulfils `pipeline.ports.Tracker`."""

    def __init__(self, uri: str, *, artifact_root: Path | None, experiment: str) -> None:
        """Connect, and find or make the experiment.

        Args:
            uri: `sqlite:///FILE`, another database, or the `http(s)` address of a server.
            artifact_root: Folder of the artifacts of a database tracker; None leaves the place to
                the server.
            experiment: Name of the MLflow experiment.

        Raises:
            SpecError: If the URI is of another kind.
            UnreachableError: If nothing answers there.
        """
        check_tracking_uri(uri)
        self._uri = uri
        if uri.startswith("sqlite:"):
            _require_writable(Path(uri.removeprefix("sqlite:///")))
        _import_mlflow()
        with self._errors("connect"):
            self._client = _client(uri)
            self._experiment_id = self._find_experiment(experiment, artifact_root)

    def open_run(
        self,
        *,
        run: str,
        stage: str | None,
        parent_id: str | None,
        tags: dict[str, str],
        start_ms: int,
    ) -> str:
        """Find or create the tracking run of a pipeline run (stage None) or of one stage of it.

        One that is found takes the tags, and runs again if it had ended.
        """
        ours = {
            "mlflow.runName": stage or run,
            "mlflow.source.name": "vitrail",
            "mlflow.user": _user(),
            _TAG_RUN: run,
        }
        if stage is not None:
            ours[_TAG_STAGE] = stage
        if parent_id is not None:
            ours["mlflow.parentRunId"] = parent_id
        whole = {
            _plain_name(key): _shorten(value, _TAG_CHARS) for key, value in (tags | ours).items()
        }
        with self._errors("open a run"):
            found = self._find_run(run, stage)
            if found is None:
                made = self._client.create_run(
                    self._experiment_id, start_time=start_ms, tags=whole, run_name=stage or run
                )
                return str(made.info.run_id)
            self._set_tags(found, whole)
            if found.info.status != "RUNNING":
                self._client.update_run(found.info.run_id, status="RUNNING")
            return str(found.info.run_id)

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        """Flat parameters with the spec's own dotted names.

        MLflow writes a parameter once. One that a second try of a stage changed (a smaller
        micro-batch) stands as the tag `vitrail.now.NAME`.
        """
        from mlflow.entities import Param

        whole = {_plain_name(key): _shorten(value, _PARAM_CHARS) for key, value in params.items()}
        with self._errors("log parameters"):
            run = self._client.get_run(run_id)
            known = run.data.params
            fresh = [Param(key, value) for key, value in whole.items() if key not in known]
            for start in range(0, len(fresh), _PARAMS_PER_CALL):
                self._client.log_batch(run_id, params=fresh[start : start + _PARAMS_PER_CALL])
            changed = {key for key, value in whole.items() if known.get(key, value) != value}
            self._set_tags(run, {f"vitrail.now.{key}": whole[key] for key in changed})

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Metric points with their own timestamps; MLflow drops those that it has."""
        from mlflow.entities import Metric

        metrics = [Metric(_plain_name(p.key), p.value, p.at_ms, p.step) for p in points]
        with self._errors("log metrics"):
            for start in range(0, len(metrics), _METRICS_PER_CALL):
                self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])

    def log_dataset(self, run_id: str, *, name: str, digest: str, context: str, path: str) -> None:
        """A dataset input; MLflow holds half of the digest, a tag all of it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:_DIGEST_CHARS],
            source_type="local",
            source=json.dumps({"uri": path, "digest": digest}),
        )
        tags = [InputTag("mlflow.data.context", context), InputTag(_TAG_DIGEST, digest)]
        with self._errors("log a dataset"):
            self._client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])

    def log_folder(self, run_id: str, folder: Path, *, destination: str) -> None:
        """Copy the files of a folder as artifacts; `destination` "" is their root.

        Raises:
            VitrailError: If there is no such folder.
        """
        if not folder.is_dir():
            raise VitrailError(f"the folder {folder} is gone: it cannot be shown in the tracker")
        with self._errors("log artifacts"):
            self._client.log_artifacts(run_id, str(folder), destination or None)

    def register_model(self, run_id: str, *, name: str, alias: str, digest: str) -> None:
        """Enter the run's `model` artifacts in the registry, once for each digest; set an alias."""
        plain = re.sub(r"[/:'\"]", "-", name)
        with self._errors("register a model"):
            version = self._find_version(plain, digest)
            if version is None:
                version = self._make_version(run_id, plain, digest)
            self._client.set_registered_model_alias(plain, alias, version)

    def close_run(self, run_id: str, *, status: str, end_ms: int) -> None:
        """Set the final status: `finished`, `failed` or `killed`."""
        with self._errors("close a run"):
            self._client.set_terminated(run_id, status=_STATUS[status], end_time=end_ms)

    def run_url(self, run_id: str) -> str:
        """Where a browser shows the run: the server, or where `vitrail ui` would serve it."""
        is_server = self._uri.startswith(_SERVERS)
        base = _without_password(self._uri).rstrip("/") if is_server else ui_address(UI_PORT)
        return f"{base}/#/experiments/{self._experiment_id}/runs/{run_id}?{_VIEW}"

    def _find_experiment(self, name: str, artifact_root: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            place = (artifact_root.absolute() / name).as_uri() if artifact_root else None
            return str(self._client.create_experiment(name, artifact_location=place))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find_run(self, run: str, stage: str | None) -> Any | None:
        # The stage is compared here, since a variant's name may hold quotes.
        page = self._client.search_runs(
            [self._experiment_id], f"tags.`{_TAG_RUN}` = '{run}'", max_results=1000
        )
        return next((found for found in page if found.data.tags.get(_TAG_STAGE) == stage), None)

    def _set_tags(self, run: Any, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        known = run.data.tags
        fresh = [RunTag(key, value) for key, value in tags.items() if known.get(key) != value]
        if fresh:
            self._client.log_batch(run.info.run_id, tags=fresh)

    def _find_version(self, name: str, digest: str) -> str | None:
        versions = self._client.search_model_versions(f"name = '{name}'")
        return next((str(v.version) for v in versions if v.tags.get(_TAG_DIGEST) == digest), None)

    def _make_version(self, run_id: str, name: str, digest: str) -> str:
        if not self._client.list_artifacts(run_id, _MODEL_FOLDER):
            raise VitrailError(
                f"the tracking run {run_id} has no artifacts under {_MODEL_FOLDER}/ to register"
            )
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        made = self._client.create_model_version(
            name, f"runs:/{run_id}/{_MODEL_FOLDER}", run_id, tags={_TAG_DIGEST: digest}
        )
        return str(made.version)

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Tell a tracker that is away, which comes back, from one that refuses, which will not."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except MlflowException as error:
            sentence = f"the tracker refused to {doing}: {_first_line(error)}"
            if error.error_code in _REFUSALS:
                raise VitrailError(sentence, where=_without_password(self._uri)) from error
            raise self._away(doing, error) from error
        except (OSError, SQLAlchemyError) as error:
            raise self._away(doing, error) from error

    def _away(self, doing: str, error: Exception) -> UnreachableError:
        return UnreachableError(
            f"the tracker cannot be reached to {doing}: {_first_line(error)}",
            where=_without_password(self._uri),
            hint="start the MLflow server again; what it missed is delivered by the next command",
        )


def check_tracking_uri(uri: str) -> None:
    """Refuse what cannot be a tracker.

    Raises:
        SpecError: If the URI is neither a database nor a server.
    """
    scheme = urllib.parse.urlsplit(uri).scheme.partition("+")[0]
    if scheme not in _SERVERS + _DATABASES:
        raise SpecError(
            f"{uri!r} is not a tracker; give sqlite:///FILE, another database "
            f"({', '.join(_DATABASES[1:])}), or the http address of an MLflow server"
        )


def ui_address(port: int) -> str:
    """Where the server of `ui_command` listens."""
    return f"http://{UI_HOST}:{port}"


def ui_command(uri: str, *, artifact_root: Path, port: int) -> list[str]:
    """The command that serves MLflow's pages over a database tracker, to this machine alone.

    Run it with `ui_environment` added to the environment.

    Raises:
        UsageError: If the tracker is a server already.
    """
    if uri.startswith(_SERVERS):
        raise UsageError(f"the tracker is a server already: open {_without_password(uri)}")
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", uri),
        *("--artifacts-destination", str(artifact_root.absolute())),
        *("--host", UI_HOST),
        *("--port", str(port)),
        *("--workers", "1"),
    ]


def ui_environment() -> dict[str, str]:
    """Variables that keep the server small, and from sending anything elsewhere."""
    return dict(_ENVIRONMENT)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # containers run under ids that have no name


def _import_mlflow() -> None:
    """Load MLflow, which takes seconds, without its notes on standard error."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # MLflow reads some of them when it is loaded
    import mlflow.tracking  # noqa: F401 -- loaded for what comes later

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _require_writable(database: Path) -> None:
    """MLflow itself tries for a minute to open a file that it may not write."""
    folder = database.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(database) from error
    if not os.access(database if database.exists() else folder, os.W_OK):
        raise _not_writable(database)


def _not_writable(database: Path) -> UnreachableError:
    return UnreachableError(
        f"the tracker's database {database} cannot be written",
        hint="name a folder that is yours to write with --workspace DIR or VITRAIL_WORKSPACE",
    )


def _plain_name(name: str) -> str:
    """MLflow takes letters, digits and `_-. :/` in names."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _shorten(value: str, limit: int) -> str:
    """A value that MLflow takes; a longer one says so at its end (the artifacts hold it whole)."""
    if len(value) <= limit:
        return value
    marker = f" ... [shortened: {len(value)} characters]"
    return value[: limit - len(marker)] + marker


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return _without_password(line)[:300]
