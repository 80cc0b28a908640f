"""WebDatasetSource: patterns, keys, captions, streaming, and broken shards."""

import io
import json
import logging
import tarfile
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tilewright.data import CaptionedImages
from tilewright.data.captions import find_captions
from tilewright.data.images import decode_image
from tilewright.data.sources.tar_samples import PairFormat, read_samples
from tilewright.data.sources.webdataset import WebDatasetSource, expand_braces
from tilewright.data.transforms import CenterCrop
from tilewright.errors import UserError

PAIR_FORMAT = PairFormat(("jpg", "png"), ("txt",), ("caption",))


def encode_image(number, form="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, number, number)).save(file, form)
    return file.getvalue()


def shard(path, members):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in members:
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(numbers):
    for n in numbers:
        form, ending = (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"))[n % 3]
        yield f"some/{n:04}.{ending}", encode_image(n, form)
        if n % 2:
            yield f"some/{n:04}.txt", f"number {n}\n"
        else:
            yield f"some/{n:04}.json", json.dumps({"caption": f"number {n}", "width": 8})
        yield f"some/{n:04}.seg.npy", b"ignored"


def read_numbers(rows):
    """Returns the sorted numbers in the captions, and asserts that each matches its image."""
    numbers = []
    for row in rows:
        captions = [row["caption"]] if isinstance(row["caption"], str) else row["caption"]
        numbers.append(int(captions[0].removeprefix("number ")))
        assert abs(decode_image(row["image"]).getpixel((3, 3))[0] - numbers[-1]) < 4
    return sorted(numbers)


def load_rows(source):
    """Returns the rows of each split, with encoded images."""
    crop = CenterCrop(8)
    data = CaptionedImages(source, 8, 4, crop, crop)
    return {split: list(data._rows(split)) for split in data.splits}


@pytest.mark.parametrize("streaming", [True, False])
def test_split_names_of_shards(tmp_path, streaming):
    for name, first in (("train-0000", 0), ("train-0001", 10), ("val-0000", 20)):
        shard(tmp_path / f"{name}.tar", pairs(range(first, first + 10)))
    splits = load_rows(WebDatasetSource(str(tmp_path), streaming=streaming))
    assert read_numbers(splits["train"]) == list(range(20))
    assert read_numbers(splits["validation"]) == list(range(20, 30))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_validation_split_is_held_out(tmp_path, streaming):
    for number in range(2):
        shard(tmp_path / f"{number}.tar", pairs(range(20 * number, 20 * number + 20)))
    source = WebDatasetSource(str(tmp_path), streaming=streaming, validation_fraction=0.3)
    splits = load_rows(source)
    assert sorted(read_numbers(splits["train"]) + read_numbers(splits["validation"])) == list(
        range(40)
    )
    assert 4 < len(splits["validation"]) < 20
    assert load_rows(source) == splits


def test_streaming_gives_the_splits_of_the_table(tmp_path):
    shard(tmp_path / "a.tar", pairs(range(30)))
    streaming, table = (
        load_rows(WebDatasetSource(str(tmp_path), streaming=s)) for s in (True, False)
    )
    assert {k: read_numbers(v) for k, v in streaming.items()} == {
        k: read_numbers(v) for k, v in table.items()
    }


def test_images_of_every_readable_format_are_pairs(tmp_path):
    members = []
    for n, (ending, form) in enumerate((("jfif", "JPEG"), ("TIF", "TIFF"), ("jp2", "JPEG2000"))):
        members += [(f"{n}.{ending}", encode_image(n, form)), (f"{n}.txt", f"number {n}")]
    for name in ("train", "val"):
        shard(tmp_path / f"{name}.tar", members)
    splits = load_rows(WebDatasetSource(str(tmp_path)))
    assert read_numbers(splits["train"]) == [0, 1, 2]


def test_a_changed_file_is_read_again(tmp_path):
    shard(tmp_path / "a.tar", pairs(range(4)))
    source = WebDatasetSource(str(tmp_path / "a.tar"), streaming=False)
    assert sum(map(len, load_rows(source).values())) == 4
    shard(tmp_path / "a.tar", pairs(range(9)))
    assert sum(map(len, load_rows(source).values())) == 9


def test_compressed_shards_are_read(tmp_path):
    shard(tmp_path / "a.tar.gz", pairs(range(6)))
    splits = load_rows(WebDatasetSource(str(tmp_path / "a.tar.gz")))
    assert sum(map(len, splits.values())) == 6


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a.tar", ["a.tar"]),
        ("{000..002}.tar", ["000.tar", "001.tar", "002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{02..00}", ["02", "01", "00"]),
        ("s3://b/{x,y}-{1..2}", ["s3://b/x-1", "s3://b/x-2", "s3://b/y-1", "s3://b/y-2"]),
    ],
)
def test_braces_are_expanded(pattern, paths):
    assert expand_braces(pattern) == paths


def test_a_name_with_signs_of_patterns_is_a_name(tmp_path):
    file = tmp_path / "set [2024]" / "a*.tar"
    file.parent.mkdir()
    shard(file, pairs(range(2)))
    assert WebDatasetSource(str(file)).files() == [str(file)]


def test_an_empty_list_of_patterns_is_an_error():
    with pytest.raises(UserError, match=r"data\.source\.path=\[\] names no tar file"):
        WebDatasetSource([]).load()


def test_a_list_as_text_is_an_error_that_has_the_form_with_braces(tmp_path):
    for name in "ab":
        shard(tmp_path / f"{name}.tar", pairs(range(2)))
    text = f"{tmp_path}/a.tar,{tmp_path}/b.tar"
    with pytest.raises(UserError, match=r'several as "data\.source\.path={/a,/b}"$'):
        WebDatasetSource(f"[{text}]").files()
    assert WebDatasetSource(f"{{{text}}}").files() == text.split(",")


def test_patterns_and_lists_of_patterns(tmp_path):
    for name in ("a0", "a1", "b0"):
        shard(tmp_path / f"{name}.tar", pairs(range(2)))
    names = {
        f"{tmp_path}/a*.tar": ["a0", "a1"],
        f"{tmp_path}/{{a,b}}0.tar": ["a0", "b0"],
        (f"{tmp_path}/b0.tar", f"{tmp_path}/a1.tar"): ["b0", "a1"],
        "https://host/{0..1}.tar": ["0", "1"],
    }
    for path, expected in names.items():
        files = WebDatasetSource(path).files()
        assert [file.rpartition("/")[2].removesuffix(".tar") for file in files] == expected


def test_unusable_captions_are_counted(tmp_path):
    contents = [
        ("txt", b"number 0"), ("txt", b"\0\1\2"), ("txt", b"  \n"), ("json", b"{no"),
        ("json", b'{"caption": null}'), ("json", b'{"caption": 7}'), ("json", b"[]"),
        ("json", b'{"caption": ["one", "two"]}'), ("json", b"{}"), ("npy", b"no caption at all"),
    ]  # fmt: skip
    members = []
    for n, (ending, content) in enumerate(contents):
        members += [(f"{n}.jpg", encode_image(n)), (f"{n}.{ending}", content)]
    members += [("x.txt", "a caption alone")]
    for name in ("train", "val"):
        shard(tmp_path / f"{name}.tar", members)
    crop = CenterCrop(8)
    data = CaptionedImages(WebDatasetSource(str(tmp_path)), 8, 4, crop, crop)
    captions = []
    for batch in data.val_dataloader():
        captions += data.on_after_batch_transfer(batch, 0)["caption"]
    assert sorted(captions) == ["number 0", "one"]
    assert data.skip_counts.reasons == {
        "empty caption": 1,
        "caption is in an unknown encoding": 1,
        "caption is not text": 3,
        "no caption": 3,
        "no image": 1,
    }
    assert {"one", "two", "a caption alone"} <= set(data.captions())


def test_a_truncated_shard_gives_its_complete_pairs(tmp_path, caplog):
    shard_path = shard(tmp_path / "train-0.tar", pairs(range(30)))
    shard(tmp_path / "val.tar", pairs(range(3)))
    shard(tmp_path / "train-1.tar", pairs(range(30, 33)))
    with tarfile.open(shard_path) as tar:
        end = tar.getmembers()[40].offset_data + 3  # in the middle of a member
    shard_path.write_bytes(shard_path.read_bytes()[:end])
    rows = read_numbers(load_rows(WebDatasetSource(str(tmp_path)))["train"])
    assert {30, 31, 32} < set(rows)
    assert 5 < len(rows) < 32
    assert "train-0.tar is broken after" in caplog.text


@pytest.mark.parametrize(
    ("end", "words"),
    [(7, "is broken after 2 pairs"), (0, "has no end marker after 2 pairs")],
)
@pytest.mark.parametrize("streaming", [True, False])
def test_a_shard_that_ends_at_a_header_gives_a_warning(tmp_path, caplog, end, words, streaming):
    members = [*pairs(range(3))]
    path = shard(tmp_path / "train.tar", [m for m in members if not m[0].endswith("npy")])
    with tarfile.open(path) as tar:
        start = tar.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[: start + end])
    shard(tmp_path / "val.tar", pairs(range(3)))
    source = WebDatasetSource(str(tmp_path), streaming=streaming)
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        assert read_numbers(load_rows(source)["train"]) == [0, 1]
        assert f"train.tar {words}" in caplog.text


