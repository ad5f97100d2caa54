"""Sizes, times and numbers as people say them."""


def size(count: float) -> str:
    """For example 17.9 MB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def age(seconds: float) -> str:
    """For example 3 days."""
    for length, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            return counted(int(seconds // length), unit)
    return "under a minute"


def counted(count: int, noun: str) -> str:
    """For example 1 row, or 1,200 rows."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
