"""The final answer of a worked solution, as GSM8K and the embedded word problems mark it."""

from __future__ import annotations

import re

_MARKED = re.compile(r"####[ \t]*([^\n]+)")
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?\.?\d+")


def answer_of(text: str) -> str | None:
    r"""Return the number after the last `####`, in one spelling, or None where there is none.

    Thousands separators, a currency sign, a leading plus, a unit behind it and a fraction of
    zeros are dropped, so that equal numbers are equal strings. An answer that is no number is
    compared as it stands.

    >>> answer_of("She pays 3 * 4 = 12.\n#### $1,012.00")
    '1012'
    >>> answer_of("no mark") is None
    True
    """
    marked = _MARKED.findall(text)
    if not marked:
        return None
    answer = str(marked[-1]).strip()
    number = _NUMBER.search(answer)
    if number is None:
        return answer or None
    sign = "-" if number.group().startswith("-") else ""
    whole, _, fraction = number.group().lstrip("+-").replace(",", "").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return value if value == "0" else sign + value