def test_hidden_members_are_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = ["./._1.jpg", "./._1.txt", "__MACOSX/1.jpg", "__MACOSX/1.txt"]
    shard(tmp_path / "train.tar", [*pairs(range(3)), *((name, "x") for name in names)])
    shard(tmp_path / "val.tar", pairs(range(3)))
    rows = load_rows(WebDatasetSource(str(tmp_path)))["train"]
    assert read_numbers(rows) == [0, 1, 2]
    assert "4 × hidden" in caplog.text


def test_the_field_text_of_a_json_member_is_a_caption(tmp_path):
    members = [("1.jpg", encode_image(1)), ("1.json", '{"text": "number 1"}')]
    for name in ("train", "val"):
        shard(tmp_path / f"{name}.tar", members)
    assert read_numbers(load_rows(WebDatasetSource(str(tmp_path)))["train"]) == [1]


@pytest.mark.parametrize(
    ("members", "arguments", "words"),
    [
        (None, {}, ["matches no tar file", "give a file, a folder or a pattern"]),
        (b"this is not a tar file", {}, ["a.tar cannot be read as a tar file"]),
        (
            [("1.jpg", "x"), ("1.cls", "3")],
            {},
            ["no member that ends in txt or caption or json", "1 × cls, 1 × jpg"],
        ),
        (
            [("1.exr", "x"), ("1.txt", "x")],
            {},
            ["ends in jpg or", "1 × exr, 1 × txt", "image_keys"],
        ),
        ([("1.jpg", "x"), ("1.txt", "x")], {"caption_keys": ["cap"]}, ["ends in cap"]),
        ([("1.jpg", "x"), ("2.jpg", "x"), ("1.txt", "x")], {}, ["no pair among its first 100"]),
        ([("1.jpg", "x"), ("README", "x")], {}, ["1 × jpg, 1 × no ending"]),
    ],
)
def test_mistakes_are_one_line(tmp_path, members, arguments, words):
    if isinstance(members, bytes):
        (tmp_path / "a.tar").write_bytes(members)
    elif members:
        shard(tmp_path / "a.tar", members)
    with pytest.raises(UserError) as caught:
        WebDatasetSource(str(tmp_path), **arguments).load()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_shard_is_an_error(tmp_path):
    for name in ("train-0", "train-1", "val"):
        shard(tmp_path / f"{name}.tar", pairs(range(3)))
    splits = WebDatasetSource(str(tmp_path)).load()
    (tmp_path / "train-1.tar").unlink()
    with pytest.raises(UserError, match=r"train-1\.tar cannot be opened .*resume=true"):
        list(splits["train"])


