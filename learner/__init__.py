"""The learner uses turns: credit, objectives, packing, the DeepSpeed ranks, weight publishing, checkpoints."""
