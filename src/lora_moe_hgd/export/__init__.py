"""Export the network to a file that runs without this package."""
