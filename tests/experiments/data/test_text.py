import math
import os

import numpy as np
import pytest

from experiments.data import text as module
from experiments.data.text import bits_per_byte, standard_library, text_at


@pytest.fixture(scope="module")
def library():
    return standard_library()


def test_standard_library(library):
    facts = library.provenance
    assert facts["files"] > 300 and facts["files_left_out_as_no_text"] == 0
    assert facts["train_bytes"] == library.train.size > 4e6
    assert facts["validation_bytes"] == library.validation.size
    share = library.validation.size / (library.train.size + library.validation.size)
    assert 0.02 < share < 0.1
    assert np.sum(library.train == 0) + np.sum(library.validation == 0) == facts["files"]
    assert len(facts["sha256"]) == 64


def test_standard_library_has_no_tests_and_no_machine_written_files(library):
    whole = library.train.tobytes() + library.validation.tobytes()
    assert b"class JSONDecoder" in whole
    assert b"build_time_vars" not in whole.split(b"\0")[0]
    assert b"Python Character Mapping Codec cp1252" not in whole
    assert b"class TestCase(object)" in whole  # unittest itself stays


def test_standard_library_split_is_by_file(library):
    train = set(library.train.tobytes().split(b"\0")) - {b""}
    validation = set(library.validation.tobytes().split(b"\0")) - {b""}
    assert len(validation) > 10
    assert not train & validation


def test_reading_twice_is_the_same(library):
    assert standard_library().provenance == library.provenance


def folder(path, count):
    for i in range(count):
        (path / f"{i:03d}.txt").write_text(f"file {i} " * 20)
    return text_at(str(path))


def test_folder_is_split_by_file_and_complete(tmp_path):
    text = folder(tmp_path, 200)
    files = [part.split(b"\0")[:-1] for part in (text.train.tobytes(), text.validation.tobytes())]
    assert 2 <= len(files[1]) <= 25
    numbers = sorted(int(content.split()[1]) for side in files for content in side)
    assert numbers == list(range(200))


def test_a_file_stays_on_its_side_when_others_come(tmp_path):
    before = set(folder(tmp_path, 200).validation.tobytes().split(b"\0"))
    after = set(folder(tmp_path, 300).validation.tobytes().split(b"\0"))
    assert before <= after


def test_hash_covers_names_and_contents(tmp_path):
    hashes = {folder(tmp_path, 3).provenance["sha256"]}
    (tmp_path / "000.txt").write_text("other")
    hashes.add(text_at(str(tmp_path)).provenance["sha256"])
    (tmp_path / "000.txt").rename(tmp_path / "a.txt")
    hashes.add(text_at(str(tmp_path)).provenance["sha256"])
    assert len(hashes) == 3


def test_folder_leaves_out_what_is_no_text(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "below" / "a.md").write_text("kept " * 100)
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "zero.bin").write_bytes(b"a\0b")
    os.symlink(tmp_path / "below" / "a.md", tmp_path / "link.md")
    text = text_at(str(tmp_path))
    assert text.provenance["files"] == 1 and text.provenance["files_left_out_as_no_text"] == 2
    whole = text.train.tobytes() + text.validation.tobytes()
    assert whole == b"kept " * 100 + b"\0"


def test_single_file_validates_on_its_tail(tmp_path):
    path = tmp_path / "story.txt"
    content = bytes(97 + i % 26 for i in range(1000))
    path.write_bytes(content)
    text = text_at(str(path))
    assert text.validation.size == 50
    assert text.train.tobytes() + text.validation.tobytes() == content + b"\0"


def test_few_files_fall_back_to_the_tail(tmp_path):
    text = folder(tmp_path, 3)
    assert text.validation.size == int(0.05 * (text.train.size + text.validation.size))


def test_missing_path():
    with pytest.raises(FileNotFoundError, match=r"no file or folder 'nowhere/at/all'"):
        text_at("nowhere/at/all")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a\0b", b""])
def test_file_without_text(tmp_path, content):
    path = tmp_path / "data.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is empty or not UTF-8 text"):
        text_at(str(path))


def test_folder_without_text(tmp_path):
    with pytest.raises(ValueError, match="holds no UTF-8 text file"):
        text_at(str(tmp_path))


def test_size_is_checked_before_reading(tmp_path, monkeypatch):
    folder(tmp_path, 3)
    monkeypatch.setattr(module, "MAXIMUM_BYTES", 100)
    monkeypatch.setattr(module.pathlib.Path, "read_bytes", lambda path: pytest.fail("was read"))
    with pytest.raises(ValueError, match="at most 100"):
        text_at(str(tmp_path))


def test_baselines_by_hand():
    train = np.frombuffer(b"abab", np.uint8)
    previous, target = np.frombuffer(b"aa", np.uint8), np.frombuffer(b"bc", np.uint8)
    found = bits_per_byte(train, previous, target)
    assert found["uniform"] == 8
    # unigram: (2 + 1) / (4 + 256) for b, 1 / 260 for c; bigram after a: 3 / 258 and 1 / 258
    unigram = -(math.log2(3 / 260) + math.log2(1 / 260)) / 2
    bigram = -(math.log2(3 / 258) + math.log2(1 / 258)) / 2
    assert found["unigram"] == pytest.approx(unigram, rel=1e-12)
    assert found["bigram"] == pytest.approx(bigram, rel=1e-12)


def test_baselines_order_on_real_text(library):
    found = bits_per_byte(library.train, library.validation[:-1], library.validation[1:])
    assert 3 < found["bigram"] < found["unigram"] < 5 < found["uniform"]
