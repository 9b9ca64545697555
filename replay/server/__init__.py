"""The service: stores rows, keeps the table of groups, and serves them to whoever claims them."""
