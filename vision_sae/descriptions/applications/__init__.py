"""What labels are for: analysis, auditing and editing of models (Hernandez et al. 2022)."""
