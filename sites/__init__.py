"""How a site is reached: its executors, its stores, its servers."""
