"""Reading of text files and tables in any encoding, with any separator."""

import csv
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from charset_normalizer import from_bytes

from tilewright.errors import UserError

log = logging.getLogger(__name__)

RECORD_SUFFIXES = (".jsonl", ".csv", ".tsv")

# UTF-32 first, because its little-endian mark begins with that of UTF-16.
BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
WESTERN = "cp1252"
OTHER_ENCODINGS = (
    *("cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp874"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949"),
)
WESTERN_SIGNS = "‘’“”„–—…•€£§©®°«»¿¡ªº·™´×½¼¾¹²³±µ"
NON_ASCII = re.compile(rb"[\x80-\xff]+")
SIGN_IN_WORD = re.compile(r"(?<=[^\W\d_])[¿¡ªº×½¼¾£§¹²³±µ](?=[^\W\d_])")
HALF_WIDTH_KATAKANA = re.compile("[\uff61-\uff9f]")  # other scripts, when read as Japanese
CONTROL = re.compile(r"[\x00-\x08\x0e-\x19\x1c-\x1f\x7f-\x9f]")
SAMPLE_BYTES = 1 << 16  # maximum length of the text that an encoding is guessed from

SEPARATORS = ",\t;|"
NO_SEPARATOR = "\0"  # for a file of one column, whose values may contain any separator


def is_unicode(text: str) -> bool:
    """Returns True if a string has no surrogates, so that it can be encoded as UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def decode_unicode(data: bytes) -> str | None:
    """Decodes UTF-8, UTF-16 or UTF-32 with or without a mark. Returns None for other bytes."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _decode(data, encoding)
    zeros = data.count(0)
    if zeros and (4 * zeros >= len(data) or _decode(data, "utf-8") is None):
        # UTF-16 without a mark: Latin letters and spaces have a zero in one half of each pair.
        encoding = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
        text = _decode(data, encoding)
        return None if text is None or CONTROL.search(text) else text
    return None if zeros else _decode(data, "utf-8")


def guess_encoding(texts: Iterable[bytes]) -> str | None:
    """Guesses the encoding of texts that are not Unicode. Returns None if they are not text.

    All texts must have the same encoding. More text makes a better guess.
    """
    lines = (
        line
        for text in texts
        if not _is_broken_unicode(text)
        for line in text.splitlines()
        if not line.isascii()
    )
    sample = bytearray()
    for line in lines:
        if len(sample) + len(line) > SAMPLE_BYTES and sample:
            break
        sample += line + b"\n"
    data = bytes(sample)
    if not data:
        return None
    if _is_western(data):
        return WESTERN
    for match in from_bytes(data, cp_isolation=list(OTHER_ENCODINGS), threshold=0.5):
        text = decode_legacy(data, match.encoding)
        if text is not None and not HALF_WIDTH_KATAKANA.search(text):
            return match.encoding
    return None


def decode_legacy(data: bytes, encoding: str) -> str | None:
    """Decodes bytes that are not Unicode. Returns None if the encoding does not fit."""
    text = None if _is_broken_unicode(data) else _decode(data, encoding)
    return None if text is None or CONTROL.search(text) else text


def check_encoding(encoding: str | None) -> None:
    """Raises a UserError if a value of data.source.encoding is not a text encoding."""
    try:
        "".encode(encoding or "utf-8")
    except LookupError as error:
        raise UserError(
            f"data.source.encoding={encoding} is not an encoding: set it to one such as cp1252, "
            "or to null"
        ) from error


def non_ascii_example(text: str) -> str:
    """Returns the first line that is not ASCII, for a message, with at most 60 characters."""
    line = next((line for line in split_lines(text) if not line.isascii()), text).strip()
    return repr(line if len(line) <= 60 else f"{line[:59]}…")


def decode_text(
    data: bytes, name: str, encoding: str | None = None, remedy: str = "save it as UTF-8"
) -> str:
    """Decodes text of any encoding. Logs the encoding, with an example, if it is a guess.

    Args:
        name: name of the file, for messages.
        encoding: encoding of text that is not Unicode. None guesses it.
        remedy: advice for a wrong guess.

    Raises:
        UserError: the bytes are not text.
    """
    text = decode_unicode(data)
    if text is not None:
        return text
    is_guess = encoding is None
    encoding = encoding or guess_encoding([data])
    text = decode_legacy(data, encoding) if encoding else None
    if text is None and not is_guess:
        raise UserError(f"{name} is not {encoding} text: correct data.source.encoding")
    if text is None:
        if _is_damaged_utf8(data):
            line = data[: _first_invalid_byte(data)].count(b"\n") + 1
            raise UserError(f"{name}, line {line} is not valid UTF-8: correct or remove the line")
        raise UserError(f"{name} is not text in any known encoding: save it as UTF-8")
    if not is_guess:
        return text
    log.warning(
        "%s is not UTF-8 and is read as %s, which gives %s: if that is wrong, %s",
        name, encoding, non_ascii_example(text), remedy,
    )  # fmt: skip
    return text


def decode_texts(contents: Mapping[Path, bytes], encoding: str | None = None) -> dict[Path, str]:
    """Decodes files that were written together. Files that are not text are left out.

    One line of the log counts the files whose encoding is a guess.

    Args:
        encoding: encoding of files that are not Unicode. None guesses it from all of them.
    """
    texts = {file: decode_unicode(data) for file, data in contents.items()}
    others = {file: contents[file] for file, text in texts.items() if text is None}
    is_guess = encoding is None
    if is_guess and others:
        encoding = guess_encoding(others.values())
    if encoding:
        texts |= {file: decode_legacy(data, encoding) for file, data in others.items()}
        decoded = {file: text for file in others if (text := texts[file]) is not None}
        if decoded and is_guess:
            file, text = next(iter(decoded.items()))
            log.warning(
                "%d of %d text files are not UTF-8 and are read as %s, such as %s (%s): if that is "
                "wrong, set data.source.encoding",
                len(decoded), len(contents), encoding, file, non_ascii_example(text),
            )  # fmt: skip
    return {file: text for file, text in texts.items() if text is not None}


def read_text(path: Path, **options: Any) -> str:
    """Reads a text file of any encoding. See `decode_text` for the options.

    Raises:
        UserError: the file cannot be read or is not text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from error
    return decode_text(data, str(path), **options)


def split_lines(text: str) -> list[str]:
    """Splits text at line breaks. `str.splitlines` also splits at rarer ones such as U+2028."""
    return re.split(r"\r\n|\r|\n", text)


def read_records(path: Path, **options: Any) -> Iterator[dict[str, Any]]:
    """Yields the records of a .jsonl, .csv or .tsv file of any encoding.

    See `parse_records`, and `decode_text` for the options.
    """
    return parse_records(read_text(path, **options), path.suffix.lower(), str(path))


def parse_records(text: str, suffix: str, name: str) -> Iterator[dict[str, Any]]:
    """Yields the records of a .jsonl, .csv or .tsv file.

    The first line of a table names its columns and determines the separator: a comma, tab,
    semicolon or `|`. A missing value is None.

    Args:
        suffix: ending of the file, one of `RECORD_SUFFIXES`.
        name: name of the file, for messages.

    Raises:
        UserError: a line is malformed.
    """
    return _parse_json_lines(text, name) if suffix == ".jsonl" else _parse_table(text, suffix, name)


def require_column(existing: Iterable[str], choices: Sequence[str], name: str, remedy: str) -> None:
    """Checks that a table has one of several columns.

    Args:
        existing: columns of the table. Repeated names count once.
        choices: names of the column, one of which is enough.
        name: name of the table, for the message.
        remedy: advice at the end of the message.

    Raises:
        UserError: it has none of them.
    """
    existing = dict.fromkeys(existing)
    if not any(choice in existing for choice in choices):
        raise UserError(
            f"{name} has no column {' or '.join(map(repr, choices))}, only "
            f"{', '.join(existing) or 'none'}: {remedy}"
        )


def _parse_json_lines(text: str, name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{name}, line {number} is not a JSON object: fix or remove it")
        yield record


def _parse_table(text: str, suffix: str, name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table.

    `csv.Sniffer` is not used, because it mistakes letters or commas in captions for separators.
    """
    if declared := re.match(r"sep=(.)(\r\n|\r|\n)", text):  # first line of a table for Excel
        text, separator = text[declared.end(1) :], declared[1]
    else:
        choices = sorted(SEPARATORS, key=lambda choice: suffix == ".tsv" and choice != "\t")
        separator = max(choices, key=lambda choice: len(_header(text, choice)))
    header = [column.strip() for column in _header(text, separator)]
    if len(header) == 1:
        separator = NO_SEPARATOR
    for column in header:
        if column and header.count(column) > 1:
            raise UserError(f"{name} has two columns {column!r}: rename one of them")
    for number, values in list(_rows(text, separator, name))[1:]:
        if any(values[len(header) :]):
            raise UserError(
                f"{name}, line {number} has {len(values)} values for {len(header)} columns: put "
                f"double quotes around a value that contains {separator!r}"
            )
        if any(values):
            yield dict(zip(header, values + [None] * (len(header) - len(values)), strict=False))


def _header(text: str, separator: str) -> list[str]:
    try:
        return next((row for row in _reader(text, separator) if row), [])
    except csv.Error:
        return []


def _rows(text: str, separator: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yields rows with the number of their last line."""
    if separator == "\t":
        try:
            rows = list(_numbered(_reader(text, separator)))
        except csv.Error:  # written without quoting: quotes are part of the captions
            rows = list(_numbered(_reader(text, separator, quoting=csv.QUOTE_NONE)))
        yield from rows
        return
    reader = _reader(text, separator)
    try:
        yield from _numbered(reader)
    except csv.Error as error:
        raise UserError(
            f"{name}, line {reader.line_num} is malformed ({error}): close its quotes, and double "
            'the quotes inside a quoted value ("")'
        ) from error


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    return ((reader.line_num, row) for row in reader if row)


def _reader(text: str, separator: str, quoting: Any = csv.QUOTE_MINIMAL) -> Any:
    lines = io.StringIO(text, newline="")
    return csv.reader(
        lines, delimiter=separator, skipinitialspace=True, strict=True, quoting=quoting
    )


def _decode(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except ValueError:
        return None


def _first_invalid_byte(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def _is_broken_unicode(data: bytes) -> bool:
    """Returns True for damaged Unicode, which other encodings would misread."""
    marks = tuple(mark for mark, _ in BYTE_ORDER_MARKS)
    return b"\0" in data or data.startswith(marks) or _is_damaged_utf8(data)


def _is_damaged_utf8(data: bytes) -> bool:
    """Returns True for UTF-8 with some invalid bytes."""
    text = data.decode(errors="replace")
    invalid = text.count("\ufffd")
    return sum(letter > "\x7f" for letter in text) > 2 * invalid


def _is_western(data: bytes) -> bool:
    """Returns True if bytes make sense as Western European text.

    charset-normalizer needs long texts to prefer cp1252 over its relatives.
    """
    text = _decode(data, WESTERN)
    if text is None or SIGN_IN_WORD.search(text):
        return False
    if any(letter > "\x7f" and not _is_western_letter(letter) for letter in text):
        return False
    runs = NON_ASCII.findall(data)
    return sum(len(run) > 2 for run in runs) * 10 <= len(runs)  # other scripts have longer runs


def _is_western_letter(letter: str) -> bool:
    return letter in WESTERN_SIGNS or letter in "ŒœŠšŽžŸ" or ("À" <= letter <= "ÿ")
