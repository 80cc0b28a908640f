"""A module imports only from layers listed before its own."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
# A module imports only from rows above its own; names in one row do not import each other.
LAYERS = (
    {"errors"},
    {"checks", "program"},
    {"configs", "files", "hardware", "text_files"},
    {"conversion", "weight_files"},
    {"efficientnet"},
    {"distributed"},
    {"training"},
    {"data", "dvae", "prior", "ranker"},
    {"runs", "viz"},
    {"metrics"},
    {"reranking"},
    {"pipeline"},
    {"callbacks", "evaluations", "sharing", "playground"},
    {"cli"},
    {"__main__", "scripts"},
)
HEIGHTS = {name: height for height, names in enumerate(LAYERS) for name in names}
# The package itself exports its public names lazily.
EXPORTS = {SRC / "tilewright" / "__init__.py", SRC / "tilewright" / "__init__.pyi"}
FILES = sorted({*SRC.glob("*.py"), *SRC.glob("tilewright/**/*.py*")} - EXPORTS)


def layer(module):
    """Layer of a module, such as `data` of `tilewright.data.rows`."""
    return module.split(".")[1] if module.startswith("tilewright.") else "scripts"


def module_name(path):
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path):
    """Absolute names of the project's modules that a file imports, also inside functions."""
    package = list(path.parent.relative_to(SRC).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*relative, node.module] if node.module else relative)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("tilewright."))


def violations(path):
    importer = module_name(path)
    own = layer(importer)
    for imported in imported_modules(path):
        target = layer(imported)
        if target != own and HEIGHTS[target] >= HEIGHTS[own]:
            yield f"{importer} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_one_way(path):
    assert not list(violations(path))


def test_every_package_has_a_layer():
    assert {layer(module_name(path)) for path in FILES} == HEIGHTS.keys()


def test_an_import_of_a_higher_layer_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SRC", tmp_path)
    path = tmp_path / "tilewright" / "data" / "rows.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from tilewright import cli\n"
        "from tilewright.errors import UserError\n"
        "from .order import order\n"
        "def load():\n"
        "    from ..runs import find\n"
    )
    assert list(violations(path)) == [
        "tilewright.data.rows imports tilewright.cli",
        "tilewright.data.rows imports tilewright.runs.find",
    ]


@pytest.mark.parametrize("package", ["dvae", "prior", "ranker"])
def test_networks_need_neither_lightning_nor_hydra(package):
    for path in (SRC / "tilewright" / package).rglob("*.py"):
        if path.name == "module.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] not in ("pytorch_lightning", "hydra", "omegaconf"), (
                    path
                )
