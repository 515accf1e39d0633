from pathlib import Path

import pytest

from pipeline.dag.experiment_file import load_experiment, parse_experiment
from pipeline.dag.yaml_text import read_yaml
from schemas.errors import SpecError, UsageError
from schemas.experiment import ExperimentSpec
from tests.support.dag import TEXT, experiment


def problem(*overrides: str, text: str = TEXT, profile: str | None = None) -> str:
    """What a user reads when the experiment is refused."""
    with pytest.raises(SpecError) as refused:
        experiment(*overrides, text=text, profile=profile)
    return str(refused.value)


def swapped(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


def line_of(fragment: str, text: str = TEXT) -> int:
    return text[: text.index(fragment)].count("\n") + 1


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3e-4", 3e-4),
        ("1_000", 1000),
        ("no", "no"),
        ("on", "on"),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'3e-4'", "3e-4"),
        ("~", None),
        ("null", None),
        ("true", True),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("=", "="),
    ],
)
def test_values_are_read_as_yaml_1_2(written: str, value: object) -> None:
    found = read_yaml(f"a: {written}\n", name="x").data["a"]
    assert (found, type(found)) == (value, type(value))
    assert read_yaml(written, name="--set a").data == value


def test_keys_are_text_whatever_they_look_like() -> None:
    assert read_yaml("{5: a, no: b, 012: c, 1e3: d}", name="x").data == {
        "5": "a",
        "no": "b",
        "012": "c",
        "1e3": "d",
    }


def test_numbers_of_an_override_are_numbers() -> None:
    spec = experiment("transfer.optim.peak_lr=3e-4", "transfer.duration.steps=012")
    transfer = spec.stages["transfer"]
    assert (transfer.optim.peak_lr, transfer.duration.steps) == (3e-4, 12)


def test_a_warm_up_that_never_ends_is_refused() -> None:
    said = problem("pretrain.optim.warmup_steps=10")
    assert "optim.warmup_steps 10 must be less than duration.steps 10" in said
    assert "stages.pretrain" in said
    assert experiment("pretrain.optim.warmup_steps=9")


def test_a_search_chooses_the_steps_so_that_any_warm_up_may_be_given() -> None:
    search = "transfer.search={peak_lr: [1e-3], steps: [20]}"
    assert experiment("transfer.optim.warmup_steps=9", search)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is given twice", 3),
        ("a: {b: 1, b: 2}\n", "the key 'b' is given twice", 1),
        ("a: !!python/object/apply:os.system [ls]\n", "is not allowed", 1),
        ("a: 1\nb: !mine 3\n", "the tag '!mine' is not allowed", 2),
        ("a: !!set {b}\n", "is not allowed", 1),
        ("a: !!binary aGk=\n", "is not allowed", 1),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", "merge keys", 3),
        ("a: &a [*a]\n", "nested deeper than 40 levels", 1),
        ("[" * 5000, "nested deeper than 40 levels", None),
        (BOMB, "more than 100,000 values", 1),
        ("%YAML 1.1\n---\na: no\n", "only YAML 1.2", 1),
        ("a: 1\n---\nb: 2\n", "not valid YAML", 2),
        ("a: [1\n", "not valid YAML", 2),
        ("a: *b\n", "not valid YAML", 1),
        ("a: .inf\n", "not a finite number", 1),
        ("a: 1e999\n", "not a finite number", 1),
        ("a: .nan\n", "not a finite number", 1),
        ("a: 99999999999999999999\n", "does not fit in 64 bits", 1),
        (f"a: {'9' * 5000}\n", "cannot be read as int", 1),
        ("? [a, b]\n: 1\n", "a key must be plain text", 1),
        ("a: \x00\n", "not valid YAML", None),
        ("a: " + "x" * 2**20, "longer than 1,048,576 bytes", None),
    ],
    ids=lambda value: str(value)[:24],
)
def test_yaml_traps_are_refused_with_their_line(text: str, sentence: str, line: int | None) -> None:
    with pytest.raises(SpecError) as refused:
        read_yaml(text, name="run.yaml")
    assert sentence in refused.value.what
    assert refused.value.where == (f"run.yaml:{line}" if line else "run.yaml")


def test_an_alias_is_a_copy() -> None:
    data = read_yaml("a: &x {b: 1}\nc: *x\n", name="x").data
    data["a"]["b"] = 2
    assert data["c"] == {"b": 1}


@pytest.mark.parametrize("text", ["", "[1]", "3"])
def test_an_experiment_is_a_mapping(text: str) -> None:
    assert "is a mapping with name, seed and stages" in problem(text=text)


def test_an_unknown_field_is_told_with_the_nearest_word_and_its_line() -> None:
    text = swapped(
        "peak_lr: 1e-3}\n    batch: {global_samples: 8}\n    duration: {steps: 10}",
        "peak_lr: 1e-3, wieght_decay: 0.1}\n    batch: {global_samples: 8}\n"
        "    duration: {steps: 10}",
    )
    said = problem(text=text)
    line = line_of("wieght_decay", text)
    assert "unknown field 'wieght_decay' (did you mean 'weight_decay'?); allowed are" in said
    assert f"where: run.yaml:{line}, stages.pretrain.optim.wieght_decay" in said


