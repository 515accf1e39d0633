"""`vitrail model` and `vitrail predict`, as a user types them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.storage import LocalStore
from pipeline.dag.experiment_file import load_experiment
from pipeline.data.feed.augment import centre_box
from pipeline.data.images.codec import encode
from pipeline.data.images.render import render
from pipeline.evaluation.attention import Look, Seen, look_at
from pipeline.model.backbone import Backbone, normalise
from pipeline.model.interchange import load, save
from pipeline.model.saved import load_model, save_model
from pipeline.model.vit import ViT, build
from schemas.checkpoint import SavedModel
from schemas.errors import DataError, IntegrityError, SpecError, UsageError
from schemas.evaluation import EvaluateSpec
from schemas.model_documents import ExportedModel, ModelCard, ModelDocument, PredictDocument
from schemas.objectives import Probabilities
from tests.support.commands import answer, document, vitrail
from tests.support.foreign import randomise
from tests.support.models import tiny_spec, weights_of
from tests.support.workspaces import keep

TEXT = """\
name: shown
seed: 5
stages:
  corpus:
    kind: ingest
    source: {type: sklearn, name: digits}
    split: {test_ratio: 0.2}
  tuned:
    kind: finetune
    data: corpus
    init: null
    model: {width: 24, depth: 2, num_heads: 3, mlp_dim: 48, patch_px: 4, image_px: 8}
    optim: {peak_lr: 1.0e-3}
    batch: {global_samples: 8}
    duration: {steps: 13}
  accuracy: {kind: evaluate, data: corpus, model: tuned}
