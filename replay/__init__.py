"""Replay keeps turns between the actors that make them and the learner that uses them: ZeroMQ on an LMDB spool.

What it promises
- What was acknowledged is in the spool: it survives kill -9 of the service at any instant. An acknowledgement names the
  very batches that one committed transaction holds. (A power cut may lose the last seconds.)
- A row is stored once: a resend is counted as a duplicate and changes nothing, also after its group was forgotten.
- A group is served only when closed and whole. A record that fails its checksum is never served: its group is dropped
  and may be played again.
- A higher lease fences off the lower: the first row of a newer play drops the open rows of the older one.
- A claim holds its groups until commit, release or resume, or until its consumer was silent for `claim_lease_s`. Claims
  and uses are in the spool, so a restart of the service neither serves a group twice nor skips one.
- A group is forgotten only when a checkpoint covers all its uses; its id stays known. `resume(step)` makes every group
  that is claimed, or was used after `step`, ready again.
- Nothing here waits forever: each wait of a client has a deadline and names whom it waited for.
"""
