"""The documentation's pages and help texts: the code in them, and the commands that they name."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HELP = sorted((ROOT / "conf" / "hydra" / "help").glob("*.yaml"))

# A block of code, with the name of its file where that stands in the line before.
BLOCK = re.compile(
    r"^(?:`(?P<file>[^`\n]+)`\n)?(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A block of code: its page, the line it begins in, its language, its file's name if any."""

    page: str
    line: int
    language: str
    file: str | None
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"

    @property
    def commands(self):
        """The commands of a block without a language, as lists of words; comments are none."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def name(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    """All blocks of code of a page, in their order."""
    text = page.read_text()
    return [
        Block(
            page=name(page),
            line=text.count("\n", 0, found.start("text")),
            language=found["language"],
            file=found["file"],
            text=re.sub(f"^{found['indent']}", "", found["text"], flags=re.M),
        )
        for found in BLOCK.finditer(text)
    ]


def named_in_prose(page):
    """The commands that stand in a sentence or a table, as lists of words: `python … key=value`."""
    prose = BLOCK.sub("", page.read_text())
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [shlex.split(span) for span in spans if re.match(r"python |torchrun |make ", span)]


def examples(text):
    """The commands of a help text, as lists of words: what two spaces set apart explains them."""
    lines = re.findall(r"^ +(python .*?)(?: {2,}.*)?$", text.read_text(), re.M)
    return [shlex.split(line) for line in lines]


def links(page):
    """What a page links to or shows that is not on the internet, as (path, anchor)."""
    prose = BLOCK.sub("", page.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'src="([^"]+)"', prose)
    parts = [target.partition("#") for target in targets if not re.match(r"\w+:", target)]
    return [((page.parent / path) if path else page, anchor) for path, _, anchor in parts]


def anchors(page):
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
