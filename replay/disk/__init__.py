"""The spool, the LMDB folder in which a service keeps everything: its one writer, and a reader that works beside it."""
