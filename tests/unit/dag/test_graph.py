import pytest

from pipeline.dag.graph import expand
from schemas.errors import SpecError
from schemas.stage import StageRef
from tests.support.dag import STAGES, TEXT, experiment, graph_of


def names(*overrides: str) -> list[str]:
    return [node.name for node in graph_of(*overrides).nodes]


def test_order_is_topological_and_else_as_declared() -> None:
    assert names() == list(STAGES)
    backwards = dict(reversed(experiment().stages.items()))
    graph = expand(experiment().revise(stages=backwards))
    order = [node.name for node in graph.nodes]
    assert order == [
        *("pets", "pixels", "corpus", "clean", "pretrain", "transfer", "accuracy", "report")
    ]


def test_a_reference_without_a_split_means_the_default_of_its_port() -> None:
    graph = graph_of()
    assert graph.node("accuracy").inputs["data"] == StageRef("pets", "test")
    assert graph.node("transfer").inputs["data"] == StageRef("pets", "train")
    assert graph.node("pixels").inputs["data"] == StageRef("pets", None)


def test_a_longer_cycle_is_printed_whole() -> None:
    with pytest.raises(SpecError) as refused:
        experiment(
            "clean.data=second",
            text=TEXT.replace(
                "  pretrain:\n",
                "  second: {kind: filter, data: clean, against: [pets]}\n  pretrain:\n",
            ),
        )
    assert "clean -> second -> clean" in refused.value.what


def test_a_field_named_by_a_word_of_pythons_is_told_as_the_user_wrote_it() -> None:
    with pytest.raises(SpecError, match="no stage 'nowhere'") as refused:
        graph_of("pretrain.continue=nowhere")
    assert refused.value.where == "--set pretrain.continue"


def test_a_long_chain_needs_no_deep_recursion() -> None:
    links = "".join(
        f"  f{n}: {{kind: filter, data: {f'f{n - 1}' if n else 'corpus'}, against: [pets]}}\n"
        for n in range(1500)
    )
    assert len(graph_of(text=TEXT.replace("profiles:", links + "profiles:")).nodes) == 1508


def test_stages_that_an_axis_does_not_touch_are_shared() -> None:
    found = names("matrix={pretrain.model.pool: [cls, gap]}")
    assert found == [
        *("corpus", "pets", "clean"),
        *("pretrain[pretrain.model.pool=cls]", "pretrain[pretrain.model.pool=gap]"),
        *("transfer[pretrain.model.pool=cls]", "transfer[pretrain.model.pool=gap]"),
        *("accuracy[pretrain.model.pool=cls]", "accuracy[pretrain.model.pool=gap]"),
        *("pixels", "report"),
    ]


def test_a_variant_reads_the_variant_of_its_own_values() -> None:
    graph = graph_of("matrix={pretrain.model.pool: [cls, gap]}")
    node = graph.node("accuracy[pretrain.model.pool=gap]")
    assert node.base_name == "accuracy"
    assert node.inputs["model"].stage == "transfer[pretrain.model.pool=gap]"
    assert node.spec.inputs() == node.inputs, "the spec names nodes of the graph"
    assert graph.node("pretrain[pretrain.model.pool=gap]").spec.model.pool == "gap"


def test_a_report_is_never_multiplied_and_reads_all_variants() -> None:
    graph = graph_of("matrix={seed: [1, 2]}")
    assert graph.node("report").spec.of == (
        *("accuracy[seed=1]", "accuracy[seed=2]", "pixels[seed=1]", "pixels[seed=2]"),
    )
    assert graph.node("report").inputs["of[3]"].stage == "pixels[seed=2]"


def test_the_seed_touches_the_stages_that_use_it_and_what_reads_them() -> None:
    graph = graph_of("matrix={seed: [1, 2]}")
    touched = {node.base_name for node in graph.nodes if "[" in node.name}
    assert touched == {"pretrain", "transfer", "accuracy", "pixels"}
    assert graph.node("pretrain[seed=2]").seed == 2
    assert graph.node("corpus").seed == 17


def test_axes_multiply_and_each_stage_has_only_those_that_touch_it() -> None:
    found = names("matrix={transfer.optim.peak_lr: [1e-3, 3e-4], pretrain.duration.steps: [5, 10]}")
    assert "pretrain[pretrain.duration.steps=5]" in found
    both = "transfer[transfer.optim.peak_lr=0.0003,pretrain.duration.steps=10]"
    assert both in found
    assert len([name for name in found if name.startswith("transfer")]) == 4


def test_an_axis_with_a_free_name_sets_several_things_at_once() -> None:
    graph = graph_of(
        "matrix={trial: [{seed: 1, pets.select.seed: 5}, {seed: 2, pets.select.seed: 6}]}"
    )
    assert graph.node("pets[trial=1]").spec.select.seed == 6
    assert graph.node("clean[trial=1]").inputs["against[0]"] == StageRef("pets[trial=1]", "test")
    assert (graph.node("pretrain[trial=0]").seed, graph.node("pretrain[trial=1]").seed) == (1, 2)
    assert "corpus" in graph.by_name


def test_an_axis_may_change_what_a_stage_reads() -> None:
    splits = "corpus.source.splits={train: a, test: b}"
    graph = graph_of(splits, "matrix={pixels.data: [pets, clean]}")
    assert graph.node("pixels[pixels.data=clean]").inputs["data"].stage == "clean"


