"""Networks and adapters shared with others."""
