"""Randomness as a function of (seed, epoch, sample) or (seed, step): no generator state to keep or restore."""

from __future__ import annotations

from hashlib import blake2b


def stable_hash(*parts: object) -> int:
    """A 63-bit hash of the parts' text, the same in every process, run and platform; seeds and keys."""
    digest = blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
