"""The experiments of the papers as commands: probes, transfer, and the figures and tables made of them."""
