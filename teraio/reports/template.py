"""Pages made from a template and parts.

In: texts. Out: text. Must not know: what is on a page.
"""

from __future__ import annotations

from collections.abc import Mapping


def filled(template: str, parts: Mapping[str, str]) -> str:
    """``template`` with each ``{{name}}`` replaced, in one pass: no part is taken for a mark."""
    head, *rest = template.split("{{")
    text = [head]
    for piece in rest:
        name, _, after = piece.partition("}}")
        text += [parts[name], after]
    return "".join(text)
