"""`cn-clip data import`: pictures and captions in any of the usual layouts -> TSV and JSONL."""
