"""One client's connection: what has arrived on it, and what is still to be sent. See worker.py."""

import errno
import socket
from io import BytesIO
from typing import Any

from gunicorn.http import get_parser
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine
from werkzeug.exceptions import RequestEntityTooLarge

from app.core.server.bodies import Chunked, Measured

# The longest first line that gunicorn takes, and the longest head that nginx takes.
LINE_LIMIT, HEAD_LIMIT = 4094, 32 * 1024
# What the sizes of chunks may take: a chunk of one byte takes six, and each one takes time.
FRAMING_LIMIT = 256 * 1024
# How much the parser gets at once. It copies what follows a chunk.
PIECE = 8 * 1024
# A thread waits for the client only if more than this of its answer is still to be sent.
UNSENT_LIMIT = 2 * 1024 * 1024


class TooLong(BytesIO):
    """In place of a body that was not received, if the service wants it all the same."""

    def read(self, *_: Any) -> bytes:
        """Answer 413."""
        raise RequestEntityTooLarge

    readline = readinto = read  # type: ignore[assignment]


class Connection:
    """The main loop and a thread use it in turns. In the thread, gunicorn takes it for a socket."""

    def __init__(self, config: Any, peer: socket.socket, client: Any, patience: float) -> None:
        peer.setblocking(False)
        self.socket, self.client, self.server = peer, client, peer.getsockname()
        self.patience = patience
        # It has no socket to wait for, only a buffer that is filled here.
        self.parser = get_parser(config, (), client)
        self.received = bytearray()
        self.request: Any = None
        self.body: Measured | Chunked = Measured(0)
        self.too_long = False
        self.unsent = bytearray()
        self.answering = False
        self.lasting = True
        self.phase = ""
        self.deadline = self.queued_at = 0.0

    @property
    def held(self) -> int:
        """How many bytes of memory it takes."""
        return len(self.received) + len(self.unsent)

    @property
    def has_begun(self) -> bool:
        """Whether a part of a request has arrived."""
        return bool(self.received or self.request)

    # In the main loop

    def receive(self) -> bool:
        """Take what has arrived. False if the client will send no more."""
        data = self.socket.recv(64 * 1024)
        self.received += data
        return bool(data)

    def take_head(self) -> bool:
        """Make the request, if its head has arrived. What follows it stays in `received`."""
        if not self._head_is_complete():
            return False
        self.parser.mesg = None  # the request before this one was read to its end
        self.parser.unreader.unread(bytes(self.received))
        self.request = next(self.parser)
        self.received = bytearray(self.parser.unreader.take_buffered())
        reader = self.request.body.reader
        self.body = Chunked() if isinstance(reader, ChunkedReader) else Measured(reader.length)
        return True

    def _head_is_complete(self) -> bool:
        """True also if it never will be, because gunicorn knows what is wrong with it."""
        data = self.received
        if b"\r\n\r\n" in data:
            return True
        if len(data) > LINE_LIMIT and b"\r\n" not in data:
            raise LimitRequestLine(len(data), LINE_LIMIT)
        if len(data) > HEAD_LIMIT:
            raise LimitRequestHeaders(f"more than {HEAD_LIMIT} bytes")
        return data.count(b"\n") != data.count(b"\r\n")

    def take_body(self, limit: int) -> bool:
        """Give the request its body, if it has arrived or is too long to wait for."""
        end = self.body.end(self.received)
        framing = len(self.received) - self.body.length
        self.too_long = self.body.length > limit or (end is None and framing > FRAMING_LIMIT)
        expected, self.request._expected_100_continue = self.request._expected_100_continue, False
        if self.too_long:
            self.body.length = max(self.body.length, limit + 1)
            self.request.force_close()
            return True
        if end is None:
            if expected:
                self.unsent += b"HTTP/1.1 100 Continue\r\n\r\n"
                self.send()
            return False
        body = bytes(self.received[:end])
        self.parser.unreader.iter = (body[n : n + PIECE] for n in range(0, end, PIECE))
        del self.received[:end]
        return True

    def end_request(self, lasting: bool) -> None:
        """Make ready for the next request or, unless it is `lasting`, for the end."""
        self.request = None
        self.answering = False
        self.lasting = lasting
        if not lasting:
            self.received.clear()

    # In a thread

    @property
    def sock(self) -> "Connection":
        """Where gunicorn writes the answer."""
        return self

    def decode_body(self) -> None:
        """Have gunicorn read the body, so that the service gets all of it, or its length."""
        request, length = self.request, self.body.length
        body = b"" if self.too_long else request.body.read()
        request.body = TooLong() if self.too_long else BytesIO(body)
        if isinstance(self.body, Chunked):
            request.headers = [item for item in request.headers if item[0] != "TRANSFER-ENCODING"]
            request.headers.append(("CONTENT-LENGTH", str(length if self.too_long else len(body))))
        if self.parser.unreader.read():
            request.force_close()

    def sendall(self, data: bytes) -> None:
        """Take a part of the answer. Its head is sent together with what follows."""
        self.unsent += data
        if self.answering:
            self.send()
        self.answering = True
        if len(self.unsent) > UNSENT_LIMIT:
            self.socket.settimeout(self.patience)
            try:
                # Not sendall, whose time is for all of it.
                while self.unsent:
                    del self.unsent[: self.socket.send(self.unsent)]
            except TimeoutError as error:
                raise BrokenPipeError(errno.EPIPE, "the client takes nothing") from error
            finally:
                self.unsent.clear()
                self.socket.setblocking(False)

    def send(self) -> None:
        """Send as much as the network takes at once."""
        try:
            del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            return

    def shutdown(self, _how: int) -> None:
        """Refuse what gunicorn does to end an answer that broke off; the main loop does it."""
        raise OSError

    def close(self) -> None:
        """Do nothing, for the same reason."""
