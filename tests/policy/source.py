"""The project's own files and what each Python module imports.

In: the repository. Out: paths, syntax trees, imported names. Must not know: what the rules are.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "teraio"
TEXT_SUFFIXES = {".py", ".cpp", ".h", ".md", ".toml", ".pyi"}


def package_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def product_texts() -> list[Path]:
    """Everything that a user of the project reads: code, native code, documents."""
    folders = [PACKAGE, ROOT / "csrc", ROOT / "docs", ROOT / "benchmarks", ROOT / "tests"]
    nested = [path for folder in folders for path in folder.rglob("*")]
    top = [*ROOT.glob("*.md"), *ROOT.glob("*.py"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    return sorted(
        path
        for path in (*nested, *top)
        if path.is_file() and (path.suffix in TEXT_SUFFIXES or path.name == "Makefile")
    )


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, at its top or inside functions.

    ``from a.b import c`` gives both ``a.b`` and ``a.b.c``, since ``c`` may be a module.
    """
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute_base(node, path)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _absolute_base(node: ast.ImportFrom, path: Path) -> str:
    if node.level == 0:
        return node.module or ""
    package = path.relative_to(ROOT).parent.parts
    parent = package[: len(package) - (node.level - 1)]
    return ".".join((*parent, *([node.module] if node.module else [])))
