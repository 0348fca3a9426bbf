"""The Inception score: how sure a classifier is of each sample, and how varied its classes are."""

import numpy as np
from jaxtyping import Float


def inception_score(
    logits: Float[np.ndarray, "examples classes"], splits: int = 1
) -> tuple[float, float]:
    """`exp(E KL(p(y|x) || p(y)))` (Salimans et al. 2016, section 4), its mean and standard
    deviation over the splits. Between 1 and the number of classes.

    Args:
        logits: of the classifier. What others report is of Inception's 1,008.
        splits: equal parts in the order given, each with its own p(y). The score grows with the
            size of a part; 10 parts of 5,000 are the custom. One part depends on no order.
    """
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    scores = []
    for part in np.array_split(log_p, splits):
        p = np.exp(part)
        marginal = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (part - marginal)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
