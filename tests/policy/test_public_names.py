"""The public names: a change of this list is a change for users.

In: the package as users see it. Out: a failure if a name comes, goes or cannot be loaded.
"""

from __future__ import annotations

import ast
import tomllib

import pytest

import teraio
from tests.policy.source import PACKAGE, ROOT, syntax_tree

PUBLIC = {
    "BudgetError",
    "ConfigurationError",
    "FileFormatError",
    "Hardware",
    "Plan",
    "PlanError",
    "RunReport",
    "SpillError",
    "StepReport",
    "TeraioError",
    "Trace",
    "__version__",
    "iteration",
    "offload",
    "profile",
    "report",
    "resident",
    "restore",
}


def test_the_public_names_are_these() -> None:
    assert set(teraio.__all__) == PUBLIC
    assert set(dir(teraio)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_can_be_loaded_and_has_a_docstring(name: str) -> None:
    value = getattr(teraio, name)
    assert name == "__version__" or value.__doc__


def test_an_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'onload'"):
        _ = teraio.onload  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names_as_the_interpreter() -> None:
    tree = syntax_tree(PACKAGE / "__init__.py")
    seen = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("teraio.")
        for alias in node.names
    }
    assert seen == PUBLIC - {"__version__"}


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert teraio.__version__ == project["version"]


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()
