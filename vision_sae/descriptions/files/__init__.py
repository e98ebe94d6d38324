"""Labels and evidence in files that others read and write: MILAN's, CSV, JSONL and Parquet."""
