"""Names that sort by the time they were given."""

from datetime import UTC, datetime

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: in the order of ASCII, without letters that look like digits."""


def attempt_id(time_ns: int, entropy: bytes) -> str:
    """26 characters in the form of a ULID: 13 of the time in nanoseconds, 13 of chance.

    Args:
        time_ns: Nanoseconds since 1970, UTC.
        entropy: At least 8 random bytes.
    """
    return _base32(time_ns) + _base32(int.from_bytes(entropy[:8], "big"))


def run_id(time_ns: int, entropy: bytes) -> str:
    """A name that people can type, `20260801-142530-3f9a1c`: the second in UTC, then chance.

    Args:
        time_ns: Nanoseconds since 1970, UTC.
        entropy: At least 3 random bytes.
    """
    second = datetime.fromtimestamp(time_ns // 10**9, tz=UTC)
    return f"{second:%Y%m%d-%H%M%S}-{entropy[:3].hex()}"


def _base32(value: int) -> str:
    # 13 digits of 5 bits hold any 64-bit number, so that all names have one length.
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(60, -1, -5))
