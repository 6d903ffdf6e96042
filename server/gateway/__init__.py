"""The public port: TLS in front of Flower's fleet API, and of nothing else.

A connection enters through ``connections`` (limits for strangers, deadlines), a request's head is
judged by ``app`` and ``sites`` (path, length, signature of an admitted key), and its body by
``rules``: one protobuf, in which a site speaks for itself alone and about what ``issued`` says it
was given. Only then does the request go on to the SuperLink.
"""
