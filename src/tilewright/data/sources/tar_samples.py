"""Pairs of an image and a caption among the members of a tar file."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.data.captions import caption_value, find_captions
from tilewright.data.sources.listing import is_hidden
from tilewright.data.sources.tar_members import BROKEN_SHARD
from tilewright.data.sources.text_captions import split_captions
from tilewright.text_files import decode_legacy, decode_unicode


@dataclass(frozen=True)
class Sample:
    """Members that share a name.

    Attributes:
        name: path in the tar file without the ending.
        parts: contents by ending.
    """

    name: str
    parts: dict[str, bytes]


@dataclass(frozen=True)
class PairFormat:
    """Endings of the members of a pair, and how captions are stored.

    Attributes:
        image_keys, caption_keys: endings in order of preference. Without caption_keys, images have
            no captions.
        caption_fields: fields of a .json that may hold the caption, in order of preference.
        encoding: encoding of captions that are not Unicode. None if it is unknown.
        per_line: True if each line of a text is a caption.
    """

    image_keys: Sequence[str]
    caption_keys: Sequence[str]
    caption_fields: Sequence[str]
    encoding: str | None = None
    per_line: bool = False

    def image(self, sample: Sample) -> bytes | None:
        """Returns the encoded image of a sample, or None."""
        return next((sample.parts[key] for key in self.image_keys if key in sample.parts), None)

    def caption_key(self, sample: Sample) -> str | None:
        """Returns the ending of the first member with a caption, else of the first, or None."""
        keys = [key for key in self.caption_keys if key in sample.parts]
        usable = (key for key in keys if find_captions(self._read_caption(key, sample))[0])
        return keys[0] if len(keys) == 1 else next(usable, next(iter(keys), None))

    def is_pair(self, sample: Sample) -> bool:
        """Returns True if a sample has an image and, with `caption_keys`, a caption."""
        is_captioned = not self.caption_keys or any(
            key in sample.parts for key in self.caption_keys
        )
        return is_captioned and self.image(sample) is not None

    def caption(self, sample: Sample) -> Any:
        """Returns the caption of a sample as stored, which may not be text."""
        key = self.caption_key(sample)
        return None if key is None else self._read_caption(key, sample)

    def _read_caption(self, key: str, sample: Sample) -> Any:
        content = sample.parts[key]
        text = decode_unicode(content)
        if text is None and self.encoding:
            text = decode_legacy(content, self.encoding)
        if text is None:
            return content
        if is_json(key):
            return _parse_json(text, self.caption_fields)
        captions = split_captions(text, self.per_line)
        return captions if len(captions) > 1 else "".join(captions)


def is_json(key: str) -> bool:
    """Returns True if members with this ending are JSON."""
    return key.rpartition(".")[2] == "json"


def split_name(path: str, keys: Iterable[str]) -> tuple[str, str, bool]:
    """Splits the path of a member into (name, ending, True if the ending is one of the keys).

    The ending begins at the first dot after which it is a key: `a/cat.v2.JPG` is `a/cat.v2` and
    `jpg`. Without such a dot, it begins at the first dot, as in webdataset.
    """
    folder, slash, file = path.rpartition("/")
    words = file.split(".")
    for count in range(1, len(words)):
        ending = ".".join(words[count:]).lower()
        if ending in keys:
            return folder + slash + ".".join(words[:count]), ending, True
    return folder + slash + words[0], ".".join(words[1:]).lower(), False


def read_samples(
    members: Iterable[tuple[str, Any]], pair_format: PairFormat, unread: Counter[str] | None = None
) -> Iterator[Sample]:
    """Yields the samples among consecutive members of a tar file.

    Names may have dots: `cat.v2.jpg` is the image of the sample `cat.v2`. Without a caption
    `cat.v2.txt`, but beside a sample `cat`, it is an unread member of `cat`. A sample that consists
    of unread members is yielded without parts, so that it counts as a row. Hidden members are left
    out, as in a folder.

    Args:
        members: paths and open files.
        unread: counts members that are not read, by ending, or as "hidden".

    Raises:
        one of BROKEN_SHARD: the members cannot be read to the end. All complete pairs are yielded.
    """
    keys = {*pair_format.image_keys, *pair_format.caption_keys}
    unread = Counter() if unread is None else unread
    samples: list[Sample] = []  # stack: the name of each sample begins with the previous name
    unread_name: str | None = None  # of a sample that has only unread members so far

    def close(following: str | None) -> Iterator[Sample]:
        while samples and not (following and _is_within(following, samples[-1].name)):
            sample = samples.pop()
            parent = samples[-1].name if samples else following
            if pair_format.is_pair(sample) or not (parent and _is_within(sample.name, parent)):
                yield sample
            else:
                part = sample.name[len(parent) + 1 :]
                unread.update(f"{part}.{ending}" for ending in sample.parts)

    broken: list[Exception] = []

    def contents() -> Iterator[tuple[str, str, bytes | None]]:
        try:
            for path, content in members:
                if _is_hidden(path):
                    unread["hidden"] += 1
                    continue
                name, ending, is_read = split_name(path, keys)
                yield name, ending, content.read() if is_read else None
        except BROKEN_SHARD as error:
            broken.append(error)

    for name, ending, data in contents():
        is_read = data is not None
        if not is_read:
            unread[ending] += 1
            if any(_is_within(sample.name, name) for sample in samples) or name == unread_name:
                continue
        if unread_name is not None and not (is_read and _is_within(name, unread_name)):
            yield Sample(unread_name, {})
        unread_name = None if is_read else name
        if data is None:
            continue
        yield from close(name)
        if not samples or samples[-1].name != name:
            samples.append(Sample(name, {}))
        samples[-1].parts.setdefault(ending, data)
    if unread_name is not None:
        yield Sample(unread_name, {})
    yield from (sample for sample in close(None) if not broken or pair_format.is_pair(sample))
    if broken:
        raise broken[0]


def _is_hidden(path: str) -> bool:
    """Returns True for a hidden member, one in a hidden or system folder, and `__key__`."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return any(map(is_hidden, parts)) or (bool(parts) and parts[-1].startswith("__"))


def _is_within(name: str, other: str) -> bool:
    """Returns True if `name` is `other`, or `other` followed by a dot and more."""
    return name == other or name.startswith(other + ".")


def _parse_json(text: str, fields: Sequence[str]) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}  # not text, and counted as such
    return caption_value(value, fields) if isinstance(value, dict) else {}