def members_of(samples, caption=b"text", image=b"image"):
    """Returns members by name, with contents by ending."""
    contents = {"txt": caption, "jpg": image, "png": image}
    return [(name, contents.get(name.rpartition(".")[2], b"other")) for name in samples]


@pytest.mark.parametrize(
    ("names", "complete", "other", "unread"),
    [
        (["cat.v2.jpg", "cat.v2.txt", "dog.v2.jpg", "dog.v2.txt"], ["cat.v2", "dog.v2"], [], {}),
        (["cat.jpg", "cat.txt", "cat.v2.jpg", "cat.v2.txt"], ["cat.v2", "cat"], [], {}),
        (["a.1.5.JPG", "a.1.5.txt"], ["a.1.5"], [], {}),
        (["./x.y/1.jpg", "./x.y/1.txt"], ["./x.y/1"], [], {}),
        (["1.jpg", "1.seg.png", "1.txt"], ["1"], [], {"seg.png": 1}),
        (["1.aux.png", "1.jpg", "1.txt"], ["1"], [], {"aux.png": 1}),
        (["1.jpg", "1.txt", "1.emb.npy"], ["1"], [], {"emb.npy": 1}),
        (["a.b.jpg", "a.b.npy", "a.b.txt"], ["a.b"], [], {"b.npy": 1}),
        (["a.b.cls", "a.b.jpg", "a.b.txt"], ["a.b"], [], {"b.cls": 1}),
        (["1.cls", "2.jpg", "2.txt", "3.cls"], ["2"], ["1", "3"], {"cls": 2}),
        (["a.b.jpg", "c.txt", "./d.jpg"], [], ["a.b", "c", "./d"], {}),
    ],
)
def test_names_may_have_dots(names, complete, other, unread):
    counts = Counter()
    samples = list(
        read_samples([(n, io.BytesIO(c)) for n, c in members_of(names)], PAIR_FORMAT, counts)
    )
    assert [sample.name for sample in samples if len(sample.parts) == 2] == complete
    assert [sample.name for sample in samples if len(sample.parts) < 2] == other
    assert counts == unread


