"""The controller of a run and what it steers: leases, the fleet, replay shards, the learner; and how to ask it."""
