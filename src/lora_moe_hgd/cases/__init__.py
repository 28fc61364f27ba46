"""From files on disk to a case: names, layouts, reading, checks, conversion."""
