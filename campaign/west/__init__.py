"""West.h5 as WESTPA writes it, and a west.cfg for WESTPA's tools: views of what the ledger has committed."""
