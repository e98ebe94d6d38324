"""Methods of attribution: one file a method, which registers itself when it is imported."""
