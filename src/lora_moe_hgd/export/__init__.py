"""Export: the network as a file that runs without this package."""
