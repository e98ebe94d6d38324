"""Uses of labels: analysis, auditing and editing of models (Hernandez et al. 2022)."""
