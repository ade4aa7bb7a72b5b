"""Large numbers as a reader wants to see them."""


def scaled(number: int, unit: str = "B") -> str:
    """A number of bytes, or of another unit, in thousands.

    >>> scaled(544_768), scaled(3_000_000_000, "FLOP")
    ('544.77 kB', '3.00 GFLOP')
    """
    power = min(5, (len(str(number)) - 1) // 3)
    return f"{number / 1000**power:.2f} {('', 'k', 'M', 'G', 'T', 'P')[power]}{unit}"
