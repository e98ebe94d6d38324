"""What was said of units, by whom and when: the label database, jobs, files and reviews."""
