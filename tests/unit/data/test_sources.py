import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.data.sources import corpus_of, fingerprint, source_bytes
from pipeline.data.units import FILES_PER_UNIT, Member, Part, Unit, cut
from schemas.errors import DataError, SpecError
from schemas.sources import ImageFolderSource, SklearnSource, TarSource
from tests.support.corpora import CLASSES, encode, picture, write_folder, write_tar
from tests.support.sources import names_of, one_unit, read_all


def test_a_tar_holds_what_its_folder_holds(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=3, splits=("train", "test"))
    splits = {"train": "train", "test": "test"}
    from_folder = ImageFolderSource(uri=str(folder), splits=splits)
    tar = write_tar(tmp_path / "raw.tar", folder)
    from_tar = TarSource(uri=str(tar), splits=splits)
    assert sorted(names_of(from_folder)) == sorted(names_of(from_tar))
    bytes_of = [
        {raw.source: raw.data for raw in read_all(source)} for source in (from_folder, from_tar)
    ]
    assert bytes_of[0] == bytes_of[1]
    assert len(bytes_of[0]) == 3 * 2 * len(CLASSES)


def test_a_corpus_without_splits_is_one_split(tmp_path: Path) -> None:
    source = ImageFolderSource(uri=str(write_folder(tmp_path / "raw", per_class=1)))
    assert names_of(source) == [("train", name, f"{name}/000.jpg") for name in sorted(CLASSES)]


def test_the_digits_are_1797_images_of_ten_classes() -> None:
    found = names_of(SklearnSource())
    assert len(found) == 1797
    assert {name for _, name, _ in found} == set("0123456789")
    assert found[1] == ("train", "1", "digits/0001")


def test_a_unit_survives_json(tmp_path: Path) -> None:
    source = ImageFolderSource(uri=str(write_folder(tmp_path / "raw", per_class=2)))
    unit = one_unit(source)
    assert Unit.load(unit.dump()) == unit


def test_units_are_bounded_and_small_at_first() -> None:
    finds = [Member("train", "a", f"a/{index}.jpg", 0, 1) for index in range(20_000)]
    sizes = [len(unit.members) for unit in cut(finds, Part())]
    assert sum(sizes) == len(finds)
    assert max(sizes) == FILES_PER_UNIT
    for number, size in enumerate(sizes):
        assert size <= max(64, sum(sizes[:number]) // 16)


def test_hidden_files_are_ignored_and_others_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=1)
    (folder / "wave" / ".DS_Store").write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / ".git" / "a.jpg").write_bytes(b"x")
    (folder / "README.md").write_bytes(b"x")
    (folder / "wave" / "gone.jpg").symlink_to(folder / "nowhere")
    unit = one_unit(ImageFolderSource(uri=str(folder)))
    assert len(unit.members) == len(CLASSES)
    assert {file.path for file in unit.refused} == {"README.md", "wave/gone.jpg"}


def test_links_in_a_folder_are_followed_and_loops_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=1)
    (folder / "again").symlink_to(folder / "wave")
    source = ImageFolderSource(uri=str(folder))
    assert ("train", "again", "again/000.jpg") in names_of(source)
    (folder / "wave" / "up").symlink_to(folder)
    with pytest.raises(DataError, match="link to a folder above it"):
        names_of(source)


def test_links_and_paths_that_lead_out_of_a_tar_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    data = encode(picture(0, 0))
    with tarfile.open(path, "w") as tar:
        for name in ("a/ok.jpg", "a/../../out.jpg", "/a/root.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("a/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    unit = one_unit(TarSource(uri=str(path)))
    assert [member.path for member in unit.members] == ["a/ok.jpg"]
    assert {file.path for file in unit.refused} == {"a/../../out.jpg", "/a/root.jpg", "a/link.jpg"}


def test_a_fingerprint_tells_states_apart_and_reads_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=2)
    source = ImageFolderSource(uri=str(folder))
    first = fingerprint(source)
    assert len(bytes.fromhex(first)) == 32
    victim = folder / "wave" / "000.jpg"
    victim.chmod(0)
    assert fingerprint(source) == first
    victim.chmod(0o644)
    os.utime(victim, ns=(1, 1))
    assert fingerprint(source) != first
    moved = folder.rename(tmp_path / "moved")
    os.utime(victim := moved / "wave" / "000.jpg", ns=(1, 1))
    assert fingerprint(ImageFolderSource(uri=str(moved))) != first
    victim.rename(victim.with_name("zzz.jpg"))
    assert len({first, fingerprint(ImageFolderSource(uri=str(moved)))}) == 2


