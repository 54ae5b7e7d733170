"""The project's texts speak of the product: what it does and why, not of how they came to be.

In: the text of all files. Out: a failure with file and line for each passage.
"""

from __future__ import annotations

import re

from tests.policy.source import ROOT, product_texts

NOT_ABOUT_THE_PRODUCT = re.compile(
    r"(?<![\w-])issue #?\d|\bin this session\b|\bthis session\b|\bTODO\b|\bFIXME\b|\bXXX\b"
    r"|\bas (?:requested|instructed)\b|/work/",
    re.IGNORECASE,
)


def test_texts_speak_of_the_product_alone() -> None:
    passages = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in product_texts()
        if path.name != "test_texts.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if NOT_ABOUT_THE_PRODUCT.search(line)
    ]
    assert passages == []


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
    broken = [
        f"{path.relative_to(ROOT)} -> {target}"
        for path in product_texts()
        if path.suffix == ".md"
        for target in link.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert broken == []
