"""Labels and evidence in exchange formats: MILAN's layout, CSV, JSONL and Parquet."""
