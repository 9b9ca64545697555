"""The model: loaded, asked for log-probs in bounded memory, adapted, saved, and tested before anything is trained."""
