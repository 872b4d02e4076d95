"""Train an encoder: the same program as ``pyg-dim train``; see ``python train.py --help``."""

import sys

from pyg_dim.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], prog="python train.py"))
