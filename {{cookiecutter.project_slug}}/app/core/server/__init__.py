"""gunicorn's worker, whose threads never wait for a client: you never have to open this.

worker: the main loop → connections: one client → bodies: where a request ends.
"""
