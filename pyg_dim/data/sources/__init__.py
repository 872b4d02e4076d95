"""Files and archives that crystals come from, one format a file; :mod:`pyg_dim.data.sources.registry` opens them."""
