"""Replay keeps turns between the actors that make them and the learner that uses them: ZeroMQ on an LMDB spool.

What it promises
1. A turn that was acknowledged survives kill -9 of the service at any instant; with `durability: power` also a power
   cut. An acknowledgement names the very batches that one committed transaction holds.
2. At least once on the wire, exactly once in the store: a resend, a restarted producer or a group that is played again
   change nothing, also after the group was forgotten. What counts as stored changes only after the commit.
3. A group is served only when closed and whole. Every row has a checksum, from the producer to who decodes it; a group
   with a corrupt one is reported, never handed to the learner, and played again under a higher fencing token.
4. Exactly once in the history of training: a group carries the steps that used it and is forgotten only when a durable
   checkpoint covers them. `resume(s)` serves again what came after step s, and nothing that came before.
5. Memory and disk are bounded. Above `max_bytes`, or on a full disk, producers are told to start nothing new; nothing
   is dropped, nothing is acknowledged that is not stored, and when there is room they are told at once.
6. Claims are served in the order of the leases, uniformly, or by priority; each group `max_uses` times at most; none
   staler than asked for. Filtered groups (stale, or without variance) are counted, and kept until a checkpoint.
7. A claim holds its groups until commit, release or resume, or until its consumer was silent for `claim_lease_s`. A
   slow consumer holds up nobody else.
8. A message of another schema, too large, malformed, with a wrong checksum, or from a peer without a key is refused and
   counted, and harms nothing. tcp endpoints speak CURVE; ipc ones lie in a folder that only their owner may enter.

Nothing here waits forever: each wait of a client has a deadline and names whom it waited for.

    client/   a Producer sends rows, a Client asks for groups; what actors, learner and controller hold
    server/   the Service: its table of groups, the samplers, and who answers requests
    disk/     the spool: its one writer, and a reader that works beside it
    tools/    for people: a service alone, counts, verify, Parquet

    client.producer --rows--> server.service --> server.request_handler --groups--> client.client
                                     |
                     server.store = disk.spool (what is on the disk) + server.groups (its table in memory)
                                  + server.ready (what claims choose from)
"""