def test_a_stage_may_be_called_as_the_default_type_of_model_is() -> None:
    text = TEXT.replace("kind: pretrain", "kind: PRETRAIN").replace("pretrain", "vit")
    text = text.replace("PRETRAIN", "pretrain")
    said = problem("vit.model.varaint=S", text=text)
    assert "unknown field 'varaint' (did you mean 'variant'?); allowed are" in said
    assert "where: --set vit.model.varaint" in said


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("{type: resnt, image_px: 32}", "'resnt' was given as type (did you mean 'resnet'?)"),
        ("{type: resnet, image_px: 32}", "give either variant (R26, R50, R101, R152) or blocks"),
        ("{type: timm, nam: x, image_px: 32}", "unknown field 'nam' (did you mean 'name'?)"),
        ("{type: hf, model_type: a/b, image_px: 32}", "nothing is downloaded"),
        ("{variant: Ti, patch_px: 4, image_px: 32, name: x}", "unknown field 'name'"),
    ],
)
def test_a_model_of_any_type_is_refused_by_the_fields_of_its_type(
    model: str, sentence: str
) -> None:
    assert sentence in problem(f"pretrain.model={model}")


def test_a_wrong_type_is_told_with_what_is_allowed() -> None:
    text = swapped("image_px: 8}", "image_px: no}")
    assert problem(text=text).splitlines() == [
        "'no' was given; allowed is an integer",
        f"  where: run.yaml:{line_of('image_px: no', text)}, stages.pixels.image_px",
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("transfer.optim.peak_lr='3e-4'", "'3e-4' was given; allowed is a number"),
        ("transfer.optim.clip_norm=a", "'a' was given; allowed is a number or null"),
        ("transfer.optim.peak_lr=-1", "-1 was given; allowed is: greater than 0"),
        ("transfer.optim.peak_lr=true", "true was given; allowed is a number"),
        ("transfer.optim.peak_lr=null", "null was given; allowed is a number"),
        ("transfer.optim=3", "3 was given; allowed is a mapping with some of algorithm, peak_lr"),
        ("pretrain.model.variant=Bb", "'Bb' was given; allowed is 'Ti' or 'S' or 'B' or 'L'"),
        ("pretrain.model.image_px=[32, a]", "allowed is an integer or a list of 2 or null"),
        ("pretrain.precision=bf61", "'bf61' was given; allowed is 'fp32' or 'bf16' or 'fp16' (did"),
        ("pretrain.resources.zero_stage=5", "5 was given; allowed is 0 or 1 or 2 or 3"),
        ("corpus.select.classes=cats", "'cats' was given; allowed is a list or null"),
        ("corpus.select.per_class={train: 0}", "0 was given; allowed is: greater than 0"),
        ("corpus.source.type=tarr", "'tarr' was given as 'type' (did you mean 'tar'?); allowed"),
        ("corpus.source={type: tar}", "the field 'uri' must be given: Tar file, on a disk"),
        ("corpus.source={uri: /x}", "the field 'type' must be given"),
        ("corpus.source.urii=/x", "unknown field 'urii' (did you mean 'uri'?); allowed are type"),
        ("clean.against=[]", "give against, quality or near_duplicates"),
        ("transfer.model.pool=gap", "model.pool is fixed by the weights of 'pretrain'"),
        ("seed=-1", "-1 was given; allowed is: greater than or equal to 0"),
        ("name=a b", "'a b' was given; allowed is: string should match pattern"),
        ("clean.against=[pets@@test]", "'pets@@test' is not a stage reference"),
    ],
)
def test_a_bad_override_is_told_with_its_place(override: str, sentence: str) -> None:
    said = problem(override)
    assert sentence in said
    assert f"--set {override.partition('=')[0]}" in said


def test_a_rule_over_several_fields_names_the_override_among_them() -> None:
    said = problem("pretrain.resources.workers=3")
    assert "resources.workers 3 must divide batch.global_samples 8" in said
    line = line_of("pretrain:")
    assert f"run.yaml:{line}, stages.pretrain (with --set pretrain.resources.workers)" in said


