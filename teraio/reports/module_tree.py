"""Memory at the peak, by module, as a tree.

In: a Trace. Out: nested Nodes, and their rendering. Must not know: files, plans.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree

from teraio.records import Trace
from teraio.reports.memory import alive, kind_name, memory_by_kind, module_of
from teraio.reports.table import bar
from teraio.reports.units import format_size, share

_NARROW = 12


@dataclass(slots=True)
class Node:
    """One module: bytes of its own storages and of the modules inside, by kind."""

    name: str
    nbytes: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, kind: str, nbytes: int) -> None:
        """Counts a storage here."""
        self.nbytes += nbytes
        self.by_kind[kind] = self.by_kind.get(kind, 0) + nbytes


def module_tree(trace: Trace) -> Node:
    """The storages alive at the peak, by the path of their module."""
    peak_op = int(memory_by_kind(trace).sum(axis=0).argmax())
    root = Node("all modules")
    for storage in trace.storages:
        if not alive(storage, peak_op):
            continue
        node = root
        node.add(storage.kind, storage.nbytes)
        module = module_of(storage)
        for part in module.split(".") if module else ():
            node = node.children.setdefault(part, Node(part))
            node.add(storage.kind, storage.nbytes)
    return root


def tree_text(root: Node, depth: int | None) -> RenderableType:
    """The tree down to ``depth`` levels (None: all), with sizes, shares and kinds."""
    tree = Tree(_line(root, root.nbytes))
    _grow(tree, root, root.nbytes, depth)
    return tree


def _grow(tree: Tree, node: Node, whole: int, depth: int | None) -> None:
    if depth == 0:
        return
    for child in node.children.values():
        _grow(tree.add(_line(child, whole)), child, whole, depth if depth is None else depth - 1)


def _line(node: Node, whole: int) -> Text:
    kinds = sorted(node.by_kind.items(), key=lambda item: -item[1])
    return Text.assemble(
        (f"{node.name}  ", "bold"),
        f"{format_size(node.nbytes)}  {share(node.nbytes, whole)}  ",
        (bar(node.nbytes, whole, _NARROW) + "  ", "cyan"),
        (", ".join(f"{kind_name(kind)} {format_size(nbytes)}" for kind, nbytes in kinds), "dim"),
    )
