"""Code blocks, commands and links of the documentation's pages and help texts."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
HELP = sorted((ROOT / "conf" / "hydra" / "help").glob("*.yaml"))

# A code block, with the name of its file if the line before has one.
BLOCK = re.compile(
    r"^(?:`(?P<file>[^`\n]+)`\n)?(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A code block.

    Args:
        page: path of the page.
        line: line at which the block begins.
        language: empty for commands.
        file: name of the file that the block shows, if any.
    """

    page: str
    line: int
    language: str
    file: str | None
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"

    @property
    def commands(self):
        """The commands of a block without a language, as lists of words, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def name(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    """Returns the code blocks of a page in order."""
    text = page.read_text()
    return [
        Block(
            page=name(page),
            line=text.count("\n", 0, match.start("text")),
            language=match["language"],
            file=match["file"],
            text=re.sub(f"^{match['indent']}", "", match["text"], flags=re.M),
        )
        for match in BLOCK.finditer(text)
    ]


def named_in_prose(page):
    """Returns the commands in sentences and tables (`python … key=value`), as lists of words."""
    prose = BLOCK.sub("", page.read_text())
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [shlex.split(span) for span in spans if re.match(r"python |torchrun |make ", span)]


def examples(text):
    """Returns the commands of a help text as lists of words; two spaces begin an explanation."""
    lines = re.findall(r"^ +(python .*?)(?: {2,}.*)?$", text.read_text(), re.M)
    return [shlex.split(line) for line in lines]


def links(page):
    """Returns the links and images of a page that are in the repository, as (path, anchor)."""
    prose = BLOCK.sub("", page.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'src="([^"]+)"', prose)
    parts = [target.partition("#") for target in targets if not re.match(r"\w+:", target)]
    return [((page.parent / path) if path else page, anchor) for path, _, anchor in parts]


def anchors(page):
    """Returns the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
