"""Labels and evidence in the files that others read and write: MILAN's layout, CSV, JSONL, Parquet."""
