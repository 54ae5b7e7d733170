"""Who may import whom. The stages meet in the records, so none of them needs another's code.

In: the syntax trees of teraio/. Out: a failure for each import that crosses a layer.
"""

from __future__ import annotations

import ast

import pytest

from tests.policy.source import imported_modules, module_name, package_files, syntax_tree

# Module or package -> what it must not import, each with everything below it.
FORBIDDEN = {
    "teraio.records": ("teraio", "torch", "numpy"),
    "teraio.errors": ("teraio", "torch", "numpy"),
    "teraio.files": (
        "torch",
        "teraio._C",
        "teraio.api",
        "teraio.engine",
        "teraio.planner",
        "teraio.profiler",
        "teraio.reports",
        "teraio.runtime",
    ),
    "teraio.files.document": ("teraio.records",),
    "teraio.files.fields": ("teraio.records",),
    "teraio.planner": (
        "torch",
        "teraio._C",
        "teraio.api",
        "teraio.engine",
        "teraio.files",
        "teraio.profiler",
        "teraio.reports",
        "teraio.runtime",
        "teraio.whatif",
    ),
    "teraio.cli": ("torch", "teraio._C", "teraio.runtime", "teraio.watch"),
    "teraio.status": ("torch", "teraio._C", "teraio.planner", "teraio.reports", "teraio.runtime"),
    "teraio.telemetry": (
        "torch",
        "teraio._C",
        "teraio.api",
        "teraio.engine",
        "teraio.planner",
        "teraio.reports",
        "teraio.runtime",
    ),
    "teraio.doctor": ("teraio.api", "teraio.cli", "teraio.planner", "teraio.runtime"),
    "teraio.reports": (
        "teraio.cli",
        "torch",
        "teraio._C",
        "teraio.api",
        "teraio.engine",
        "teraio.profiler",
        "teraio.runtime",
    ),
    "teraio.engine": ("teraio.api", "teraio.planner", "teraio.profiler", "teraio.runtime"),
    "teraio.kernels": (
        "teraio._C",
        "teraio.api",
        "teraio.cli",
        "teraio.engine",
        "teraio.files",
        "teraio.planner",
        "teraio.profiler",
        "teraio.records",
        "teraio.reports",
        "teraio.runtime",
        "teraio.watch",
        "teraio.whatif",
    ),
    "teraio.kernels.layout": ("torch", "triton"),
    "teraio.kernels.codecs": ("torch", "triton"),
    "teraio.kernels.lossy_format": ("torch", "triton"),
    "teraio.kernels.with_torch": ("triton", "teraio.kernels.with_triton"),
    "teraio.kernels.with_triton": ("teraio.kernels.with_torch",),
    "teraio.profiler": ("teraio.api", "teraio.planner", "teraio.runtime"),
    "teraio.runtime": ("teraio.api", "teraio.watch", "teraio.whatif"),
    "teraio.runtime.resources": ("teraio.planner",),
    "teraio.runtime.steps": ("torch", "teraio._C", "teraio.planner"),
    "teraio.watch": ("teraio.api", "teraio.planner", "teraio.files"),
    "teraio.whatif": ("teraio.api", "teraio.planner", "teraio.reports", "teraio.runtime"),
    "teraio.whatif.presets": ("torch", "teraio._C", "teraio.engine", "teraio.profiler"),
    "teraio.whatif.costs": ("torch", "teraio._C", "teraio.engine", "teraio.profiler"),
    "teraio.whatif.configurations": ("torch", "teraio._C", "teraio.engine", "teraio.profiler"),
}


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_a_layer_imports_nothing_it_must_not_know(layer: str) -> None:
    crossings = [
        f"{module_name(path)} imports {name}"
        for path in package_files()
        if _inside(module_name(path), layer)
        for name in imported_modules(path)
        for forbidden in FORBIDDEN[layer]
        if _inside(name, forbidden) and not _inside(name, layer)
    ]
    assert crossings == []


def test_library_code_has_no_assert_statement() -> None:
    """They vanish under ``python -O``; a failed check is an exception of teraio.errors."""
    asserts = [
        f"{module_name(path)}:{node.lineno}"
        for path in package_files()
        for node in ast.walk(syntax_tree(path))
        if isinstance(node, ast.Assert)
    ]
    assert asserts == []


def test_library_code_does_not_print() -> None:
    """It logs, or its reports go to a console that the caller hands in."""
    prints = [
        f"{module_name(path)}:{node.lineno}"
        for path in package_files()
        if not _inside(module_name(path), "teraio.cli")
        for node in ast.walk(syntax_tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert prints == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        module_name(path)
        for path in package_files()
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(syntax_tree(path))
    ]
    assert silent == []
