"""Which products a search finds: BM25 over their texts, with the words and constants of Lucene's English default."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from actors.environments.webshop.products import Product

K1, B = 0.9, 0.4
MOST = 50  # products that a search finds
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


class Index:
    """Finds products by words. Equal scores keep the order of the catalogue."""

    def __init__(self, products: Iterable[Product]):
        import bm25s

        products = list(products)
        self._asins = [product.asin for product in products]
        texts = [_stems(_text(product)) for product in products]
        self._scorer = bm25s.BM25(k1=K1, b=B, method="lucene") if any(texts) else None  # it takes no wordless ones
        if self._scorer:
            self._scorer.index(texts, show_progress=False)

    def find(self, text: str) -> tuple[str, ...]:
        """At most MOST asins of products that hold a word of the text, the best first."""
        if self._scorer is None or not (known := self._scorer.get_tokens_ids(_stems(text))):
            return ()
        scores = self._scorer.get_scores_from_ids(known)
        best = np.argsort(-scores, kind="stable")[:MOST]
        return tuple(self._asins[n] for n in best if scores[n] > 0)


def _text(product: Product) -> str:
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    return " ".join((product.title, product.description, *product.features[:1], options))


def _stems(text: str) -> list[str]:
    from bm25s.stopwords import STOPWORDS_EN

    return [_stem(word) for word in WORD.findall(text.lower()) if word not in STOPWORDS_EN]


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    import snowballstemmer

    return snowballstemmer.stemmer("porter").stemWord(word.removesuffix("'s"))  # a new one, since it holds state
