"""Identifiers that sort by the time they were made."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH, _RANDOM_BITS = 26, 74


def new(prefix: str) -> str:
    """`prefix`, an underscore and 26 characters: 56 bits of microseconds, then 74 random ones."""
    number = (time.time_ns() // 1000 << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    digits = (_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_LENGTH)))
    return f"{prefix}_{''.join(digits)}"