def test_all_problems_are_told_at_once_up_to_five() -> None:
    said = problem(*(f"transfer.optim.wrong{n}=1" for n in range(7)))
    assert said.startswith("the experiment has 7 problems")
    assert said.count("unknown field") == 5
    assert said.endswith("and 2 more")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("tranfer.optim.peak_lr=1", "there is no stage 'tranfer' (did you mean 'transfer'?)"),
        ("transfer=1", "'transfer' is a stage; name a field of it"),
        ("seed.deep=1", "'seed' has no fields"),
        ("transfer..x=1", "has an empty part"),
        ("clean.data.x=1", "stages.clean.data is 'corpus', which has no field 'x'"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(override: str, sentence: str) -> None:
    assert sentence in problem(override)


@pytest.mark.parametrize("override", ["seed", "=3", "seed=", "seed=  "])
def test_an_override_without_path_or_value_is_a_usage_error(override: str) -> None:
    with pytest.raises(UsageError, match="PATH=VALUE"):
        experiment(override)


def test_a_value_replaces_what_stands_there_whole() -> None:
    spec = experiment("pretrain.duration={epochs: 3}", "pretrain.augment.flip=true")
    pretrain = spec.stages["pretrain"]
    assert (pretrain.duration.steps, pretrain.duration.epochs) == (None, 3.0)
    assert pretrain.augment.flip, "mappings on the way are created"


def test_the_profile_comes_after_the_file_and_before_overrides() -> None:
    assert experiment(profile="small").stages["pretrain"].duration.epochs == 2
    spec = experiment("pretrain.duration.epochs=5", profile="small")
    assert spec.stages["pretrain"].duration.epochs == 5
    assert spec.stages["pretrain"].model.variant == "S"
    assert spec.profiles["small"]["pretrain.duration"] == {"epochs": 2}, "the profile stays"


def test_a_profile_can_bring_a_matrix() -> None:
    text = TEXT + "  many: {matrix: {seed: [1, 2]}, name: pets-many}\n"
    spec = experiment(text=text, profile="many")
    assert (spec.matrix, spec.name) == ({"seed": (1, 2)}, "pets-many")


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    said = problem(profile="smal")
    assert "there is no profile 'smal' (did you mean 'small'?); there are small" in said


def test_a_value_of_a_profile_is_told_with_profile_and_line() -> None:
    text = TEXT.replace("model.variant: S", "model.variant: X")
    said = problem(text=text, profile="small")
    place = f"run.yaml:{line_of('small:', text)}, profile small: pretrain.model.variant"
    assert place in said


def test_a_profile_that_is_not_used_must_name_real_stages() -> None:
    said = problem(text=TEXT + "  big: {pretain.precision: bf16}\n")
    assert "there is no stage 'pretain' (did you mean 'pretrain'?)" in said


@pytest.mark.parametrize(
    ("old", "new", "sentence", "path"),
    [
        ("data: clean", "data: claen", "no stage 'claen' (did you mean 'clean'?)", "pretrain.data"),
        ("init: pretrain", "init: clean", "is of kind filter; init of a finetune", "transfer.init"),
        ("[pets@test]", "[pets, pixels]", "'pixels' is of kind baseline", "clean.against[1]"),
        ("data: corpus, ", "data: clean, ", "clean -> clean", "clean"),
    ],
)
def test_problems_of_the_graph_have_file_and_line(
    old: str, new: str, sentence: str, path: str
) -> None:
    text = swapped(old, new)
    said = problem(text=text)
    assert sentence in said
    assert f"where: run.yaml:{line_of(new, text)}, stages.{path}" in said


def test_a_file_is_loaded_with_profile_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("\ufeff" + TEXT, encoding="utf-8")
    spec = load_experiment(path, profile="small", overrides=["seed=3"])
    assert isinstance(spec, ExperimentSpec)
    assert (spec.seed, spec.stages["pretrain"].model.variant) == (3, "S")


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read .*absent\.yaml: No such file"):
        load_experiment(tmp_path / "absent.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not UTF-8 text"):
        load_experiment(binary)
    large = tmp_path / "large.yaml"
    large.write_text("#" * (2**20 + 1))
    with pytest.raises(SpecError, match="longer than"):
        load_experiment(large)


def test_a_reference_to_another_value_is_followed_after_overrides() -> None:
    text = swapped(
        "{type: image_folder, uri: /data/pets, splits: {train: train/, test: test/}}",
        "${corpus.source}",
    )
    both = "corpus.source.splits={train: a, test: b}"
    spec = experiment("corpus.source.uri=/new", both, text=text)
    assert spec.stages["pets"].source == spec.stages["corpus"].source
    said = problem(text=text.replace("${corpus.source}", "${corpus.image}"))
    assert "${corpus.image} names nothing" in said


def test_parsing_gives_the_same_experiment_from_equal_text() -> None:
    first = parse_experiment(TEXT, name_of_file="a.yaml")
    assert first == parse_experiment(TEXT, name_of_file="b.yaml")


def test_a_list_with_something_wrong_in_it_is_not_called_too_short_as_well() -> None:
    test = "{kind: robustness, data: pets@test, model: transfer, tests: [{type: pach_drop}]}"
    robust = f"  robust: {test}\n"
    said = problem(text=TEXT.replace("  transfer:", robust + "  transfer:", 1))
    assert "did you mean 'patch_drop'?" in said
    assert "problems" not in said, "it is one"
    assert "at least 1 item" in problem("report.of=[]")
