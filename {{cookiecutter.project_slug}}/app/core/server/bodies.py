"""Where the body of a request ends, found without waiting for what has not arrived."""

HEXADECIMAL = b"0123456789abcdefABCDEF"
LONGEST_SIZE = 16


class Measured:
    """A body whose length the head says; without one, the length is 0."""

    def __init__(self, length: int) -> None:
        self.length = length

    def end(self, data: bytearray) -> int | None:
        """The end of the body in `data`, or None if that is not all of it."""
        return self.length if len(data) >= self.length else None


class Chunked:
    """A body in chunks, each after a line with its size; the last one has size 0.

    `length` is the sum of the sizes so far. Gunicorn decodes the body and finds its faults.
    """

    def __init__(self) -> None:
        self.length = 0
        self.next_line = 0

    def end(self, data: bytearray) -> int | None:
        """The end of the body in `data`, or None if that is not all of it."""
        while (line_end := data.find(b"\r\n", self.next_line)) >= 0:
            digits = data[self.next_line : line_end].partition(b";")[0].rstrip(b" \t")
            if not 0 < len(digits) <= LONGEST_SIZE or digits.strip(HEXADECIMAL):
                return len(data)
            size = int(digits, 16)
            if size == 0:
                end = data.find(b"\r\n\r\n", line_end)
                return end + 4 if end >= 0 else None
            self.length += size
            self.next_line = line_end + 2 + size + 2
        return None
