"""For all tests: a busy machine may be slow, so hypothesis has no deadline of its own."""

from hypothesis import settings

settings.register_profile("redraft", deadline=None)
settings.load_profile("redraft")
