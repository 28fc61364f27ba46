"""The network. This flat folder is copied to the Hub unchanged; CONTRIBUTING.md lists the imports it may use."""
