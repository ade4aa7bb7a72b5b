"""How far a share of successes can be trusted: Wilson's interval."""

from __future__ import annotations

import math

Z = 1.959963984540054  # the normal distribution's 97.5% point


def wilson(found: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share of which `found` in `count` independent trials are known.

    It holds where a normal interval fails: for few trials, and for none or all found. Source:
    Wilson, "Probable inference, the law of succession, and statistical inference", Journal of
    the American Statistical Association 22 (1927). Raises ValueError for no trials, and for
    more found than tried.

    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 <= found <= count or count < 1:
        raise ValueError(f"{found} of {count} is not a share")
    share, weight = found / count, Z * Z / count
    middle = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / count + weight / count / 4) / (1 + weight)
    # With none or all found one bound is exactly 0 or 1, which rounding must not move.
    return 0.0 if found == 0 else middle - half, 1.0 if found == count else middle + half
