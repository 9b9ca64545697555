"""The contract between the parts: turns, wire format, keys, weight references, metric names. Imports none of them."""
