"""Greedy bipartite matching, in place of tf.contrib.image's op, which TensorFlow 2 does not have."""

from typing import Tuple

import numpy as np

from od_qat.compat import tf


def _greedy(distance: np.ndarray, num_valid_rows: np.ndarray, top_k: int) -> Tuple[np.ndarray, np.ndarray]:
    rows, columns = distance.shape
    row_to_col = np.full(rows, -1, np.int32)
    col_to_row = np.full(columns, -1, np.int32)
    valid = min(int(num_valid_rows), rows) if num_valid_rows >= 0 else rows
    wanted = min(valid, columns)
    if top_k > 0:
        wanted = min(wanted, top_k)
    # The sort is stable and row-major, so among equal distances the first row wins, then the first column.
    for flat in np.argsort(distance[:valid], axis=None, kind="stable"):
        if wanted == 0:
            break
        row, column = divmod(int(flat), columns)
        if row_to_col[row] < 0 and col_to_row[column] < 0:
            row_to_col[row] = column
            col_to_row[column] = row
            wanted -= 1
    return row_to_col, col_to_row


def bipartite_match(distance_mat, num_valid_rows, top_k: int = -1, name: str = "bipartite_match"):
    """Matches rows to columns, smallest distance first.

    Args:
      distance_mat: float32 [N, M].
      num_valid_rows: float scalar, the number of rows, from the first, that take part; negative for all.
      top_k: the greatest number of matches if it is positive.
      name: op name.

    Returns:
      int32 [N], the column of each row, and int32 [M], the row of each column; -1 where unmatched.

    Source: semantics of tf.contrib.image.bipartite_match, TensorFlow 1.15.
    """
    row_to_col, col_to_row = tf.py_func(
        lambda d, n: _greedy(d, n, top_k), [distance_mat, num_valid_rows], [tf.int32, tf.int32], name=name
    )
    row_to_col.set_shape([distance_mat.shape[0]])
    col_to_row.set_shape([distance_mat.shape[1]])
    return row_to_col, col_to_row
