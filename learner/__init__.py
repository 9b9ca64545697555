"""The learner uses turns: it claims groups of them from replay, and trains and publishes weights.

    batches/      claimed groups as micro-batches: claimed ahead, credited, linearised, weighed, packed
    credits/      what a turn is worth          objectives/   the loss
    model/        loaded, asked for log-probs, adapted, saved, tested before anything is trained
    ranks/        the training processes: commands, the lead's loop, the trainer under DeepSpeed
    weights/      published, with the proof that an engine computes with them
    transcripts/  what the run folder keeps of turns, for people

Beside them: settings, `sequences` (what is packed and weighed) and `checkpoint` (what a run resumes from).
"""
