"""The hub folder: flat, and copied to the Hub as it is; see CONTRIBUTING.md for what may be imported here."""
