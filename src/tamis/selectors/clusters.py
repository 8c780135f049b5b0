"""Cluster labels of many embeddings in bounded memory: k-means fitted on a sample, then streamed assignment.

Row 89 (Xia et al. 2024), part C.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

FIT_PASSES = 20
FIT_BATCH = 4096


def cluster_labels(
    embeddings: "ArrayLike",
    n_clusters: int,
    rng: np.random.Generator,
    fit_rows: int = 100_000,
    block: int = 16_384,
) -> np.ndarray:
    """Return the cluster of each row, (N,) int32 in 0..n_clusters-1, by mini-batch k-means.

    `embeddings` (N, d) is an array or a memory map; it is read in blocks of `block` rows, so that memory stays at
    block x (d + n_clusters) floats. The centres are fitted on at most `fit_rows` random rows, 20 passes. A cluster can be
    empty. Raises ValueError for another shape, n_clusters outside 1..N, or a row that is not finite.
    """
    rows = embeddings if isinstance(embeddings, np.ndarray) else np.asarray(embeddings)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"embeddings must be of shape (N, d) with N > 0, not {rows.shape}")
    if not 1 <= n_clusters <= len(rows):
        raise ValueError(f"n_clusters must be between 1 and the number of rows, {len(rows)}, not {n_clusters}")
    for start in range(0, len(rows), block):
        finite = np.isfinite(rows[start : start + block]).all(axis=1)
        if not finite.all():
            raise ValueError(f"embedding {start + int(np.argmin(finite))} is not finite")
    return nearest(rows, _centres(rows, n_clusters, rng, max(fit_rows, n_clusters)), block)


def _centres(rows: np.ndarray, n_clusters: int, rng: np.random.Generator, fit_rows: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    if len(rows) > fit_rows:
        rows = rows[np.sort(rng.choice(len(rows), fit_rows, replace=False))]
    model = MiniBatchKMeans(
        n_clusters, max_iter=FIT_PASSES, batch_size=FIT_BATCH, n_init=3, random_state=int(rng.integers(2**31))
    )
    return model.fit(np.asarray(rows, dtype=np.float32)).cluster_centers_


def nearest(rows: np.ndarray, centres: np.ndarray, block: int = 16_384) -> np.ndarray:
    """Return the index (N,) int32 of the nearest centre of each row (Euclidean, ties to the lower), block by block."""
    centres = np.asarray(centres, dtype=np.float32)
    half_norms = 0.5 * np.einsum("cd,cd->c", centres, centres)
    labels = np.empty(len(rows), dtype=np.int32)
    for start in range(0, len(rows), block):
        part = np.asarray(rows[start : start + block], dtype=np.float32)
        labels[start : start + block] = np.argmax(part @ centres.T - half_norms, axis=1)
    return labels
