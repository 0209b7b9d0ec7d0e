"""Workers: processes that do TLS and carry streams, so that the daemon can use several cores.

The daemon accepts and counts connections. It passes each TCP socket to a worker (`pool.py`), together with one end of a
socket pair, the *plaintext socket*. The worker does TLS and sends the decrypted bytes through the plaintext socket; the
daemon's own HTTP reads them at the other end (`plaintext.py`). So requests are read, checked, delayed and limited in
one place. When HTTP grants a websocket, the daemon sends the connected UNIX socket through the plaintext socket, and
the worker carries the stream from then on (`relay.py`).
"""
