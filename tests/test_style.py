"""The wording rules that a machine can check: openings, spelling, and error messages."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = sorted(
    path for top in ("src", "tests", "benchmarks") for path in ROOT.glob(f"{top}/**/*.py")
)
CONFIGS = sorted((ROOT / "conf").glob("**/*.yaml"))
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *(ROOT / name / "README.md" for name in ("benchmarks", "data", "logs")),
    ]
)
OPENING = re.compile(r"(What|How|Where|Which|Whether|Who|Whose|Of)\b")
SENTENCE_WITH_OF = re.compile(r"(?:^|[.!?]\s+)Of\s")
NEGATION = re.compile(r"(?<!here) (?:is|are|was|were) no (?!longer\b)")
# The split of shapes depends on the text "colour=".
BRITISH = re.compile(
    r"colour(?!=\")|grey|behaviour|favour|neighbour|honour|flavour|artefact|licence|centre|catalogue"
    r"|(?:optim|quant|normal|initial|regular|serial|token|visual|organ|recogn|summar|util|random"
    r"|memor|real|special|general|vector|binar|parallel|synchron|minim|maxim|penal|character)"
    r"is(?:e|ed|er|ers|es|ing|ation|ations)\b"
    r"|analys(?:e|ed|es|ing)\b|modell(?:ed|ing)|labell(?:ed|ing)|cancell(?:ed|ing)",
    re.IGNORECASE,
)


def name(path):
    return path.relative_to(ROOT).as_posix()


def docstrings(tree):
    """Docstrings of a module and of everything in it, as (line, text)."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def python_comments(source):
    """Comments of Python as (line, text)."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return joined(
        (token.start[0], token.string.lstrip("#! "), token.line.lstrip().startswith("#"))
        for token in comments
    )


def config_comments(path):
    """Comments of a config as (line, text)."""
    lines = enumerate(path.read_text().splitlines(), 1)
    parts = ((number, *line.partition("#")) for number, line in lines)
    return joined(
        (number, comment.strip(), not before.strip())
        for number, before, mark, comment in parts
        if mark and not comment.startswith(" @package")
    )


def joined(comments):
    """Joins comments on consecutive lines, given as (line, text, has a line of its own)."""
    blocks, last = [], 0
    for line, text, has_own_line in comments:
        if blocks and has_own_line and line == last + 1:
            blocks[-1] = (blocks[-1][0], f"{blocks[-1][1]} {text}")
        else:
            blocks.append((line, text))
        last = line
    return blocks


def error_messages(tree):
    """String constants in `raise` statements and `sys.exit` calls, as (line, text)."""
    for node in ast.walk(tree):
        is_exit = isinstance(node, ast.Call) and ast.unparse(node.func) == "sys.exit"
        if isinstance(node, ast.Raise) or is_exit:
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value


def prose(path):
    """Paragraphs of a page without its code, as (line, text)."""
    code = re.compile(r"```.*?```", re.S)
    text = code.sub(lambda block: "\n" * block[0].count("\n"), path.read_text())
    line = 1
    for paragraph in re.split(r"(\n\s*\n|\n(?=\s*[-*|#]))", text):
        yield line, " ".join(re.sub(r"`[^`]*`", "CODE", paragraph).lstrip(" -*#").split())
        line += paragraph.count("\n")


def report(path, findings):
    return [f"{name(path)}:{line}: {text}" for line, text in findings]


def python_findings(path):
    source = path.read_text()
    tree = ast.parse(source)
    written = list(docstrings(tree))
    for line, text in written:
        if match := OPENING.match(text):
            yield line, f"docstring opens with {match[1]}"
    for line, text in [*written, *python_comments(source)]:
        if SENTENCE_WITH_OF.search(text):
            yield line, "sentence opens with Of"
    for line, text in error_messages(tree):
        if match := NEGATION.search(text):
            yield line, f"error message says {match[0]!r}: write 'is not'"
    if path != Path(__file__):
        for line, text in enumerate(source.splitlines(), 1):
            if match := BRITISH.search(text):
                yield line, f"British spelling: {match[0]}"


def text_findings(paragraphs):
    for line, text in paragraphs:
        if SENTENCE_WITH_OF.search(text):
            yield line, "sentence opens with Of"
        if match := BRITISH.search(text):
            yield line, f"British spelling: {match[0]}"


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_wording_of_python_files(path):
    assert not report(path, python_findings(path))


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_wording_of_configs(path):
    assert not report(path, text_findings(config_comments(path)))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_wording_of_pages(path):
    assert not report(path, text_findings(prose(path)))


BAD_PYTHON = """# A comment that is fine.
# Of two lines, this is the second.
def size(colour):
    'How large it is.'
    raise ValueError(f"{colour} is no size")
"""


def test_every_rule_finds_its_violation(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(BAD_PYTHON)
    assert [text for _, text in python_findings(path)] == [
        "docstring opens with How",
        "sentence opens with Of",
        "error message says ' is no ': write 'is not'",
        "British spelling: colour",
        "British spelling: colour",
    ]
    page = tmp_path / "page.md"
    page.write_text("One `of` these.\n\nOf two, the\nbehaviour.\n\n```\ncolour\n```\n")
    assert list(text_findings(prose(page))) == [
        (3, "sentence opens with Of"),
        (3, "British spelling: behaviour"),
    ]
