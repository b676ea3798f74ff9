"""`messenger chat`: a small client for people, on the contract alone, as anybody could write it.

    server    what is asked over HTTP: log in, tokens, queries (I/O)
    link      the stream: connected, resumed and connected again, for as long as it is wanted (I/O)
    client    what becomes of what comes in and of what is typed; each command done once (I/O)
    view      what the client knows: a state, then events, one after the other (pure)
    wording   how all of it is said (pure)
    typed     what a typed line asks for (pure)
    editing   a line while it is typed (pure)
    terminal  where it is shown and typed: the whole screen, or plain lines on a pipe (I/O)

Nothing here knows the server's insides: what it needs is in what the server says.
"""
