"""Several processes: what the daemon has to do with its fronts, which do TLS and carry the streams.

The daemon accepts, counts, and hands each TCP connection to a front (`crew.py`), together with one end of a pair of
sockets, the *lane*. The front does TLS and sends the plaintext through the lane; at its other end stands the daemon's
own HTTP (`lane.py`), so there is one place where requests are read, judged, delayed and limited. Where HTTP decides for
a websocket, the dialled UNIX socket goes back through the lane, and the front carries the stream (`carrying.py`).
"""