def test_a_fingerprint_does_not_hold_the_place_of_the_corpus(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=1)
    before = fingerprint(ImageFolderSource(uri=str(folder)))
    moved = folder.rename(tmp_path / "elsewhere")
    assert fingerprint(ImageFolderSource(uri=str(moved))) == before


def test_a_tar_is_fingerprinted_by_size_and_time(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", write_folder(tmp_path / "raw", per_class=1))
    before = fingerprint(TarSource(uri=str(tar)))
    os.utime(tar, ns=(5, 5))
    assert fingerprint(TarSource(uri=str(tar))) != before


def test_bytes_are_an_upper_bound(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=2)
    for source in (ImageFolderSource(uri=str(folder)), SklearnSource()):
        held = sum(len(raw.data) for raw in read_all(source))
        assert source_bytes(source) >= held


def test_a_missing_folder_or_split_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=1, splits=("train", "test"))
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        corpus_of(ImageFolderSource(uri=str(tmp_path / "nowhere"))).check()
    source = ImageFolderSource(uri=str(folder), splits={"train": "trian"})
    with pytest.raises(DataError, match="folders beside it: test, train") as caught:
        corpus_of(source).check()
    assert caught.value.where == "source.splits.train"


def test_a_tar_given_as_a_folder_is_told_its_type(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", write_folder(tmp_path / "raw", per_class=1))
    with pytest.raises(DataError, match="is not a folder") as caught:
        fingerprint(ImageFolderSource(uri=str(tar)))
    assert caught.value.hint == "for a tar give source.type: tar"


def test_an_empty_or_flat_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty"):
        corpus_of(ImageFolderSource(uri=str(tmp_path / "empty"))).check()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").write_bytes(encode(picture(0, 0)))
    with pytest.raises(DataError, match="one folder for each class"):
        corpus_of(ImageFolderSource(uri=str(tmp_path / "flat"))).check()


def test_splits_inside_each_other_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=1)
    with pytest.raises(SpecError, match="lies in that of"):
        corpus_of(ImageFolderSource(uri=str(folder), splits={"train": ".", "test": "wave"})).check()


def test_what_is_no_plain_tar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        corpus_of(TarSource(uri=str(tmp_path / "no.tar"))).check()
    squeezed = tmp_path / "a.tar.gz"
    with tarfile.open(squeezed, "w:gz"):
        pass
    with pytest.raises(DataError, match="uncompressed tar"):
        corpus_of(TarSource(uri=str(squeezed))).check()


def test_a_file_that_changes_while_it_is_read_stops_the_build(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=1)
    source = ImageFolderSource(uri=str(folder))
    unit = one_unit(source)
    (folder / "wave" / "000.jpg").write_bytes(b"shorter")
    with pytest.raises(DataError, match="let the corpus rest"):
        list(corpus_of(source).read(unit))


def test_names_that_are_no_utf8_are_read_and_shown_escaped(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "raw", per_class=1)
    odd = os.fsencode(folder / "wave") + b"/\xff.jpg"
    Path(os.fsdecode(odd)).write_bytes(encode(picture(0, 9)))
    found = names_of(ImageFolderSource(uri=str(folder)))
    assert ("train", "wave", r"wave/\xff.jpg") in found


def test_planning_imports_no_codec_and_no_arrays() -> None:
    program = (
        "import sys, pipeline.data.sources;"
        "print(sorted({'PIL', 'numpy', 'pyarrow', 'sklearn', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