@given(
    st.lists(st.from_regex(r"[a-c]{1,2}(\.[a-c0-9]{1,2}){0,2}", fullmatch=True), unique=True),
    st.lists(st.sampled_from(["npy", "seg.npy", "cls"]), unique=True),
)
def test_each_pair_of_a_sorted_file_is_read(stems, others):
    endings = ["jpg", "txt", *others]
    names = sorted(f"{stem}.{ending}" for stem in stems for ending in endings)
    # A name such as a.b also reads as an unread member of the sample a.
    samples = read_samples([(n, io.BytesIO(c)) for n, c in members_of(names)], PAIR_FORMAT)
    pairs = [sample.name for sample in samples if len(sample.parts) == 2]
    assert sorted(pairs) == sorted(stems)


def test_unread_members_are_counted_when_the_data_is_loaded(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    shard(tmp_path / "a.tar", pairs(range(20)))
    WebDatasetSource(str(tmp_path)).load()
    assert "20 of the first 60 members" in caplog.text
    assert "20 × seg.npy" in caplog.text


def test_captions_in_another_encoding_are_read(tmp_path, caplog):
    texts = ["ein grüner Kreis", "no other letter", "größer"]
    members = []
    for n, text in enumerate(texts):
        members += [(f"{n}.jpg", encode_image(n)), (f"{n}.txt", text.encode("cp1252"))]
    members += [("3.jpg", encode_image(3)), ("3.txt", "später".encode("utf-16"))]
    for name in ("train", "val"):
        shard(tmp_path / f"{name}.tar", members)
    rows = load_rows(WebDatasetSource(str(tmp_path)))["train"]
    assert sorted(row["caption"] for row in rows) == sorted([*texts, "später"])
    assert (
        "that are not UTF-8 are read as cp1252, such as 0.txt ('ein grüner Kreis')" in caplog.text
    )


def test_the_encoding_of_captions_can_be_set(tmp_path, caplog):
    members = [("1.jpg", encode_image(1)), ("1.txt", "красный круг".encode("koi8-r"))]
    for name in ("train", "val"):
        shard(tmp_path / f"{name}.tar", members)
    rows = load_rows(WebDatasetSource(str(tmp_path), encoding="koi8-r"))["train"]
    assert [row["caption"] for row in rows] == ["красный круг"]
    assert "are read as" not in caplog.text


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("auto", ["a dog", "the dog"]), ("lines", ["a dog", "the dog"]), ("one", "a dog\nthe dog")],
)
def test_captions_per_file_divides_text_members(tmp_path, setting, expected):
    members = [("1.jpg", encode_image(1)), ("1.txt", "a dog\nthe dog\n")]
    for name in ("train", "val"):
        shard(tmp_path / f"{name}.tar", members)
    source = WebDatasetSource(str(tmp_path), captions_per_file=setting)
    assert [row["caption"] for row in load_rows(source)["train"]] == [expected]


