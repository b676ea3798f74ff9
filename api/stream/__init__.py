"""The stream: everything that concerns a user, live, each once, with no seam (contract.md, 4).

    wire        WebSocket frames to and from one socket (I/O)
    frames      what is in them: operations in, operations out (pure)
    connection  one client: authenticates, starts, receives, commands
    gateway     follows the log once a process, and routes to the connections
    rooms       who is in which chat, at the position that was routed last (pure)
    people      who is whose contact, and who blocks whom (pure)
    spans       in which chats a user was at which position (pure)
    shown       what a client is shown of an event (pure)
    readings    what all of this reads from PostgreSQL; names: the names of the day
    catch_up    what a client missed, from the log
    places      how many do so at once, and how many of those are waited for
    receipts    what clients say they have, recorded together
    presence    who has an open connection, under a lease
    statuses    how presence changed last, for those who come back (pure)
    typing      who is typing, told once and kept nowhere

A connection subscribes to the gateway first, at its position S; then it reads the log up to S,
while what comes after S is held for it. Nothing is between the two, and nothing is in both.
"""
