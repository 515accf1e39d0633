import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dag.execute import run_status
from schemas.errors import InfrastructureError, PausedError, StageFailedError
from schemas.runs import StageRequest
from tests.support.dag import STAGES, World, graph_of

CHANGES = st.lists(
    st.sampled_from(
        [
            "seed=5",
            "corpus.image.quality=70",
            "pets.select.seed=3",
            "clean.max_hamming_bits=4",
            "pretrain.optim.peak_lr=3e-4",
            "transfer.duration.steps=9",
            "pixels.image_px=4",
            "report.title=again",
            "pretrain.resources.workers=2",
        ]
    ),
    max_size=3,
    unique=True,
)
EQUAL = st.sets(st.sampled_from(STAGES))
"""Stages whose bytes do not depend on what changed."""


def content_of(request: StageRequest, equal: set[str]) -> str:
    return request.stage if request.stage in equal else request.key


@given(first=CHANGES, second=CHANGES, equal=EQUAL)
@settings(max_examples=40, deadline=None)
def test_run_never_runs_a_stage_that_plan_called_reuse(
    first: list[str], second: list[str], equal: set[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.runner.content = lambda request: content_of(request, equal)
        world.run(graph_of(*first))
        graph = graph_of(*second)
        actions = world.actions(graph)
        outcomes = world.run(graph)
        for name, action in actions.items():
            if action == "reuse":
                assert outcomes[name].status == "reused"
            if action == "run":
                assert outcomes[name].status == "ran"
        assert sorted(world.runner.ran) == sorted(
            name for name, outcome in outcomes.items() if outcome.status == "ran"
        )
        assert set(world.actions(graph).values()) == {"reuse"}


FAULT = st.sampled_from(
    [StageFailedError("no"), InfrastructureError("a worker died"), PausedError("stop"), OSError(5)]
)


@given(faults=st.dictionaries(st.sampled_from(STAGES), st.lists(FAULT, max_size=4), max_size=4))
@settings(max_examples=40, deadline=None)
def test_after_any_faults_a_few_more_runs_finish_the_work_once(
    faults: dict[str, list[BaseException]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.runner.failures = {name: list(errors) for name, errors in faults.items()}
        graph = graph_of()
        for _ in range(20):
            made = set(world.store.results)
            outcomes = world.run(graph)
            begun = [event.stage for event in world.events if event.type == "stage_started"]
            ended = [event.stage for event in world.events if event.type == "stage_finished"]
            assert sorted(begun) == sorted(ended), "no tracking run is left open"
            assert made <= set(world.store.results)
            if run_status(tuple(outcomes.values())) == "finished":
                break
        assert len(world.store.results) == 8
        assert len(world.store.records) == 8, "nothing was made twice"
        assert set(world.actions(graph).values()) == {"reuse"}


@given(
    axes=st.dictionaries(
        st.sampled_from(["seed", "corpus.image.quality", "transfer.optim.beta1", "pixels.data"]),
        st.just(None),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=20, deadline=None)
def test_variants_share_all_work_that_is_the_same(axes: dict[str, None]) -> None:
    values = {
        "seed": "[1, 2]",
        "corpus.image.quality": "[50, 60]",
        "transfer.optim.beta1": "[0.5, 0.9]",
        "pixels.data": "[pets, clean]",
    }
    matrix = ", ".join(f"{axis}: {values[axis]}" for axis in axes)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        graph = graph_of("corpus.source.splits={train: a, test: b}", f"matrix={{{matrix}}}")
        outcomes = world.run(graph)
        keys = [outcome.key for outcome in outcomes.values()]
        assert None not in keys
        assert len(world.runner.ran) == len(set(keys)), "each key is made once"
        assert sum(node.base_name == "report" for node in graph.nodes) == 1
        assert len({node.name for node in graph.nodes}) == len(graph.nodes)