@pytest.mark.parametrize("names", [["0.tar", "1.tar"], ["x/0.tar", "y/1.tar"]])
def test_folders_above_the_data_do_not_choose_the_split(tmp_path, names):
    root = tmp_path / "dev" / "test"
    for n, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shard(root / name, pairs(range(20 * n, 20 * n + 20)))
    splits = load_rows(WebDatasetSource(str(root), validation_fraction=0.3))
    assert splits.keys() == {"train", "validation"}
    assert len(splits["train"]) > 20


@pytest.mark.parametrize("keys", ["txt", [".TXT"]])
def test_keys_are_accepted_as_people_write_them(tmp_path, keys):
    for name in ("train", "val"):
        shard(tmp_path / f"{name}.tar", [("1.JPG", encode_image(1)), ("1.txt", "number 1")])
    source = WebDatasetSource(str(tmp_path), image_keys="jpg", caption_keys=keys)
    assert read_numbers(load_rows(source)["train"]) == [1]


def test_compressed_shards_of_a_folder_are_read(tmp_path):
    for name in ("train.tar", "train.tar.gz", "train.tgz", "val.tar", "other.gz"):
        shard(tmp_path / name, pairs(range(3)))
    assert len(WebDatasetSource(str(tmp_path)).files()) == 4


def test_a_table_has_rows_without_an_image_and_counts_captions_that_are_not_text(tmp_path, caplog):
    members = [
        *pairs(range(1, 4)),
        ("x.txt", "alone"),
        ("5.jpg", encode_image(5)),
        ("5.txt", "nan"),
    ]
    members += [("6.jpg", encode_image(6)), ("6.json", '{"caption": 7}')]
    for name in ("train", "val"):
        shard(tmp_path / f"{name}.tar", members)
    rows = load_rows(WebDatasetSource(str(tmp_path), streaming=False))["train"]
    assert sorted(row["caption"][0] for row in rows if row["image"]) == [
        "number 1", "number 2", "number 3",
    ]  # fmt: skip
    assert [row["caption"] for row in rows if row["image"] is None] == [["alone"]]
    assert "2 of 6 rows of train have no caption" in caplog.text
    assert "1 × caption is not text, 1 × no caption, such as 5.txt" in caplog.text


@pytest.mark.parametrize("caption_keys", [["txt", "json"], ["json", "txt"]])
def test_the_caption_is_in_the_first_member_that_has_one(tmp_path, caption_keys):
    members = []
    for n, parts in enumerate([("a", "{}"), (" ", '{"caption": "b"}'), ("nan", "{no")]):
        members += [(f"{n}.jpg", encode_image(n)), (f"{n}.txt", parts[0]), (f"{n}.json", parts[1])]
    for name in ("train", "val"):
        shard(tmp_path / f"{name}.tar", members)
    source = WebDatasetSource(str(tmp_path), caption_keys=caption_keys)
    captions = [row["caption"] for row in source.load()["train"]]
    assert captions[:2] == ["a", "b"]
    assert find_captions(captions[2])[0] == []


def test_the_first_training_shard_decides_the_format(tmp_path):
    shard(tmp_path / "a-test.tar", [("1.jpg", encode_image(1)), ("2.jpg", encode_image(2))])
    for name in ("train", "val"):
        shard(tmp_path / f"{name}.tar", pairs(range(3)))
    splits = WebDatasetSource(str(tmp_path)).load()
    assert read_numbers(splits["train"]) == [0, 1, 2]
    assert [row["caption"] for row in splits["test"]] == [None, None]


def test_a_shard_that_is_named_twice_is_read_once(tmp_path):
    paths = [str(shard(tmp_path / f"{name}.tar", pairs(range(2)))) for name in "ab"]
    assert WebDatasetSource([str(tmp_path), f"{tmp_path}/*.tar", paths[0]]).files() == paths


def test_a_missing_shard_of_a_table_is_an_error(tmp_path):
    shard(tmp_path / "a.tar", pairs(range(3)))
    (tmp_path / "b.tar").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"b\.tar cannot be opened"):
        WebDatasetSource(str(tmp_path), streaming=False).load()