def test_an_axis_counts_only_for_the_variants_that_it_reaches() -> None:
    graph = graph_of(
        "transfer.init=null",
        "transfer.model={variant: Ti, patch_px: 16, image_px: 32}",
        "matrix={pretrain.model.pool: [cls, gap], start: "
        "[{}, {transfer.init: pretrain, transfer.model: {image_px: 32}}]}",
    )
    assert [node.name for node in graph.nodes if node.base_name == "transfer"] == [
        "transfer[start=0]",  # from scratch: the pooling of `pretrain` is nothing to it
        "transfer[pretrain.model.pool=cls,start=1]",
        "transfer[pretrain.model.pool=gap,start=1]",
    ]


def test_an_axis_replaces_a_mapping_whole() -> None:
    graph = graph_of("matrix={pretrain.duration: [{steps: 5}, {epochs: 2}]}")
    durations = [node.spec.duration for node in graph.nodes if node.base_name == "pretrain"]
    assert [duration.epochs for duration in durations] == [None, 2.0]
    assert names("matrix={pretrain.duration: [{steps: 5}, {epochs: 2}]}")[3].endswith("=0]")


def test_values_with_names_are_called_by_them() -> None:
    graph = graph_of("matrix={size: {small: {pixels.image_px: 8}, large: {pixels.image_px: 32}}}")
    sizes = {node.name: node.spec.image_px for node in graph.nodes if node.kind == "baseline"}
    assert sizes == {"pixels[size=small]": 8, "pixels[size=large]": 32}


def test_labels_are_short_plain_words_or_indices() -> None:
    found = names("matrix={transfer.optim.clip_norm: [null, 1.0], pixels.image_px: [8]}")
    assert "transfer[transfer.optim.clip_norm=null]" in found
    assert "pixels[pixels.image_px=8]" in found
    found = names("matrix={pixels.methods: [[nearest_neighbour], [logistic_regression]]}")
    assert "pixels[pixels.methods=1]" in found


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        ("{seed: []}", "the axis 'seed' has no values"),
        ("{trial: [1, 2]}", "1 was given as a value of the axis 'trial'; allowed is a mapping"),
        ("{trail.x: [1]}", "there is no stage 'trail'"),
        ("{seed: [a]}", "'a' was given as seed; allowed is an integer from 0 up"),
        ("{seed: [true]}", "True was given as seed"),
        ("{report.title: [a, b]}", "never multiplied"),
        ("{t: [{name: x}]}", "a matrix cannot change name"),
        ("{'a b': [{seed: 1}]}", "'a b' cannot name an axis"),
        ("{t: {'a b': {seed: 1}}}", "'a b' cannot name a value of the axis 't'"),
        ("{seed: {one: {seed: 1}}}", "the values of 'seed' were given names"),
        ("{t: {}}", "the axis 't' has no values"),
        ("{t: {one: {trail.x: 1}}}", "there is no stage 'trail'"),
        (
            "{pretrain.model.pool: [cls, gab]}",
            "'gab' was given; allowed is 'cls' or 'gap' or 'map' or null",
        ),
        ("{pretrain.data: [clean, claen]}", "there is no stage 'claen' (did you mean 'clean'?)"),
        (
            f"{{seed: {list(range(70))}, pixels.image_px: {list(range(1, 71))}}}",
            "4,900 combinations",
        ),
    ],
)
def test_a_bad_matrix_is_refused_with_its_place(matrix: str, sentence: str) -> None:
    with pytest.raises(SpecError) as refused:
        experiment(f"matrix={matrix}")
    assert sentence in refused.value.what
    assert refused.value.where


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "accuracy.data=pets@tset",
            "'pets' has no split 'tset' (did you mean 'test'?); its splits are train, test",
        ),
        ("accuracy.data=corpus", "'corpus' has no split 'test'; its only split is train"),
        ("transfer.data=clean@test", "'clean' has no split 'test'; its only split is train"),
        ("clean.against=[pets@tests]", "'pets' has no split 'tests' (did you mean 'test'?)"),
        ("pixels.data=corpus", "'corpus' has no split 'test'"),
        ("pixels.data=pets@test", "always reads train and test; write pets"),
        ("accuracy.model=transfer@test", "'transfer' has no splits"),
    ],
)
def test_a_split_that_there_will_not_be_is_refused_before_anything_runs(
    override: str, sentence: str
) -> None:
    with pytest.raises(SpecError) as refused:
        experiment(override)
    assert sentence in refused.value.what
    assert f"--set {override.partition('=')[0]}" in str(refused.value.where)


def test_the_splits_of_a_variant_are_those_of_its_own_values() -> None:
    made = experiment("corpus.split={test_ratio: 0.5}", "transfer.data=clean@test")
    assert expand(made).node("transfer").inputs["data"] == StageRef("clean", "test")
    with pytest.raises(SpecError, match="has no split 'test'"):
        experiment(
            "matrix={how: [{corpus.split: {test_ratio: 0.5}}, {corpus.split: null}]}",
            "transfer.data=clean@test",
        )


def test_upstream_and_downstream_are_closed() -> None:
    graph = graph_of()
    assert graph.upstream(["pretrain"]) == {"corpus", "pets", "clean", "pretrain"}
    assert graph.downstream(["transfer"]) == {"transfer", "accuracy", "report"}


def test_a_stage_is_found_by_its_name_or_the_name_of_its_base() -> None:
    graph = graph_of("matrix={seed: [1, 2]}")
    assert graph.matching("pixels") == ("pixels[seed=1]", "pixels[seed=2]")
    assert graph.matching("pixels[seed=2]") == ("pixels[seed=2]",)
    with pytest.raises(SpecError, match="did you mean 'transfer'"):
        graph.matching("tranfer")
