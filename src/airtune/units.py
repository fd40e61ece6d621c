"""Conversions between the units in names, used only where numbers enter or leave.

Inside the package every quantity is in one unit: hertz, watt, second, byte, bit per second, FLOP.
"""

from __future__ import annotations

import re

BITS_PER_BYTE = 8
KIB, MIB, GIB = 1024, 1024**2, 1024**3


def dbm_to_watt(power_dbm: float) -> float:
    """Return the power in watt of a level in dBm.

    >>> dbm_to_watt(30.0)
    1.0
    """
    return float(10.0 ** ((power_dbm - 30.0) / 10.0))


def format_bytes(size_bytes: float) -> str:
    """Write a byte count for people, in powers of 1024.

    >>> format_bytes(1536), format_bytes(12)
    ('1.5 KiB', '12 B')
    """
    for unit, scale in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size_bytes) >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def format_number(value: float) -> str:
    """Write a number for people: three digits, and no fewer than those before the point.

    >>> format_number(0.03125), format_number(20.0), format_number(1280.0)
    ('0.0312', '20', '1,280')
    """
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def parse_bytes(text: str) -> float:
    """Return the bytes of a text such as 700MB, 1.5GiB or 2048; raises ValueError for another.

    >>> parse_bytes("1.5 GB"), parse_bytes("2KiB")
    (1500000000.0, 2048.0)
    """
    found = re.fullmatch(r"([\d.]+)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"a size must be like 700MB or 1.5GiB, got {text!r}")
    number, prefix, binary = found.groups()
    scale = 1024.0 if binary else 1000.0
    return float(float(number) * scale ** " KMGT".index(prefix.upper() or " "))


_JOULES = {"j": 1.0, "kj": 1e3, "mj": 1e6, "wh": 3.6e3, "kwh": 3.6e6}


def parse_joules(text: str) -> float:
    """Return the joules of a text such as 500, 2kJ or 0.1kWh; raises ValueError for another.

    >>> parse_joules("500"), parse_joules("2 kJ"), parse_joules("0.1kWh")
    (500.0, 2000.0, 360000.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(k?j|mj|k?wh)?", text.strip().lower())
    if found is None:
        raise ValueError(f"joules must be like 500, 2kJ or 0.1kWh, got {text!r}")
    return float(found[1]) * _JOULES[found[2] or "j"]


_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_seconds(text: str) -> float:
    """Return the seconds of a text such as 6h, 90m, 1d12h or 45s; raises ValueError for another.

    >>> parse_seconds("6h"), parse_seconds("1 h 30 min"), parse_seconds("0.5d")
    (21600.0, 5400.0, 43200.0)
    """
    words = text.strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd])\s*", words)
    is_whole = re.fullmatch(r"(?:\d+(?:\.\d+)?\s*(?:min|[smhd])\s*)+", words) is not None
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts) if is_whole else 0.0
    if not seconds > 0.0:
        raise ValueError(f"a duration must be like 6h, 90m, 1d or 1h30m, above 0, got {text!r}")
    return seconds


def format_seconds(duration_s: float) -> str:
    """Write a duration for people.

    >>> format_seconds(0.0123), format_seconds(75.0), format_seconds(7300.0)
    ('12.3 ms', '1 min 15 s', '2 h 1 min')
    """
    if duration_s < 1.0:
        return f"{duration_s * 1e3:.1f} ms"
    if duration_s < 60.0:
        return f"{duration_s:.1f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"
