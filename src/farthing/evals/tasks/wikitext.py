"""WikiText (Merity et al. 2016) by the word: articles read as plain text, words counted as they stand in the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from farthing.evals.perplexity import Document
from farthing.evals.tasks.records import HubSet
from farthing.evals.tasks.task import TextTask

_PLAIN: tuple[tuple[str, str], ...] = (
    # Contractions, and marks inside numbers and compounds.
    (r"s '", "s'"), (r"/' [0-9]/", r"/'[0-9]/"), (r" @-@ ", "-"), (r" @,@ ", ","), (r" @\.@ ", "."),
    # Punctuation.
    (r" : ", ": "), (r" ; ", "; "), (r" \. ", ". "), (r" ! ", "! "), (r" \? ", "? "), (r" , ", ", "),
    # Pairs of brackets and quotes.
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]"), (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'), (r"'\s*([^']*?)\s*'", r"'\1'"),
    # Titles, degrees, ends of lines, numbers left out, possessives.
    (r"= = = =", "===="), (r"= = =", "==="), (r"= =", "=="), (r" ° ", "°"), (r" \n", "\n"), (r"\n ", "\n"),
    (r" N ", " 1 "), (r" 's", "'s"),
)  # fmt: skip
"""What makes WikiText's tokens plain text again, in order: the function of lm-evaluation-harness's wikitext 2.0, oddities
included (its second rule never meets a text), so that both read the same."""


def plain(page: str) -> str:
    """A page as people write it: no marks inside numbers, no spaces before punctuation."""
    for pattern, replacement in _PLAIN:
        page = re.sub(pattern, replacement, page)
    return page


def _document(page: str) -> Document:
    return Document(
        text=plain(page),
        # White space at the start and end of a page counts as a word each, as in lm-evaluation-harness.
        words=len(re.split(r"\s+", page)),
        bytes=len(page.encode()),
        words_and_line_ends=_words_and_line_ends(page),
    )


def _words_and_line_ends(text: str) -> int:
    return sum(len(line.split()) + 1 for line in text.removesuffix("\n").split("\n"))


def pages(text: str) -> list[str]:
    """The articles of a file, each from its title on, cut as in EleutherAI/wikitext_document_level."""
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if _is_title(line.strip()):
            found.append([])
        found[-1].append(line)
    return [page for lines in found if (page := "\n".join(lines)).strip()]


def _is_title(line: str) -> bool:
    # The titles of an article's sections have more of these signs.
    return line.startswith("= ") and line.endswith(" =") and not line.startswith("= =") and len(line) > 3


def _documents(text: str) -> Sequence[Document]:
    first, *others = [_document(page) for page in pages(text)] or [_document(text)]
    # Lines before the first title are no part of a page, but their ends are words of the file.
    rest = sum(document.words_and_line_ends or 0 for document in others)
    return [replace(first, words_and_line_ends=_words_and_line_ends(text) - rest), *others]


TASK = TextTask(
    name="wikitext",
    version=1,
    about="Wikipedia articles in WikiText's form, by the word",
    metrics=(
        "word_perplexity",
        "word_perplexity_eos",
        "bits_per_byte",
        "byte_perplexity",
        "token_perplexity",
    ),
    documents=_documents,
    document=lambda record: _document(record.text("page")),
    files=("wikitext*",),
    hub=HubSet("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test"),
)