"""
CLASSES = ("ant", "bee", "cow", "dog", "eel")


@dataclass(frozen=True)
class Place:
    """A workspace whose stage `tuned` made a model, with a photo beside it."""

    root: Path
    artifact: str
    model: ViT
    photo: Path

    @property
    def here(self) -> tuple[str, str]:
        return "--workspace", str(self.root)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("workspace")
    model = build(tiny_spec(mlp_dim=48, image_px=(8, 8)), seed=0).eval()
    randomise(model, seed=1)
    saved = SavedModel(
        spec=model.spec,
        class_names=CLASSES,
        trained_steps=13,
        key="0" * 64,
        data_digest="d" * 64,
    )
    save_model(root / "made/model", dict(model.named_parameters()), saved)
    (root / "run.yaml").write_text(TEXT)
    stages = load_experiment(root / "run.yaml", profile=None, overrides=()).stages
    (root / "shards").mkdir()
    (root / "shards/manifest.json").write_text("{}")
    corpus = keep(root, root / "shards", experiment="shown", stage="corpus", spec=stages["corpus"])
    tuned = keep(
        root,
        root / "made",
        experiment="shown",
        stage="tuned",
        spec=stages["tuned"],
        inputs={"data": corpus},
    )
    (root / "report").mkdir()
    (root / "report/accuracy.json").write_text("{}")
    accuracy = EvaluateSpec.parse({"data": "corpus", "model": "tuned"})
    keep(
        root,
        root / "report",
        experiment="shown",
        stage="accuracy",
        spec=accuracy,
        inputs={"data": corpus, "model": tuned},
    )
    rows, columns = np.mgrid[0:30, 0:40]
    pixels = np.stack([rows * 8, columns * 6, rows + columns], axis=2).astype(np.uint8)
    (root / "photo.png").write_bytes(encode(pixels, "png", quality=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield Place(root, tuned.artifact, model, root / "photo.png")


def test_a_model_is_found_by_stage_artifact_and_folder(place: Place) -> None:
    store = LocalStore(place.root / "store")
    result = store.get_ref("shown", "tuned")
    assert result is not None
    files = store.path(result)
    names = [
        ("run.yaml", "tuned"),
        (place.artifact,),
        (str(files / "model"),),
        (str(files),),
        (str(files.parent),),
        (str(files.parents[2]),),
    ]
    for name in names:
        found = document(ModelDocument, "model", "info", *name, *place.here)
        assert (found.spec, found.class_names) == (place.model.spec, CLASSES)
        assert found.parameters == sum(it.numel() for it in place.model.parameters())
    assert document(ModelDocument, "model", "info", "run.yaml", "tuned", *place.here).key


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nothing",), "names no model"),
        (("run.yaml", "corpus"), "is of kind ingest and makes no model; these do: tuned"),
    ],
)
def test_names_that_mean_no_model(place: Place, words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        answer("model", "card", *words, *place.here)


def test_info_is_for_people_too(place: Place) -> None:
    told = answer("model", "info", place.artifact, *place.here)
    assert "width 24, depth 2, 3 heads, MLP 48" in told
    assert "5 classes: ant, bee, cow, dog, eel" in told
    assert "GELU erf, LayerNorm eps 1e-06" in told


@pytest.mark.parametrize(
    ("layout", "out"),
    [
        ("google", "vit.npz"),
        ("timm", "vit-timm"),
        ("timm", "vit-timm.safetensors"),
        ("hf", "vit-hf"),
        ("safetensors", "vit.safetensors"),
    ],
)
def test_export_and_back(place: Place, tmp_path: Path, layout: str, out: str) -> None:
    target = tmp_path / out
    exported = document(
        ExportedModel,
        "model", "export", place.artifact, "--layout", layout, "--out", str(target), *place.here,
    )  # fmt: skip
    on_disk = target.iterdir() if target.is_dir() else [target]
    assert sorted(exported.files) == sorted(path.name for path in on_disk)
    said = {"google": ["gelu=erf"], "timm": ["num_heads=3", "gelu=erf"]}.get(layout, [])
    said = [] if out == "vit-timm" else said
    options = [word for it in said for word in ("--set", it)]
    back = document(
        ModelDocument, "model", "import", str(target), "--out", str(tmp_path / "back"), *options
    )
    model, saved = load_model(tmp_path / "back")
    assert saved.origin is not None
    assert saved.origin.files == exported.files
    assert saved.key is None
    has_names = out in ("vit-timm", "vit-hf", "vit.safetensors")
    assert back.class_names == (CLASSES if has_names else ())
    for name, parameter in place.model.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)


def test_export_tells_what_is_lost_and_keeps_what_is_there(place: Place, tmp_path: Path) -> None:
    words = ("model", "export", "run.yaml", "tuned", "--layout", "google", "--out")
    told = answer(*words, str(tmp_path / "vit.npz"), *place.here)
    assert "note: gelu is erf; the layout google does not say it" in told
    with pytest.raises(UsageError, match="exists and stays as it is"):
        answer(*words, str(tmp_path / "vit.npz"), *place.here)


def test_info_reads_files_of_strangers(place: Place, tmp_path: Path) -> None:
    save(tmp_path / "v.npz", "google", place.model.spec, dict(place.model.named_parameters()))
    found = document(ModelDocument, "model", "info", str(tmp_path / "v.npz"))
    assert (found.layout, found.spec.gelu, found.trained_steps) == ("google", "tanh", None)
    found = document(ModelDocument, "model", "info", str(tmp_path / "v.npz"), "--set", "gelu=erf")
    assert found.spec.gelu == "erf"
    assert "gelu tanh" not in found.origin.assumed


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("heads=3", "write NAME=VALUE with one of num_heads"),
        ("num_heads", "write NAME=VALUE with one of num_heads"),
        ("num_heads=many", "--set num_heads=many: input should be a valid integer"),
        ("gelu=relu", "--set gelu=relu: input should be 'erf' or 'tanh'"),
    ],
)
def test_assumptions_that_are_not_understood(place: Place, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        answer("model", "info", "x.npz", "--set", text)


def test_import_has_a_place_of_its_own(place: Place, tmp_path: Path) -> None:
    save(tmp_path / "v.npz", "google", place.model.spec, dict(place.model.named_parameters()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert "wrote v-model" in answer("model", "import", "v.npz")
        with pytest.raises(UsageError, match="v-model exists and stays as it is"):
            answer("model", "import", "v.npz")
        assert load(tmp_path / "v-model").spec.gelu == "tanh"


def test_card_tells_lineage_figures_and_conventions(place: Place) -> None:
    card = document(ModelCard, "model", "card", "run.yaml", "tuned", *place.here)
    assert [it.stage for it in card.lineage] == ["tuned", "corpus"]
    assert all(it.digest for it in card.lineage)
    assert card.lineage[0].reads == {"data": card.lineage[1].artifact}
    assert [it.stage for it in card.measured] == ["accuracy"]
    assert card.training["optim.peak_lr"] == "0.001"
    told = answer("model", "card", place.artifact, *place.here)
    assert told.startswith("# tuned\n")
    for text in ("## Lineage", "## Settings", "| optim.peak_lr | 0.001 |", "GELU erf", "d" * 64):
        assert text in told


def test_card_of_an_imported_model_tells_its_origin(place: Place, tmp_path: Path) -> None:
    save(tmp_path / "v.npz", "google", place.model.spec, dict(place.model.named_parameters()))
    answer("model", "import", str(tmp_path / "v.npz"), "--out", str(tmp_path / "vit"))
    told = answer("model", "card", str(tmp_path / "vit"), *place.here)
    assert "Imported from the layout google." in told
    assert "was taken: gelu tanh" in told
    assert load(tmp_path / "v.npz").origin.files["v.npz"].sha256 in told


def test_predict_names_classes_and_draws_attention(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = document(
        PredictDocument,
        "predict", place.artifact, str(place.photo), "--out", str(tmp_path), *place.here,
    )  # fmt: skip
    (image,) = found.images
    assert len(image.top) == 5
    assert sum(it.probability for it in image.top) == pytest.approx(1.0, abs=1e-5)
    assert [it.probability for it in image.top] == sorted(
        (it.probability for it in image.top), reverse=True
    )
    assert image.overlay == str(tmp_path / "photo.png.attention.png")
    assert Path(image.overlay).read_bytes().startswith(b"\x89PNG")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    spec, photo = (str(place.root / name) for name in ("run.yaml", place.photo.name))
    told = answer("predict", spec, photo, "--stage", "tuned", "--top", "2", *place.here)
    assert image.top[0].class_name in told
    assert [it.name for it in elsewhere.iterdir()] == ["photo.png.attention.png"]


def seen_photo(
    place: Place, model: Backbone, look: Look, probabilities: Probabilities = "softmax"
) -> Seen:
    data = place.photo.read_bytes()
    return look_at(model, data, name="photo", look=look, probabilities=probabilities)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 0},
        {"pool": "gap"},
        {"pool": "map", "registers": 2},
        {"registers": 2, "distillation_token": True},
        {"position": "relative"},
    ],
)
@pytest.mark.parametrize("look", ["last", "rollout"])
def test_attention_is_a_share_of_each_patch(
    place: Place, changes: dict[str, Any], look: Any
) -> None:
    model = build(tiny_spec(**changes), seed=0).eval()
    randomise(model, seed=1)
    seen = seen_photo(place, model, look)
    assert seen.attention is not None
    assert seen.attention.shape == model.spec.grid
    assert seen.attention.sum() == pytest.approx(1.0, abs=1e-5)
    assert (seen.attention >= 0).all()
    assert (seen.probabilities is None) == ("num_classes" in changes)


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_attention_is_that_of_its_definition(place: Place, pool: str) -> None:
    model = build(tiny_spec(pool=pool, registers=1), seed=0).eval()
    randomise(model, seed=1)
    found = {
        "last": seen_photo(place, model, "last"),
        "rollout": seen_photo(place, model, "rollout"),
    }
    pixels = normalise(torch.from_numpy(found["last"].pixels)[None], model.spec)
    maps = [it[0].mean(dim=0).numpy() for it in weights_of(model, pixels)]
    lead = model.spec.leading
    through = np.eye(len(maps[0]))
    for weights in maps:
        through = 0.5 * (weights + np.eye(len(weights))) @ through
    for look, whole in (("last", maps[-1]), ("rollout", through)):
        given = whole[0] if pool == "cls" else whole[lead:].mean(axis=0)  # as pooling reads them
        wanted = given[lead:] / given[lead:].sum()
        seen = found[look].attention
        assert seen is not None
        assert np.allclose(seen.ravel(), wanted, atol=1e-6)


def test_predict_sees_what_evaluation_sees(place: Place) -> None:
    wanted = np.empty((8, 8, 3), np.uint8)
    render(place.photo.read_bytes(), centre_box((30, 40), (8, 8)), wanted)
    seen = seen_photo(place, place.model, "last")
    assert np.array_equal(seen.pixels, wanted)
    with torch.no_grad():
        logits = place.model(normalise(torch.from_numpy(wanted)[None], place.model.spec))
    assert seen.probabilities is not None
    assert torch.equal(torch.from_numpy(seen.probabilities), logits[0].softmax(dim=0))
    asked = seen_photo(place, place.model, "last", "sigmoid").probabilities
    assert asked is not None
    assert torch.equal(torch.from_numpy(asked), logits[0].sigmoid())


def test_a_model_of_sigmoids_stays_one_on_its_way(place: Place, tmp_path: Path) -> None:
    model = build(tiny_spec(), seed=0).eval()
    randomise(model, seed=1)
    saved = SavedModel(
        spec=model.spec, class_names=CLASSES, probabilities="sigmoid", trained_steps=1
    )
    save_model(tmp_path / "vit", dict(model.named_parameters()), saved)
    assert "eel, a sigmoid for each" in answer("model", "info", str(tmp_path / "vit"))
    words = ("model", "export", str(tmp_path / "vit"), "--layout")
    told = answer(*words, "google", "--out", str(tmp_path / "vit.npz"))
    assert "probabilities are sigmoids of the logits, which the layout google" in told
    answer(*words, "safetensors", "--out", str(tmp_path / "vit.safetensors"))
    back = str(tmp_path / "back")
    answer("model", "import", str(tmp_path / "vit.safetensors"), "--out", back)
    found = document(PredictDocument, "predict", back, str(place.photo), "--out", str(tmp_path))
    asked = seen_photo(place, model, "last", "sigmoid").probabilities
    assert asked is not None
    top = [it.probability for it in found.images[0].top]
    assert top == pytest.approx(sorted(asked.tolist(), reverse=True))
    assert "do not add up to one" in found.notes[0]


def test_a_model_without_a_head_says_so_and_still_looks(place: Place, tmp_path: Path) -> None:
    model = build(tiny_spec(num_classes=0), seed=0)
    saved = SavedModel(spec=model.spec, class_names=(), trained_steps=0)
    save_model(tmp_path / "vit", dict(model.named_parameters()), saved)
    found = document(
        PredictDocument, "predict", str(tmp_path / "vit"), str(place.photo), "--out", str(tmp_path)
    )
    assert found.images[0].top == ()
    assert "has no head, so it names no classes" in found.notes[0]
    assert (tmp_path / "photo.png.attention.png").is_file()


def test_axial_blocks_and_unnamed_classes_are_told(place: Place, tmp_path: Path) -> None:
    model = build(tiny_spec(axial=True, pool="gap"), seed=0)
    saved = SavedModel(spec=model.spec, class_names=(), trained_steps=0)
    save_model(tmp_path / "vit", dict(model.named_parameters()), saved)
    found = document(
        PredictDocument, "predict", str(tmp_path / "vit"), str(place.photo), "--out", str(tmp_path)
    )
    assert found.images[0].overlay is None
    assert found.images[0].top[0].class_name.startswith("class ")
    assert len(found.notes) == 2


def test_images_that_cannot_be_looked_at(place: Place, tmp_path: Path) -> None:
    words = ("predict", place.artifact)
    with pytest.raises(UsageError, match="there is no image"):
        answer(*words, "no.jpg", *place.here)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text.jpg is refused \(not_image\)"):
        answer(*words, str(tmp_path / "text.jpg"), *place.here)
    with pytest.raises(UsageError, match="two images have one name"):
        answer(*words, str(place.photo), str(place.photo), *place.here)


def test_bad_files_end_with_the_designs_codes(place: Place, tmp_path: Path) -> None:
    torch.save({"conv_stem.weight": torch.zeros(3)}, tmp_path / "net.pth")
    with pytest.raises(SpecError, match="no Vision Transformer that is known"):
        answer("model", "import", str(tmp_path / "net.pth"))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(IntegrityError, match="cut off or damaged"):
        answer("model", "info", str(tmp_path / "cut.npz"))
    assert vitrail("model", "import", str(tmp_path / "net.pth"), cwd=tmp_path).code == 3
    done = vitrail("model", "info", str(tmp_path / "cut.npz"), cwd=tmp_path)
    assert (done.code, done.stdout) == (6, "")
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("words", [("model",), ("model", "import"), ("predict",)])
def test_help_of_these_commands_is_light(words: tuple[str, ...], checkout: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom jobs.cli import app\n"
        f"try:\n    app([*{words!r}, '--help'])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', *[it for it in ('torch', 'ray', 'mlflow', 'PIL') if it in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]
