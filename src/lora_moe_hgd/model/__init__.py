"""The hub folder. It is flat and is copied to the Hub unchanged. CONTRIBUTING.md lists the imports allowed here."""
