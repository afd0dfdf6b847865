"""Two sets that stay small at millions of rows: finished line numbers, and identifiers seen."""

from __future__ import annotations

from array import array

_FULLEST = 0.6
_MASK_64 = (1 << 64) - 1


class DoneSet:
    """Line numbers, one bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, line: int) -> bool:
        byte = line >> 3
        return byte < len(self._bits) and bool(self._bits[byte] & (1 << (line & 7)))

    def add(self, line: int) -> bool:
        """False when it was there already."""
        byte, bit = line >> 3, 1 << (line & 7)
        bits = self._bits
        if byte >= len(bits):
            bits.extend(bytes(max(byte + 1 - len(bits), len(bits))))
        if bits[byte] & bit:
            return False
        bits[byte] |= bit
        self._count += 1
        return True

    def discard(self, line: int) -> None:
        if line in self:
            self._bits[line >> 3] &= ~(1 << (line & 7))
            self._count -= 1


class SeenIds:
    """First line of each identifier, in 20 to 40 bytes a row however long the identifiers are.

    Keeps 64-bit hashes with open addressing: among a million identifiers the chance that two
    different ones are taken for one is 3 in 10^8, and it would cost an error row, never a result.
    """

    def __init__(self) -> None:
        self._resize(1 << 10)

    def first_line(self, identifier: str, line: int) -> int:
        """`line` where the identifier is new, else the line that had it first."""
        if self._count >= len(self._hashes) * _FULLEST:
            self._grow()
        return self._place((hash(identifier) & _MASK_64) or 1, line)

    def _place(self, key: int, line: int) -> int:
        hashes = self._hashes
        mask = len(hashes) - 1
        slot = key & mask
        while found := hashes[slot]:
            if found == key:
                return self._lines[slot]
            slot = (slot + 1) & mask
        hashes[slot] = key
        self._lines[slot] = line
        self._count += 1
        return line

    def _resize(self, slots: int) -> None:
        self._hashes = array("Q", bytes(8 * slots))
        self._lines = array("I", bytes(4 * slots))
        self._count = 0

    def _grow(self) -> None:
        hashes, lines = self._hashes, self._lines
        self._resize(2 * len(hashes))
        for key, line in zip(hashes, lines, strict=True):
            if key:
                self._place(key, line)
